"""Drawn: a figure with its joint bootstrap draws; Estimate: what is reported of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.celldata import Floats
from loadgen.analysis.intervals import CONFIDENCE

TAIL = 0.5 - CONFIDENCE / 2
ROUNDING = 1e-9
"""Closer to a border than this is on it: equal figures differ by their arithmetic."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A figure with its 95% interval; no ends where nothing tells its uncertainty (a single repeat)."""

    value: float
    lo: float | None = None
    hi: float | None = None

    def below(self, border: float) -> bool:
        """Established: the whole interval lies below."""
        return self.hi is not None and self.hi < border - ROUNDING

    def above(self, border: float) -> bool:
        """Established: the whole interval lies above."""
        return self.lo is not None and self.lo > border + ROUNDING

    def falling(self, formula: Callable[[float], float]) -> Estimate:
        """A decreasing function of it."""
        lo = formula(self.hi) if self.hi is not None else None
        return Estimate(value=formula(self.value), lo=lo, hi=formula(self.lo) if self.lo is not None else None)


class Drawn(msgspec.Struct, frozen=True, kw_only=True):
    """The figure, and draws of it: draw k of every figure of a study belongs to the same resampled experiment.

    Draws are None where the uncertainty is unknown. A nan among them has no value (a reference without a right answer).
    """

    value: float
    draws: Floats | None

    @property
    def estimate(self) -> Estimate:
        """With percentiles of the draws."""
        lo, hi = self.ends(TAIL)
        return Estimate(value=self.value, lo=lo, hi=hi)

    def ends(self, tail: float) -> tuple[float | None, float | None]:
        """The draws' quantiles at `tail` and 1 - `tail`; none where more than 2.5% of the draws have no value."""
        if self.draws is None:
            return None, None
        valueless = np.isnan(self.draws)
        if valueless.mean() > TAIL:
            return None, None
        lo, hi = np.quantile(self.draws[~valueless], [tail, 1 - tail])
        return float(lo), float(hi)


def derive(formula: Callable[..., float | Floats], *figures: Drawn) -> Drawn:
    """`formula` of the figures, and of their draws, draw by draw."""
    draws = [figure.draws for figure in figures if figure.draws is not None]
    with np.errstate(all="ignore"):  # two repeats: Student's t with one degree of freedom has no bounds to speak of
        return Drawn(
            value=float(formula(*(figure.value for figure in figures))),
            draws=np.asarray(formula(*draws)) if len(draws) == len(figures) else None,
        )


def least(one: Drawn, other: Drawn) -> Estimate:
    """The smaller of two figures, with an interval that holds at a tie too.

    Percentiles of the draws' minimum would not: where the two are equal it lies below both, nearly always. The lower
    end is the smaller of the two lower ends. The upper end is the smaller of two upper ends at half the error each
    (Bonferroni), as either of them can be the one that is too low.
    """
    value = min(one.value, other.value)
    lows, highs = (one.ends(TAIL)[0], other.ends(TAIL)[0]), (one.ends(TAIL / 2)[1], other.ends(TAIL / 2)[1])
    lo = min(lows[0], lows[1]) if lows[0] is not None and lows[1] is not None else None
    hi = min(highs[0], highs[1]) if highs[0] is not None and highs[1] is not None else None
    return Estimate(value=value, lo=lo, hi=hi)


class RepeatsKnown:
    """Means over repeats without their noise: what is drawn of a figure is then the noise of the items alone."""

    def mean(self, values: Mapping[int, float]) -> Drawn:
        """Geometric mean of positive values."""
        value = float(np.exp(np.log(list(values.values())).mean()))
        return Drawn(value=value, draws=np.full(1, value))


class RepeatNoise:
    """Draws of means over repeats that keep what varies together: targets, speed and energy of the same repeat.

    Every repeat gets a standard normal deviate per draw, the same for whatever was measured in it. A mean of n
    logarithms is drawn as mean + sum(deviate x deviation) / sqrt(n (n - 1)), over sqrt(chi2 / (n - 1)): Student's t
    with n - 1 degrees of freedom, and so is every product and ratio of figures that share their repeats.
    """

    def __init__(self, repeats: set[int], *, resamples: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        normal = rng.standard_normal((resamples, len(repeats)))
        self._normal = {repeat: normal[:, place] for place, repeat in enumerate(sorted(repeats))}
        self._quantile = rng.uniform(size=resamples)
        self._stretch: dict[int, Floats] = {}

    def mean(self, values: Mapping[int, float]) -> Drawn:
        """Geometric mean over repeats of positive values; a single repeat has no draws."""
        logs = np.log(list(values.values()))
        centre, n = float(logs.mean()), len(logs)
        if n < 2:
            return Drawn(value=float(np.exp(centre)), draws=None)
        noise = np.column_stack([self._normal[repeat] for repeat in values]) @ (logs - centre)
        with np.errstate(over="ignore"):
            draws = np.exp(centre + noise * self._student(n - 1) / np.sqrt(n * (n - 1)))
        return Drawn(value=float(np.exp(centre)), draws=draws)

    def _student(self, degrees: int) -> Floats:
        if degrees not in self._stretch:
            chi2 = 2 * special.gammaincinv(degrees / 2, self._quantile)
            self._stretch[degrees] = np.sqrt(degrees / chi2)
        return self._stretch[degrees]
