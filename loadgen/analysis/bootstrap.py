"""Circular block bootstrap of a ratio of sums (Politis, Romano 1992): for series whose neighbours are alike."""

from __future__ import annotations

import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.intervals import CONFIDENCE

RESAMPLES = 1000


def ratio_interval(above: Floats, below: Floats, *, block: int, seed: int = 0) -> tuple[float | None, float | None]:
    """95% percentile interval of sum(above) / sum(below) over bins of one window.

    Blocks of `block` consecutive bins (at least 1, at most a third of all) are drawn with replacement; the first bin
    follows the last, so that each is drawn as often as any other. Empty where the ratio has no meaning: fewer than
    three bins, or resamples without anything below.
    """
    n = len(above)
    if n < 3 or not below.sum():
        return None, None
    length = min(max(block, 1), n // 3)
    starts = np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, -(-n // length)))
    drawn = ((starts[:, :, None] + np.arange(length)) % n).reshape(RESAMPLES, -1)[:, :n]
    denominators = below[drawn].sum(axis=1)
    if not denominators.all():
        return None, None
    low, high = np.quantile(above[drawn].sum(axis=1) / denominators, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
