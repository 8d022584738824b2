"""Item bootstrap: resampled means of several columns of the same items, drawn jointly."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from loadgen.analysis.celldata import Floats

RESAMPLES = 10_000
MANY_ROWS = 100
"""Different rows from which on items are drawn one by one."""
MOST_ITEMS = 3000
"""Of which the draws (8 bytes each) are kept for the next columns: 240 MB."""
_AT_ONCE = 100
"""Draws."""


def resampled_means(columns: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Column means of `resamples` draws of n items with replacement; shape (resamples, columns).

    Items with equal rows are drawn together (multinomial): with binary columns that is the paired bootstrap at the
    price of a 2 x 2 table.
    """
    n = len(columns)
    rows, counts = np.unique(columns, axis=0, return_counts=True)
    if len(rows) > MANY_ROWS and n <= MOST_ITEMS:
        # Not `@`: the last digits of a BLAS product depend on how many cores share it.
        draws, ours = _draws_of_items(n, resamples, seed), np.ascontiguousarray(columns.T)
        of_items: Floats = np.einsum("di,ci->dc", draws, ours) / n
        return of_items
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    means: Floats = drawn @ rows / n
    return means


@lru_cache(maxsize=1)
def _draws_of_items(n: int, resamples: int, seed: int) -> Floats:
    """How often each of n items is drawn; shape (resamples, n)."""
    rng = np.random.default_rng(seed)
    draws = np.empty((resamples, n))
    for first in range(0, resamples, _AT_ONCE):
        some = draws[first : first + _AT_ONCE]
        items = rng.integers(n, size=some.shape) + n * np.arange(len(some))[:, None]
        some[:] = np.bincount(items.ravel(), minlength=some.size).reshape(some.shape)
    return draws
