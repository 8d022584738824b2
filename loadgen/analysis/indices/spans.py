"""Spans: a word per batch size, said in one sentence for all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby

import msgspec

from loadgen.analysis.indices.drawn import Estimate
from loadgen.analysis.intervals import too_wide


def spanned(batches: Collection[int], measured: Collection[int]) -> str:
    """Those of the `measured` batches, neighbours joined: "B = 64", "B ≤ 16" from 1 on, "B = 1, 16–64"."""
    runs = [list(run) for inside, run in groupby(sorted(measured), key=lambda b: b in batches) if inside]
    if len(runs) == 1 and len(runs[0]) > 1 and runs[0][0] == 1:
        return f"B \N{LESS-THAN OR EQUAL TO} {runs[0][-1]}"
    ends = (dict.fromkeys((str(run[0]), str(run[-1]))) for run in runs)
    return "B = " + ", ".join("\N{EN DASH}".join(end) for end in ends)


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
    spans = [list(span) for _, span in groupby(ordered, key=lambda s: s.word)]
    if len(spans) == 1 and len(ordered) > 1:
        where = [f"at every B measured, {_range(ordered)}"]
    else:
        measured = [s.concurrency for s in ordered]
        where = [f"at {spanned([s.concurrency for s in span], measured)}" for span in spans]
    return ", ".join(f"{s[0].word} {place} ({_figures(s, figure)})" for s, place in zip(spans, where, strict=True))


def _range(span: Sequence[Said]) -> str:
    ends = dict.fromkeys((str(span[0].concurrency), str(span[-1].concurrency)))
    return "\N{EN DASH}".join(ends)


def _figures(span: Sequence[Said], figure: str) -> str:
    """Of the whole span; where the reasons for having none differ, one after the other with its batches."""
    parts = [list(part) for _, part in groupby(span, key=lambda s: s.why)]
    if len(parts) == 1:
        return _of_one(span, figure)
    asked = [s.concurrency for s in span]
    return "; ".join(f"{spanned([s.concurrency for s in part], asked)}: {_of_one(part, figure)}" for part in parts)


def _of_one(span: Sequence[Said], figure: str) -> str:
    known = [s.estimate for s in span if s.estimate is not None]
    if not known:
        return span[0].why
    values = sorted(estimate.value for estimate in known)
    ends = dict.fromkeys((_number(values[0]), _number(values[-1])))
    text = f"{figure} {' to '.join(ends)}"
    only = known[0]
    if not span[0].decided and len(known) == 1 and only.lo is not None and only.hi is not None:
        wide = too_wide(only.lo, only.hi, floor=-1.0 if figure == "COR" else 0.0)
        text += ", not known: the repeats differ too much" if wide else f", {_number(only.lo)} to {_number(only.hi)}"
    return f"{text}; {span[0].why}" if span[0].why else text


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
