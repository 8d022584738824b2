"""Item bootstrap: resampled means of several columns of the same items, drawn jointly."""

from __future__ import annotations

import numpy as np

from loadgen.analysis.celldata import Floats

RESAMPLES = 10_000


def resampled_means(columns: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Column means of `resamples` draws of n items with replacement; shape (resamples, columns).

    Items with equal rows are drawn together (multinomial): with binary columns that is the paired bootstrap at the
    price of a 2 x 2 table.
    """
    n = len(columns)
    rows, counts = np.unique(columns, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    means: Floats = drawn @ rows / n
    return means
