"""IndexSettings: the paper's free choices, with its defaults."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from loadgen.errors import UsageError

Form = Literal["linear", "log_j", "log_kgco2e"]
"""Of S_SI: E_ref / E, or Eq. 5's logarithms of joules or of kgCO2e per query."""


class IndexSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Raises UsageError for values without a meaning."""

    alpha: float = 0.5
    """Speed's share of E_SI, 0 to 1; memory has the rest. At 1 memory need not be known."""
    weights: tuple[float, float, float] = (0.34, 0.33, 0.33)
    """Of T, E and S in SI."""
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
