"""Estimate: a figure with its 95% interval. Direction: on which side of a crossing a target is better.

BatchResult: what is found at one concurrency; results of several are told in one line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import Literal

import msgspec

from loadgen.analysis.intervals import too_wide

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


def spanned(batches: Collection[int], measured: Collection[int], *, column: bool = False) -> str:
    """Those of the `measured` batches, neighbours joined: "B = 64", "B ≤ 16" from 1 on, "B = 1, 16–64"; without "B ="
    in a `column` that is headed B."""
    runs = [list(run) for inside, run in groupby(sorted(measured), key=lambda b: b in batches) if inside]
    if len(runs) == 1 and len(runs[0]) > 1 and runs[0][0] == 1:
        return f"{'' if column else 'B '}\N{LESS-THAN OR EQUAL TO} {runs[0][-1]}"
    ends = (dict.fromkeys((str(run[0]), str(run[-1]))) for run in runs)
    return ("" if column else "B = ") + ", ".join("\N{EN DASH}".join(end) for end in ends)


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """A word for what is found at one concurrency, and the figure that it rests on."""

    concurrency: int
    word: str
    estimate: Estimate | None
    decided: bool
    """Else the interval is told too: it says why not."""
    why: str = ""
    """Instead of the figure, where there is none."""


def by_span(results: Sequence[BatchResult], figure: str, *, briefly: bool = False) -> str:
    """Neighbouring concurrencies with the same word together: "no at B ≤ 16 (SI 1.21), yes at B = 128 (SI 0.88)".
    Without the figures where `briefly`."""
    ordered = sorted(results, key=lambda result: result.concurrency)
    measured = [result.concurrency for result in ordered]
    spans = [list(span) for _, span in groupby(ordered, key=lambda result: result.word)]
    parts = []
    for span in spans:
        where = spanned([result.concurrency for result in span], measured)
        if len(spans) == 1 and len(ordered) > 1:
            where = f"every B measured, {measured[0]}\N{EN DASH}{measured[-1]}"
        parts.append(f"{span[0].word} at {where}" + ("" if briefly else f" ({_figures(span, figure)})"))
    return ", ".join(parts)


def _figures(span: Sequence[BatchResult], figure: str) -> str:
    """Of the whole span; where the reasons for having none differ, one after the other with its batches."""
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
    text = f"{figure} {' to '.join(dict.fromkeys((_number(values[0]), _number(values[-1]))))}"
    low, high = known[0].lo, known[0].hi
    if not span[0].decided and len(known) == 1 and low is not None and high is not None:
        wide = too_wide(low, high, floor=-1.0 if figure == "COR" else 0.0)
        text += ", not known: the repeats differ too much" if wide else f", {_number(low)} to {_number(high)}"
    return f"{text}; {span[0].why}" if span[0].why else text


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
