"""PairedTable: which answers changed between reference and target; McNemar's test."""

from __future__ import annotations

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.trust.pairing import PairedItems

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
        from scipy import stats  # a second, in most runs for nothing

        return float(stats.binomtest(int((changes > 0).sum()), len(changes), 0.5).pvalue)
    if len(sizes) > MANY_SIZES:
        return float(2 * special.ndtr(-abs(changes.sum()) / np.sqrt((changes**2).sum())))
    ups = np.random.default_rng(seed).binomial(counts, 0.5, size=(draws, len(sizes)))
    sums = (2 * ups - counts) @ sizes
    return float((1 + (np.abs(sums) >= abs(changes.sum()) - 1e-9).sum()) / (1 + draws))
