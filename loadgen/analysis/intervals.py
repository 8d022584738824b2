"""Confidence intervals of a mean over repeats and of a proportion over items."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

CONFIDENCE = 0.95
NORMAL_95 = float(special.ndtri(0.5 + CONFIDENCE / 2))
"""Standard errors from the middle of a normal 95% interval to its end."""

TOO_WIDE = 10.0
"""An interval whose upper end is more than so many times its lower one tells only that the repeats differ."""


def too_wide(low: float | None, high: float | None, *, floor: float = 0.0) -> bool:
    """Whether the interval over repeats of a figure above `floor` (COR: -1) is wider than `TOO_WIDE`. Words call it not
    known then; files keep both ends."""
    return low is not None and high is not None and (low <= floor or high - floor > TOO_WIDE * (low - floor))


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
