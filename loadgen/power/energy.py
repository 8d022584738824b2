"""WindowEnergy: the joules of one GPU between two instants, by two independent ways, with a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from loadgen.power.sample import PowerSample


class WindowEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy of one GPU over [t0_ns, t1_ns]. None: could not be measured; never clamped, never 0 for unknown."""

    gpu: str
    t0_ns: int
    t1_ns: int
    energy_j: float | None
    """The figure to use: the counter's where it can be trusted, else the integral's."""
    source: Literal["counter", "integral"] | None
    counter_j: float | None
    """Difference of the energy counter, its staircase interpolated at both edges."""
    integral_j: float | None
    """Trapezoid of instantaneous power, interpolated at both edges."""
    ratio: float | None
    """integral_j / counter_j."""
    power_w_mean: float | None
    """energy_j over the window's length."""
    verdict: Literal["good", "warning", "invalid"]
    reasons: tuple[str, ...]
    """Why not good, a sentence each with its figures."""
    samples: int
    max_gap_s: float | None
    temperature_c_max: float | None = None
    memory_used_bytes_max: int | None = None
    throttle_reasons: int = 0
    """Every throttle bit seen in the window."""


def energy_of_window(samples: Sequence[PowerSample], t0_ns: int, t1_ns: int) -> WindowEnergy:
    """Energy of the one GPU whose samples these are (any order, reaching beyond both edges)."""
    raise NotImplementedError
