"""Calibration: what a GPU's power sensors are like, learnt from their samples."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from loadgen.power.sample import PowerSample
from loadgen.power.staircase import Floats, staircase
from loadgen.power.trace import PowerTrace, traces_of

MICROJOULES = 1e6


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The sensors of one GPU as its samples show them. None: the field is not there, or too few updates were seen.

    A period close to sampling_period_s is an upper bound: a sampler sees no update faster than its own ticks.
    """

    samples: int
    duration_s: float
    sampling_period_s: float | None
    """Median time between samples."""
    counter_period_s: float | None
    """Median time between changes of the energy counter."""
    counter_resolution_j: float | None
    """Largest joules of which every change of the counter is a multiple: the sensor's own unless power was too even."""
    instant_period_s: float | None
    """Median time between changes of power_instant_w; steady power shows fewer changes than updates."""
    average_period_s: float | None
    """The same of power_average_w."""
    power_w_mean: float | None
    """Mean power over the samples, by the counter, else by instantaneous power; idle power when the GPU idled."""


def calibrate(samples: Iterable[PowerSample]) -> dict[str, Calibration]:
    """UUID -> calibration of each GPU in `samples` (any order)."""
    return {gpu: calibration_of(trace) for gpu, trace in traces_of(samples).items()}


def calibration_of(trace: PowerTrace) -> Calibration:
    """The sensors of one GPU; the trace is not empty."""
    t = (trace.t_ns - trace.t_ns[0]) / 1e9
    counter_t, counter = _read(t, trace.counter_j)
    instant_t, instant = _read(t, trace.power_instant_w)
    average_t, average = _read(t, trace.power_average_w)
    return Calibration(
        samples=len(trace),
        duration_s=float(t[-1]),
        sampling_period_s=_median_step(t),
        counter_period_s=_median_step(staircase(counter_t, counter).instants_s),
        counter_resolution_j=_resolution(counter),
        instant_period_s=_median_step(staircase(instant_t, instant).instants_s),
        average_period_s=_median_step(staircase(average_t, average).instants_s),
        power_w_mean=_mean_power(counter_t, counter, instant_t, instant),
    )


def _read(t: Floats, values: Floats) -> tuple[Floats, Floats]:
    there = ~np.isnan(values)
    return t[there], values[there]


def _median_step(t: Floats) -> float | None:
    return float(np.median(np.diff(t))) if t.size > 1 else None


def _resolution(counter: Floats) -> float | None:
    steps = np.diff(np.round(counter * MICROJOULES).astype(np.int64))
    divisor = int(np.gcd.reduce(steps[steps > 0]))
    return divisor / MICROJOULES if divisor else None


def _mean_power(counter_t: Floats, counter: Floats, instant_t: Floats, instant: Floats) -> float | None:
    if np.all(np.diff(counter) >= 0):
        steps = staircase(counter_t, counter)
        if steps.instants_s.size > 1:
            return float((steps.values[-1] - steps.values[0]) / (steps.instants_s[-1] - steps.instants_s[0]))
    if instant_t.size > 1:
        energy_j = np.sum(np.diff(instant_t) * (instant[1:] + instant[:-1]) / 2)
        return float(energy_j / (instant_t[-1] - instant_t[0]))
    return None
