"""Estimate: a figure with its 95% interval. Direction: on which side of a crossing a target is better.

BatchResult: what is found at one concurrency; results of several are put in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal

import msgspec

from loadgen.words import interval, number, span, spanned, too_wide

Direction = Literal["wins_below", "wins_above"]
"""Where the target of a comparison is better than the reference: below the crossing, or above it."""
ROUNDING = 1e-9
"""Closer to a border than this is on it: equal figures differ by their arithmetic."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A figure with its 95% interval over repeats and items, as far as it depends on either; no ends where nothing
    tells its uncertainty (a single repeat)."""

    value: float
    lo: float | None = None
    hi: float | None = None

    def below(self, border: float) -> bool:
        """Established: the whole interval lies below."""
        return self.hi is not None and self.hi < border - ROUNDING

    def above(self, border: float) -> bool:
        """Established: the whole interval lies above."""
        return self.lo is not None and self.lo > border + ROUNDING

    def falling(self, formula: Callable[[float], float]) -> Estimate:
        """A decreasing function of it."""
        lo, hi = (None if end is None else formula(end) for end in (self.hi, self.lo))
        return Estimate(value=formula(self.value), lo=lo, hi=hi)


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """A word for what is found at one concurrency, and the figure that it rests on."""

    concurrency: int
    word: str
    estimate: Estimate | None
    decided: bool
    """Else the interval is shown too: it says why not."""
    why: str = ""
    """Instead of the figure, where there is none."""


def by_span(results: Sequence[BatchResult], figure: str, *, briefly: bool = False) -> str:
    """Neighbouring concurrencies with the same word together: "no at B ≤ 16 (SI 1.21), yes at B = 128 (SI 0.88)".
    Without the figures where `briefly`."""
    ordered = sorted(results, key=lambda result: result.concurrency)
    measured = [result.concurrency for result in ordered]
    groups = [list(alike) for _, alike in groupby(ordered, key=lambda result: result.word)]
    parts = []
    for group in groups:
        where = spanned([result.concurrency for result in group], measured)
        if len(groups) == 1 and len(ordered) > 1:
            where = f"every B measured, {span(measured[0], measured[-1])}"
        parts.append(f"{group[0].word} at {where}" + ("" if briefly else f" ({_figures(group, figure)})"))
    return ", ".join(parts)


def _figures(span: Sequence[BatchResult], figure: str) -> str:
    """The figure over the whole span; where the reasons for having none differ, each with its batches."""
    parts = [list(part) for _, part in groupby(span, key=lambda result: result.why)]
    if len(parts) == 1:
        return _figure(span, figure)
    measured = [result.concurrency for result in span]
    return "; ".join(
        f"{spanned([result.concurrency for result in part], measured)}: {_figure(part, figure)}" for part in parts
    )


def _figure(span: Sequence[BatchResult], figure: str) -> str:
    known = [result.estimate for result in span if result.estimate is not None]
    if not known:
        return span[0].why
    values = sorted(estimate.value for estimate in known)
    text = f"{figure} {' to '.join(dict.fromkeys((number(values[0], 2), number(values[-1], 2))))}"
    low, high = known[0].lo, known[0].hi
    if not span[0].decided and len(known) == 1 and low is not None and high is not None:
        wide = too_wide(low, high, floor=-1.0 if figure == "COR" else 0.0)
        text += ", not known: the repeats differ too much" if wide else f", {interval(low, high, 2)}"
    return f"{text}; {span[0].why}" if span[0].why else text
