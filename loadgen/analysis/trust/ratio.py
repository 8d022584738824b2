"""TrustRatio: T_SI = accuracy / reference accuracy (paper, Eq. 2), with a paired interval."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from loadgen.analysis.intervals import CONFIDENCE, NORMAL_95
from loadgen.analysis.trust.pairing import PairedItems
from loadgen.analysis.trust.resample import RESAMPLES, resampled_means


class TrustRatio(msgspec.Struct, frozen=True, kw_only=True):
    """T_SI with 95% intervals; not clipped: above 1 the target is the better one.

    None where the ratio has no meaning: a reference at (or, by its resamples, perhaps at) chance.
    """

    value: float | None
    lo: float | None
    hi: float | None
    """Percentiles of the paired bootstrap over items."""
    delta_lo: float | None
    delta_hi: float | None
    """By the delta method on the logarithm: a cross-check of the bootstrap."""


NONE = TrustRatio(value=None, lo=None, hi=None, delta_lo=None, delta_hi=None)


def trust_ratio(pairs: PairedItems, *, chance: float = 0.0, resamples: int = RESAMPLES, seed: int = 0) -> TrustRatio:
    """(accuracy - chance) / (reference accuracy - chance).

    `chance` is what guessing scores (0.2 with five options): above-chance accuracy is what can be lost. 0: plain T_SI.
    """
    above, below = float(pairs.target.mean()) - chance, float(pairs.reference.mean()) - chance
    if below <= 0:
        return NONE
    means = resampled_means(np.column_stack([pairs.target, pairs.reference]), resamples=resamples, seed=seed) - chance
    tail = 0.5 - CONFIDENCE / 2
    if (means[:, 1] <= 0).mean() > tail:
        return msgspec.structs.replace(NONE, value=above / below)
    usable = means[means[:, 1] > 0]
    lo, hi = np.quantile(usable[:, 0] / usable[:, 1], [tail, 1 - tail])
    delta_lo, delta_hi = _delta(pairs, above, below)
    return TrustRatio(value=above / below, lo=float(lo), hi=float(hi), delta_lo=delta_lo, delta_hi=delta_hi)


def _delta(pairs: PairedItems, above: float, below: float) -> tuple[float | None, float | None]:
    if above <= 0:
        return None, None
    influence = (pairs.target - pairs.target.mean()) / above - (pairs.reference - pairs.reference.mean()) / below
    error = float(influence.std()) / math.sqrt(pairs.n)
    half = NORMAL_95 * error
    return above / below * math.exp(-half), above / below * math.exp(half)
