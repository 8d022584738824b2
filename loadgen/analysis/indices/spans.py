"""Spans: a word per batch size, said in one sentence for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import msgspec

from loadgen.analysis.indices.drawn import Estimate


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What is said at one concurrency, and of which figure."""

    concurrency: int
    word: str
    estimate: Estimate | None
    decided: bool
    """Else the interval is told too: it says why not."""
    why: str = ""
    """Instead of the figure, where there is none."""


def by_span(said: Sequence[Said], figure: str) -> str:
    """Neighbouring concurrencies with the same word together: "no at B ≤ 16 (SI 1.21), yes at B = 128 (SI 0.88)"."""
    ordered = sorted(said, key=lambda s: s.concurrency)
    spans = [list(span) for _, span in groupby(ordered, key=lambda s: (s.word, s.why))]
    if len(spans) == 1 and len(ordered) > 1:
        where = [f"at every B measured, {_range(ordered)}"]
    else:
        where = [f"at B {_place(span)}" for span in spans]
    return ", ".join(f"{s[0].word} {place} ({_figures(s, figure)})" for s, place in zip(spans, where, strict=True))


def _place(span: Sequence[Said]) -> str:
    if len(span) > 1 and span[0].concurrency == 1:
        return f"\N{LESS-THAN OR EQUAL TO} {span[-1].concurrency}"
    return f"= {_range(span)}"


def _range(span: Sequence[Said]) -> str:
    ends = dict.fromkeys((str(span[0].concurrency), str(span[-1].concurrency)))
    return "\N{EN DASH}".join(ends)


def _figures(span: Sequence[Said], figure: str) -> str:
    known = [s.estimate for s in span if s.estimate is not None]
    if not known:
        return span[0].why
    values = sorted(estimate.value for estimate in known)
    ends = dict.fromkeys((_number(values[0]), _number(values[-1])))
    text = f"{figure} {' to '.join(ends)}"
    only = known[0]
    if not span[0].decided and len(known) == 1 and only.lo is not None and only.hi is not None:
        text += f", {_number(only.lo)} to {_number(only.hi)}"
    return f"{text}; {span[0].why}" if span[0].why else text


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
