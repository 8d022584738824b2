"""Estimate: a figure with its 95% interval. Direction: on which side of a crossing a target is better.

WindowSpread: how well one window knows a ratio of sums (joules over tokens) whose neighbours in time are alike.
BatchResult: what is found at one concurrency; results of several are put in one line.

Sources: batch means with Student's t (Law and Kelton, Simulation Modeling and Analysis); the small-sample bias of a
lag-1 autocorrelation (Kendall 1954). The constants are tuned by bench/window_energy.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.celldata import Floats
from loadgen.words import interval, number, span, spanned, too_wide

Direction = Literal["wins_below", "wins_above"]
"""Where the target of a comparison is better than the reference: below the crossing, or above it."""
ROUNDING = 1e-9
"""Closer to a border than this is on it, and differences of less than this share of the mean are arithmetic."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A figure with its 95% interval over repeats and items, as far as it depends on either; no ends where nothing
    gives its uncertainty (a single repeat)."""

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


CONFIDENCE = 0.95
NORMAL_95 = float(special.ndtri(0.5 + CONFIDENCE / 2))
"""Standard errors from the middle of a normal 95% interval to its end."""


def rate_interval(rates: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's 95% interval over independent repeats, taken on the logarithms; empty with fewer than two.

    Rates are positive and their repeats differ by factors (clocks, heat, other load), so that ratios of rates get
    their interval in the same way.
    """
    if len(rates) < 2:
        return None, None
    logs = np.log(rates)
    half = float(special.stdtrit(len(rates) - 1, 0.5 + CONFIDENCE / 2) * np.std(logs, ddof=1) / math.sqrt(len(rates)))
    return float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half))


def rate_ratio(rates: Sequence[float], others: Sequence[float]) -> Estimate:
    """The geometric mean of `rates` over that of `others`, both positive and independent, with Welch's 95% interval
    (1947) on the logarithms; no ends unless both have two."""
    logs = [np.log(rates), np.log(others)]
    middle = float(logs[0].mean() - logs[1].mean())
    if min(len(rates), len(others)) < 2:
        return Estimate(value=math.exp(middle))
    parts = [float(side.var(ddof=1)) / len(side) for side in logs]
    if sum(parts) < ROUNDING**2:
        return Estimate(value=math.exp(middle), lo=math.exp(middle), hi=math.exp(middle))
    degrees = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, logs, strict=True))
    half = float(special.stdtrit(degrees, 0.5 + CONFIDENCE / 2)) * math.sqrt(sum(parts))
    return Estimate(value=math.exp(middle), lo=math.exp(middle - half), hi=math.exp(middle + half))


def log_error(low: float, high: float) -> float:
    """Standard error of the logarithm of a figure whose 95% interval is (low, high), both above 0."""
    return math.log(high / low) / (2 * NORMAL_95)


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion (Wilson 1927); `n` counts items, not answers to the same item."""
    z = NORMAL_95
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


PARTS = (120, 60, 30)
"""Equal parts of a window in which the correlation is measured. Fast noise hides a slow swing in fine parts only."""
READINGS_PER_PART = 2
CORRELATION_TIMES = 20.0
"""A window that holds fewer has no interval."""
BLOCK_TIMES = 3.0
"""Correlation times in a block; two blocks are then nearly independent."""
MOST_BLOCKS = 20
PARTS_PER_BLOCK = 3
"""At least: an end of a block in the middle of a part hides some of the scatter."""
CAUTION = 0.5
"""Standard errors that are added to a measured autocorrelation: too short a correlation time does more harm than too
long a one."""
WIDENING = 1.5
"""How much wider an interval is made at `CORRELATION_TIMES`, falling with the cube of how many there are: a window
that happens to show little of a slow swing shows too short a correlation time and too little noise at once."""

_NONE = 1e-9
"""Correlation time, as a share of the window, of what is not correlated."""
_INVERSE = np.logspace(-3, 3, 2000)
"""Length of a part in correlation times."""
_LAG_ONE = np.expm1(-_INVERSE) ** 2 / (2 * (_INVERSE + np.expm1(-_INVERSE)))
"""Autocorrelation of neighbouring parts' means, where the autocorrelation falls exponentially in time."""


class WindowSpread(msgspec.Struct, frozen=True, kw_only=True):
    """The noise inside one window of a ratio of two sums over it."""

    half_width: float | None
    """Half the ratio's 95% interval, relative to the ratio; None where the window holds too few correlation times."""
    correlation: float
    """Correlation time as a share of the window, half a standard error above the measured one; inf: longer than it
    can tell."""


def finest(readings: int) -> int | None:
    """Into how many parts a window with so many readings can be cut; None if into too few to measure a correlation."""
    return next((parts for parts in PARTS if readings >= READINGS_PER_PART * parts), None)


def window_spread(above: Floats, below: Floats) -> WindowSpread:
    """The spread of sum(above) / sum(below) over equal parts of a window, as many as one of `PARTS`; both sums above 0.

    What is correlated are the parts' residuals above - ratio x below. They are added up in blocks of `BLOCK_TIMES`
    correlation times; the blocks' scatter gives the error of their mean, corrected for what an exponentially falling
    autocorrelation leaves between blocks, with Student's t of blocks - 1 degrees.
    """
    ratio = above.sum() / below.sum()
    residuals = above - ratio * below
    if np.abs(residuals).max() <= ROUNDING * above.mean():
        return WindowSpread(half_width=0.0, correlation=_NONE)
    correlation = max(_correlation(residuals.reshape(parts, -1).sum(axis=1)) for parts in PARTS if parts <= len(above))
    if correlation * CORRELATION_TIMES > 1:
        return WindowSpread(half_width=None, correlation=correlation)
    blocks = min(MOST_BLOCKS, len(above) // PARTS_PER_BLOCK, int(1 / (BLOCK_TIMES * correlation)))
    cumulated = np.interp(np.linspace(0, len(above), blocks + 1), np.arange(len(above) + 1), [0, *residuals.cumsum()])
    of_mean, of_block = _variance(1 / correlation), _variance(1 / (blocks * correlation))
    shared = of_mean * (blocks - 1) / (of_block - of_mean)
    error = np.sqrt(np.diff(cumulated).var(ddof=1) * blocks * shared) / above.sum()
    widening = 1 + WIDENING * (correlation * CORRELATION_TIMES) ** 3
    quantile = special.stdtrit(blocks - 1, 0.5 + CONFIDENCE / 2)
    return WindowSpread(half_width=float(quantile * error * widening), correlation=correlation)


def _correlation(residuals: Floats) -> float:
    """Correlation time as a share of the whole, `CAUTION` standard errors above the one that the lag-1
    autocorrelation tells; inf where it tells none."""
    n = len(residuals)
    spread = residuals - residuals.mean()
    measured = float(spread[1:] @ spread[:-1] / (spread @ spread))
    unbiased = measured + (1 + 3 * measured) / n
    cautious = unbiased + CAUTION * np.sqrt(max(1 - unbiased**2, 0.0) / n)
    if cautious >= _LAG_ONE[0]:
        return np.inf
    return float(1 / (n * np.interp(cautious, _LAG_ONE[::-1], _INVERSE[::-1]))) if cautious > 0 else _NONE


def _variance(times: float) -> float:
    """The variance of a mean over so many correlation times, of unit variance and exponential autocorrelation."""
    return float(2 / times * (1 + np.expm1(-times) / times))
