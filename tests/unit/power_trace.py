"""Made power traces: a known curve P(t), and what a sampler would read from sensors that hold their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loadgen.power.sample import PowerSample

GPU = "GPU-made"
ORIGIN_NS = 5_000_000_000_000_000
"""58 days of uptime: nanoseconds beyond the precision of careless float arithmetic."""


@dataclass(frozen=True)
class Curve:
    """Power (W) and its exact integral since 0 (J) over seconds after ORIGIN_NS."""

    power_w: Callable[[float], float]
    energy_j: Callable[[float], float]

    def between_j(self, t0_s: float, t1_s: float) -> float:
        return self.energy_j(t1_s) - self.energy_j(t0_s)


def constant(watts: float) -> Curve:
    return Curve(lambda t: watts, lambda t: watts * t)


def ramp(start_w: float, watts_per_s: float) -> Curve:
    return Curve(lambda t: start_w + watts_per_s * t, lambda t: start_w * t + watts_per_s * t * t / 2)


def square(low_w: float, high_w: float, period_s: float) -> Curve:
    """High in the first half of each period."""

    def energy_j(t: float) -> float:
        periods, rest = divmod(t, period_s)
        return low_w * t + (high_w - low_w) * (periods * period_s / 2 + min(rest, period_s / 2))

    return Curve(lambda t: high_w if t % period_s < period_s / 2 else low_w, energy_j)


def ticks(end_s: float, period_s: float, jitter_s: float = 0.0, seed: int = 0) -> list[float]:
    """A sampler's instants on absolute deadlines, each late by up to `jitter_s` (less than the period)."""
    late = np.random.default_rng(seed).uniform(0, jitter_s, int(end_s / period_s) + 1)
    return [i * period_s + float(late[i]) for i in range(len(late))]


def held(period_s: float, phase_s: float = 0.0) -> Callable[[float], float]:
    """Seconds -> the instant of a sensor's last update."""
    return lambda t: math.floor((t - phase_s) / period_s) * period_s + phase_s


def at(t_s: float, **fields: object) -> PowerSample:
    return PowerSample(t_ns=ns(t_s), latency_ns=100_000, gpu=GPU, **fields)  # type: ignore[arg-type]


def ns(t_s: float) -> int:
    return ORIGIN_NS + round(t_s * 1e9)


def trace(
    curve: Curve,
    instants_s: Sequence[float],
    *,
    counter_s: float | None = 0.1,
    phase_s: float = 0.0,
    instant_s: float | None = 0.0,
    averaging_s: float | None = None,
    offset_j: float = 1e6,
) -> list[PowerSample]:
    """Samples of the curve at `instants_s`.

    The counter (whole millijoules) is updated every `counter_s`. Instantaneous power is true when asked for, or
    (`instant_s` > 0) updated that often with the mean of the last `averaging_s`. None: the sensor is not there.
    """
    update = held(counter_s, phase_s) if counter_s else None
    hold = held(instant_s, phase_s) if instant_s else None

    def counter_j(t: float) -> float | None:
        return None if update is None else math.floor((offset_j + curve.energy_j(update(t))) * 1e3) / 1e3

    def instant_w(t: float) -> float | None:
        if instant_s is None:
            return None
        if hold is None or averaging_s is None:
            return curve.power_w(t)
        return curve.between_j(hold(t) - averaging_s, hold(t)) / averaging_s

    return [at(t, counter_j=counter_j(t), power_instant_w=instant_w(t)) for t in instants_s]
