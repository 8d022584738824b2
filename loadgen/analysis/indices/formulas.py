"""The paper's formulas, on numbers or on arrays of draws; equations of arXiv 2602.13595 v1.

IndexSettings: the paper's free choices, with its defaults.

Resampled: a figure with its joint bootstrap draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.celldata import Floats
from loadgen.analysis.estimate import CONFIDENCE, Estimate
from loadgen.errors import UsageError
from loadgen.options import ALPHA, WEIGHTS, Form

Number = TypeVar("Number", float, Floats)
JOULES_PER_KWH = 3.6e6


def cor_tps(tokens_per_s: Number, reference_tokens_per_s: Number) -> Number:
    """TPS_ref / TPS - 1 (Eq. 9): end-to-end slowdown, from -1 up; negative is faster. No casting time (Eq. 8)."""
    return reference_tokens_per_s / tokens_per_s - 1


def efficiency(eta: Number, rho: Number, alpha: float) -> Number:
    """E_SI = (alpha / eta + (1 - alpha) / rho)^-1 (Eq. 3): TPS / TPS_ref and V_ref / V_peak, harmonically weighted.

    A weight of 0 takes its term out, whatever the ratio. At rho = 1 it is the least E_SI of a target that needs no more
    memory than the reference.
    """
    if alpha in (0, 1):
        return eta if alpha else rho
    return 1 / (alpha / eta + (1 - alpha) / rho)


def carbon_kg(energy_j: Number, carbon_kg_per_kwh: float) -> Number:
    """CAES chi = E_q x gamma (section 3.1) in kgCO2e per query; energy in joules per query."""
    return energy_j * carbon_kg_per_kwh / JOULES_PER_KWH


def sustainability_linear(energy_j: Number, reference_energy_j: Number) -> Number:
    """S_SI = E_ref / E (section 3.1, text), raw: above 1 the target needs less energy."""
    return reference_energy_j / energy_j


def sustainability_log(chi: Number, reference_chi: Number) -> Number:
    """S_SI = log(1 + chi_ref) / log(1 + chi) (Eq. 5), raw. Its value depends on chi's unit."""
    ratio: Number = np.log1p(reference_chi) / np.log1p(chi)
    return ratio


def clamped(index: Number) -> Number:
    """min(1, index), as Eq. 5 has it for S."""
    least: Number = np.minimum(index, 1.0)
    return least


def si_linear(t: Number, e: Number, s: Number, weights: Sequence[float]) -> Number:
    """SI = w . (T, E, S) (Eq. 6)."""
    return weights[0] * t + weights[1] * e + weights[2] * s


def si_geometric(t: Number, e: Number, s: Number, weights: Sequence[float]) -> Number:
    """SI = T^w_T E^w_E S^w_S (Remark 3.1): a pillar of 0 cannot be made up for."""
    product: Number = t ** weights[0] * e ** weights[1] * s ** weights[2]
    return product


def deficit(si: float) -> float:
    """1 - SI: what is missing to the reference, whose SI is 1."""
    return 1 - si


def improvement(si: float) -> float:
    """1 / SI - 1: what going back to the reference gains; infinite from an SI of 0."""
    return 1 / si - 1 if si else math.inf


def percent_increase(ratio: Number) -> Number:
    """A ratio of 4.01 is an increase of 301%."""
    return 100 * (ratio - 1)


class IndexSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Raises UsageError for values without a meaning."""

    alpha: float = ALPHA
    """Speed's share of E_SI, 0 to 1; memory has the rest. At 1 memory need not be known."""
    weights: tuple[float, float, float] = WEIGHTS
    """The weights of T, E and S in SI."""
    sustainability: Form = "linear"
    carbon_kg_per_kwh: float | None = None
    """Grid intensity gamma."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha of E_SI is {self.alpha}, give a share from 0 to 1")
        if not (min(self.weights) >= 0 and math.isclose(sum(self.weights), 1, abs_tol=1e-6)):
            raise UsageError(f"weights of SI are {self.weights}, give three shares from 0 that sum to 1")
        if self.carbon_kg_per_kwh is not None and not 0 < self.carbon_kg_per_kwh < math.inf:
            raise UsageError(f"carbon intensity is {self.carbon_kg_per_kwh} kgCO2e/kWh, give one above 0 or none")
        if self.sustainability == "log_kgco2e" and self.carbon_kg_per_kwh is None:
            raise UsageError("S_SI of kgCO2e (log_kgco2e) has no carbon intensity, give one in kgCO2e/kWh")


TAIL = 0.5 - CONFIDENCE / 2


class Resampled(msgspec.Struct, frozen=True, kw_only=True):
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

    def ends(self, tail: float) -> tuple[float, float] | tuple[None, None]:
        """The draws' quantiles at `tail` and 1 - `tail`; none where more than 2.5% of the draws have no value."""
        if self.draws is None or (valueless := np.isnan(self.draws)).mean() > TAIL:
            return None, None
        lo, hi = np.quantile(self.draws[~valueless], [tail, 1 - tail])
        return float(lo), float(hi)


def derive(formula: Callable[..., float | Floats], *figures: Resampled) -> Resampled:
    """`formula` of the figures, and of their draws, draw by draw."""
    draws = [figure.draws for figure in figures if figure.draws is not None]
    with np.errstate(all="ignore"):  # two repeats: Student's t with one degree of freedom has no bounds to speak of
        return Resampled(
            value=float(formula(*(figure.value for figure in figures))),
            draws=np.asarray(formula(*draws)) if len(draws) == len(figures) else None,
        )


def least(one: Resampled, other: Resampled) -> Estimate:
    """The smaller of two figures, with an interval that holds at a tie too.

    Percentiles of the draws' minimum would not: where the two are equal it lies below both, nearly always. The lower
    end is the smaller of the two lower ends. The upper end is the smaller of two upper ends at half the error each
    (Bonferroni), as either of them can be the one that is too low.
    """
    lows = [low for figure in (one, other) if (low := figure.ends(TAIL)[0]) is not None]
    highs = [high for figure in (one, other) if (high := figure.ends(TAIL / 2)[1]) is not None]
    lo, hi = (min(ends) if len(ends) == 2 else None for ends in (lows, highs))
    return Estimate(value=min(one.value, other.value), lo=lo, hi=hi)


class RepeatsKnown:
    """Means over repeats without their noise: what is drawn of a figure is then the noise of the items alone."""

    def mean(self, values: Mapping[int, float]) -> Resampled:
        """Geometric mean of positive values."""
        value = float(np.exp(np.log(list(values.values())).mean()))
        return Resampled(value=value, draws=np.full(1, value))


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

    def mean(self, values: Mapping[int, float]) -> Resampled:
        """Geometric mean over repeats of positive values; a single repeat has no draws."""
        logs = np.log(list(values.values()))
        centre, n = float(logs.mean()), len(logs)
        if n < 2:
            return Resampled(value=float(np.exp(centre)), draws=None)
        if n not in self._stretch:
            self._stretch[n] = np.sqrt((n - 1) / (2 * special.gammaincinv((n - 1) / 2, self._quantile)))
        noise = np.column_stack([self._normal[repeat] for repeat in values]) @ (logs - centre)
        with np.errstate(over="ignore"):
            draws = np.exp(centre + noise * self._stretch[n] / np.sqrt(n * (n - 1)))
        return Resampled(value=float(np.exp(centre)), draws=draws)
