"""Tests and intervals of paired answers: Holm's correction, Cochran's Q, McNemar's test, the score interval and the
equivalence test of an accuracy difference, the item bootstrap, and TrustRatio: T_SI with a paired interval.

Tango (1998, Stat. Med. 17:891) for the interval of a difference, Nam (1997, Biometrics 53:1422) for the test: both
compare the difference seen with a supposed one, by the variance that the supposed one would have. So they hold where
few items changed and where all changes go one way, where Wald's interval is too short (docs/trust.md has the figures).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import msgspec
import numpy as np
from scipy import optimize, special

from loadgen.analysis.celldata import Floats
from loadgen.analysis.estimate import CONFIDENCE, NORMAL_95
from loadgen.analysis.trust.answers import PairedItems


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order (Holm 1979): those at or below alpha are significant, with at most alpha
    chance of any false one in the family."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


PERMUTATIONS = 10_000
FEW = 24
"""Fewer changed items x conditions than this and chi-squared is unreliable (Tate and Brown 1970)."""


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
    between = _between(changed.sum(axis=0))
    q = float(between * (k - 1) / float(((changed - changed.mean(axis=1, keepdims=True)) ** 2).sum()))
    if changed.size >= FEW:
        return CochranTest(q=q, p=float(special.chdtrc(k - 1, q)), method="chi2")
    repeated = np.broadcast_to(changed, (PERMUTATIONS, *changed.shape))
    permuted = np.random.default_rng(seed).permuted(repeated, axis=2)
    as_far = _between(permuted.sum(axis=1)) >= between - 1e-9
    return CochranTest(q=q, p=float((1 + as_far.sum()) / (1 + PERMUTATIONS)), method="permutation")


def _between(totals: Floats) -> Floats:
    """Sum of squares of the conditions' totals about their mean; over the last axis."""
    squares: Floats = ((totals - totals.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    return squares


DRAWS = 100_000
"""Sign flips of the randomisation test, where the binomial does not apply: p is known to 0.0014 at p = .05."""
MANY_SIZES = 50
"""Different sizes of change from which on the sum of random signs is normal: its p is then off by less than
the draws would be."""


class PairedTable(msgspec.Struct, frozen=True, kw_only=True):
    """The 2 x 2 table in items: whole numbers with one answer per item.

    With several, each item counts by the share of its pairs (an answer of the target, one of the reference) in a cell.
    """

    n: int
    both_right: float
    lost: float
    """Right by the reference, wrong by the target."""
    won: float
    both_wrong: float

    @property
    def flips(self) -> float:
        """Discordance: the share of items (0 to 1) whose correctness changed, either way."""
        return (self.lost + self.won) / self.n


def paired_table(pairs: PairedItems) -> PairedTable:
    """The table of all paired items."""
    r, t = pairs.reference, pairs.target
    return PairedTable(
        n=pairs.n,
        both_right=float((r * t).sum()),
        lost=float((r * (1 - t)).sum()),
        won=float(((1 - r) * t).sum()),
        both_wrong=float(((1 - r) * (1 - t)).sum()),
    )


def mcnemar_p(pairs: PairedItems, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p that target and reference answer equally well, conditional on the items that changed.

    Exact McNemar (binomial) where every change has the same size, as with one answer per item. Otherwise its
    generalisation: the labels of each item are swapped at random `draws` times (sign-flip randomisation test), or
    the normal limit of it where the changes have many sizes (items that were asked often).
    """
    changes = np.round(pairs.difference[pairs.difference != 0], 12)
    if not len(changes):
        return 1.0
    sizes, places = np.unique(np.abs(changes), return_inverse=True)
    counts = np.bincount(places)
    if len(sizes) == 1:
        fewer = min((changes > 0).sum(), (changes < 0).sum())
        return min(1.0, 2 * float(special.bdtr(fewer, len(changes), 0.5)))
    if len(sizes) > MANY_SIZES:
        return float(2 * special.ndtr(-abs(changes.sum()) / np.sqrt((changes**2).sum())))
    ups = np.random.default_rng(seed).binomial(counts, 0.5, size=(draws, len(sizes)))
    sums = (2 * ups - counts) @ sizes
    return float((1 + (np.abs(sums) >= abs(changes.sum()) - 1e-9).sum()) / (1 + draws))


EDGE = 1 - 1e-9


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """How many of `n` items the target won (the reference is wrong, the target right) and lost."""

    n: int
    won: float
    lost: float

    @property
    def difference(self) -> float:
        """Accuracy difference, target minus reference."""
        return (self.won - self.lost) / self.n

    @property
    def supposed_discordance(self) -> float:
        """Share of changed items to plan with: one win and one loss added, so that it is never 0."""
        return (self.won + self.lost + 2) / (self.n + 2)


def changes(pairs: PairedItems) -> Changes:
    """Items won and lost. Of items with several answers: the numbers of whole items with the same mean difference and
    mean squared difference, so the same variance; where that is impossible (hardly any change, all one way), the
    larger variance of the same mean."""
    net = float(pairs.difference.sum())
    size = max(float((pairs.difference**2).sum()), abs(net))
    return Changes(n=pairs.n, won=(size + net) / 2, lost=(size - net) / 2)


def score_z(seen: Changes, supposed: float) -> float:
    """Standard normal deviate of the difference seen if the true one were `supposed` (-1 to 1, exclusive)."""
    variance = supposed_variance(seen, supposed)
    return (seen.won - seen.lost - seen.n * supposed) / math.sqrt(variance) if variance > 1e-12 else 0.0


def supposed_variance(seen: Changes, supposed: float) -> float:
    """Variance of won - lost if the true difference were `supposed`, with the most likely share of lost items then."""
    n, won, lost = seen.n, seen.won, seen.lost
    linear = (2 * n - won + lost) * supposed - won - lost
    root = math.sqrt(max(linear**2 + 8 * n * lost * supposed * (1 - supposed), 0.0))
    return n * ((root - linear) / (2 * n) + supposed * (1 - supposed))


def difference_interval(seen: Changes, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the accuracy difference, target minus reference, as proportions (0.01 = 1 pp): the supposed
    differences that the data do not reject."""
    z = float(special.ndtri(0.5 + confidence / 2))
    return -_end(Changes(n=seen.n, won=seen.lost, lost=seen.won), z), _end(seen, z)


def _end(seen: Changes, z: float) -> float:
    """Upper end."""
    if score_z(seen, EDGE) > -z:
        return 1.0
    return float(optimize.brentq(lambda supposed: score_z(seen, supposed) + z, seen.difference, EDGE))


def equivalence_p(seen: Changes, margin: float) -> float:
    """p of the two one-sided tests that the difference lies outside +-margin.

    Below alpha exactly if the 1 - 2 alpha interval of `difference_interval` lies inside the margin.
    """
    below, above = score_z(seen, -margin), score_z(seen, margin)
    return float(special.ndtr(-min(below, -above)))


RESAMPLES = 10_000
MANY_ROWS = 100
"""Different rows from which on items are drawn one by one."""
MOST_ITEMS = 3000
"""Items up to which the draws (8 bytes each) are kept for the next columns: 240 MB."""
DRAWS_AT_ONCE = 100


def resampled_means(columns: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Column means of `resamples` draws of n items with replacement; shape (resamples, columns).

    Items with equal rows are drawn together (multinomial): with binary columns that is the paired bootstrap at the
    price of a 2 x 2 table.
    """
    n = len(columns)
    rows, counts = np.unique(columns, axis=0, return_counts=True)
    if len(rows) > MANY_ROWS and n <= MOST_ITEMS:
        # Not `@`: the last digits of a BLAS product depend on how many cores share it.
        sums = np.einsum("di,ci->dc", _draws_of_items(n, resamples, seed), np.ascontiguousarray(columns.T))
    else:
        sums = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples) @ rows
    means: Floats = sums / n
    return means


@lru_cache(maxsize=1)
def _draws_of_items(n: int, resamples: int, seed: int) -> Floats:
    """How often each of n items is drawn; shape (resamples, n)."""
    rng = np.random.default_rng(seed)
    draws = np.empty((resamples, n))
    for first in range(0, resamples, DRAWS_AT_ONCE):
        some = draws[first : first + DRAWS_AT_ONCE]
        items = rng.integers(n, size=some.shape) + n * np.arange(len(some))[:, None]
        some[:] = np.bincount(items.ravel(), minlength=some.size).reshape(some.shape)
    return draws


class TrustRatio(msgspec.Struct, frozen=True, kw_only=True):
    """T_SI with 95% intervals; not clipped: above 1 the target is the better one.

    None where the ratio has no meaning: a reference at (or, by its resamples, perhaps at) chance.
    """

    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    """Bonett and Price's interval (2006) of a paired ratio; above chance, percentiles of a bootstrap over items."""
    delta_lo: float | None = None
    delta_hi: float | None = None
    """By the delta method on the logarithm: a cross-check. Its width is 0 where no answer changed."""


def trust_ratio(pairs: PairedItems, *, chance: float = 0.0, resamples: int = RESAMPLES, seed: int = 0) -> TrustRatio:
    """(accuracy - chance) / (reference accuracy - chance).

    `chance` is what guessing scores (0.2 with five options): above-chance accuracy is what can be lost. 0: plain T_SI.
    """
    above, below = float(pairs.target.mean()) - chance, float(pairs.reference.mean()) - chance
    if below <= 0:
        return TrustRatio()
    lo, hi = _bootstrap(pairs, chance, resamples, seed) if chance else bonett_price(pairs)
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
