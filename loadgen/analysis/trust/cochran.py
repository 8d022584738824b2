"""CochranTest: do several conditions answer the same items equally well?"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.celldata import Floats

PERMUTATIONS = 10_000
FEW = 24
"""Fewer changed items x conditions than this and chi-squared is no guide (Tate and Brown 1970)."""


class CochranTest(msgspec.Struct, frozen=True, kw_only=True):
    """Cochran's Q and its p."""

    q: float
    p: float
    method: Literal["chi2", "permutation"]


def cochran_q(scores: Floats, *, seed: int = 0) -> CochranTest:
    """Cochran's Q (1950) of items x conditions, entries 0 to 1.

    Between-condition over mean within-item variation, which for 0 and 1 is Cochran's formula and for shares of several
    answers its extension. p by chi-squared with conditions - 1 degrees of freedom, or, where few items changed, by
    permuting each item's entries over the conditions.
    """
    changed = scores[np.ptp(scores, axis=1) > 0]
    k = scores.shape[1]
    if not len(changed):
        return CochranTest(q=0.0, p=1.0, method="permutation")
    within = float(((changed - changed.mean(axis=1, keepdims=True)) ** 2).sum())
    q = float(_between(changed.sum(axis=0)) * (k - 1) / within)
    if changed.size >= FEW:
        return CochranTest(q=q, p=float(special.chdtrc(k - 1, q)), method="chi2")
    drawn = np.broadcast_to(changed, (PERMUTATIONS, *changed.shape))
    permuted = np.random.default_rng(seed).permuted(drawn, axis=2)
    as_far = _between(permuted.sum(axis=1)) >= _between(changed.sum(axis=0)) - 1e-9
    return CochranTest(q=q, p=float((1 + as_far.sum()) / (1 + PERMUTATIONS)), method="permutation")


def _between(totals: Floats) -> Floats:
    """Sum of squares of the conditions' totals about their mean; over the last axis."""
    squares: Floats = ((totals - totals.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    return squares
