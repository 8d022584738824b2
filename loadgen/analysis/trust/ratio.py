"""TrustRatio: T_SI = accuracy / reference accuracy (paper, Eq. 2), with a paired interval."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.celldata import Floats
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
    """Bonett and Price's interval (2006) of a paired ratio; above chance, percentiles of a bootstrap over items."""
    delta_lo: float | None
    delta_hi: float | None
    """By the delta method on the logarithm: a cross-check. Of width 0 where no answer changed."""


NONE = TrustRatio(value=None, lo=None, hi=None, delta_lo=None, delta_hi=None)


def trust_ratio(pairs: PairedItems, *, chance: float = 0.0, resamples: int = RESAMPLES, seed: int = 0) -> TrustRatio:
    """(accuracy - chance) / (reference accuracy - chance).

    `chance` is what guessing scores (0.2 with five options): above-chance accuracy is what can be lost. 0: plain T_SI.
    """
    above, below = float(pairs.target.mean()) - chance, float(pairs.reference.mean()) - chance
    if below <= 0:
        return NONE
    if chance:
        lo, hi = _bootstrap(pairs, chance, resamples, seed)
    else:
        lo, hi = bonett_price(pairs)
    delta_lo, delta_hi = _delta(pairs, above, below) if lo is not None else (None, None)
    return TrustRatio(value=above / below, lo=lo, hi=hi, delta_lo=delta_lo, delta_hi=delta_hi)


def bonett_price(pairs: PairedItems, *, confidence: float = CONFIDENCE) -> tuple[float, float | None]:
    """Interval of accuracy / reference accuracy (Bonett and Price 2006, Stat. Med. 25:3039).

    Wilson's intervals of both accuracies among the items that either side has right, at a level at which their ratio
    has the paired interval's width. It has a width also where no answer changed. Items with several answers count as
    so many changed whole items as leave the ratio the same variance. The upper end is None if the reference may have
    nothing right.
    """
    ours, theirs = float(pairs.target.sum()), float(pairs.reference.sum())
    if not ours and not theirs:
        return 0.0, None
    if ours and theirs:
        changed = ours * theirs * float(((pairs.target / ours - pairs.reference / theirs) ** 2).sum())
    else:
        changed = ours + theirs
    either = (ours + theirs + changed) / 2
    paired_error = math.sqrt((changed + 2) / ((ours + 1) * (theirs + 1)))
    errors = [math.sqrt(max(1 - (right + 1) / (either + 2), 0.0) / (right + 1)) for right in (ours, theirs)]
    z = float(special.ndtri(0.5 + confidence / 2)) * paired_error / sum(errors)
    (low, high), (reference_low, reference_high) = _wilson(ours, either, z), _wilson(theirs, either, z)
    return low / reference_high, high / reference_low if reference_low > 0 else None


def _wilson(right: float, n: float, z: float) -> tuple[float, float]:
    half = z * math.sqrt(max(z * z + 4 * right * (1 - right / n), 0.0))
    return max(0.0, (2 * right + z * z - half) / (2 * (n + z * z))), (2 * right + z * z + half) / (2 * (n + z * z))


def ratio_draws(ratio: TrustRatio, normal: Floats) -> Floats | None:
    """Draws of the ratio from standard normal ones, so that their percentiles are the ends of its interval; None if it
    has none."""
    if ratio.value is None or ratio.lo is None or ratio.hi is None:
        return None
    if ratio.lo <= 0:
        reach = np.where(normal > 0, ratio.hi - ratio.value, ratio.value)
        return np.maximum(ratio.value + reach * normal / NORMAL_95, 0)
    up, down = math.log(ratio.hi / ratio.value), math.log(ratio.value / ratio.lo)
    return np.asarray(ratio.value * np.exp(np.where(normal > 0, up, down) * normal / NORMAL_95))


def _bootstrap(pairs: PairedItems, chance: float, resamples: int, seed: int) -> tuple[float | None, float | None]:
    """Percentiles of the ratio above chance, of the items and two more, one lost and one won: else it would have width
    0 where no answer changed."""
    columns = np.column_stack([[*pairs.target, 0.0, 1.0], [*pairs.reference, 1.0, 0.0]])
    means = resampled_means(columns, resamples=resamples, seed=seed) - chance
    tail = 0.5 - CONFIDENCE / 2
    if (means[:, 1] <= 0).mean() > tail:
        return None, None
    usable = means[means[:, 1] > 0]
    lo, hi = np.quantile(usable[:, 0] / usable[:, 1], [tail, 1 - tail])
    return float(lo), float(hi)


def _delta(pairs: PairedItems, above: float, below: float) -> tuple[float | None, float | None]:
    if above <= 0:
        return None, None
    influence = (pairs.target - pairs.target.mean()) / above - (pairs.reference - pairs.reference.mean()) / below
    error = float(influence.std()) / math.sqrt(pairs.n)
    half = NORMAL_95 * error
    return above / below * math.exp(-half), above / below * math.exp(half)
