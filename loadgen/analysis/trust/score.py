"""Changes: how many items were won and lost; score interval and equivalence test of the accuracy difference.

Tango (1998, Stat. Med. 17:891) for the interval, Nam (1997, Biometrics 53:1422) for the test: both compare the
difference seen with a supposed one, by the variance that the supposed one would have. So they hold where few items
changed and where all changes go one way, where Wald's interval is too short (docs/trust.md has the figures).
"""

from __future__ import annotations

import math

import msgspec
from scipy import optimize, special

from loadgen.analysis.trust.pairing import PairedItems

EDGE = 1 - 1e-9


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Of `n` items, how many the target won (wrong before, right now) and lost."""

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
