"""The paper's formulas, on numbers or on arrays of draws; equations of arXiv 2602.13595 v1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from loadgen.analysis.celldata import Floats

Number = TypeVar("Number", float, Floats)

JOULES_PER_KWH = 3.6e6


def cor_tps(tokens_per_s: Number, reference_tokens_per_s: Number) -> Number:
    """TPS_ref / TPS - 1 (Eq. 9): end-to-end slowdown, from -1 up; negative is faster. No casting time (Eq. 8)."""
    return reference_tokens_per_s / tokens_per_s - 1


def efficiency(eta: Number, rho: Number, alpha: float) -> Number:
    """E_SI = (alpha / eta + (1 - alpha) / rho)^-1 (Eq. 3): TPS / TPS_ref and V_ref / V_peak, harmonically weighted.

    A weight of 0 takes its term out, whatever the ratio.
    """
    if alpha == 1:
        return eta
    if alpha == 0:
        return rho
    return 1 / (alpha / eta + (1 - alpha) / rho)


def efficiency_floor(eta: float, alpha: float) -> float:
    """Smallest E_SI of a target that needs no more memory than the reference (rho >= 1)."""
    return efficiency(eta, 1.0, alpha)


def memory_ratio_for(e_si: float, eta: float, alpha: float) -> float | None:
    """The rho that a published E_SI needs; below 1: more memory than the reference. None if no rho gives it."""
    if alpha == 1:
        return None
    rest = 1 / e_si - alpha / eta
    return (1 - alpha) / rest if rest > 0 else None


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
