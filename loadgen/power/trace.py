"""PowerTrace: the samples of one GPU as columns.

Staircase: a sensor that holds its value between updates, seen through samples taken in between.

Calibration: what a GPU's power sensors are like, learnt from their samples.

Rest: a GPU's power and sensors while nothing is asked of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from loadgen.power.sample import GpuProcess, PowerSample

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Staircase:
    """The updates of a held value. An update between two samples is put at their middle."""

    instants_s: Floats
    """When the value changed, ascending."""
    values: Floats
    """The value from that instant on."""
    doubts_s: Floats
    """Half the distance of the two samples: how far the true instant may lie from the one given."""

    def covers(self, t_s: float) -> bool:
        """Whether an update lies on either side of `t_s`."""
        return bool(self.instants_s.size) and bool(self.instants_s[0] <= t_s <= self.instants_s[-1])

    def at(self, t_s: float) -> float:
        """The straight line between the updates on either side of a covered `t_s`."""
        return float(np.interp(t_s, self.instants_s, self.values))

    def doubt_at(self, t_s: float) -> float:
        """The larger doubt (seconds) of the updates on either side of a covered `t_s`."""
        after = int(np.searchsorted(self.instants_s, t_s))
        return float(self.doubts_s[max(after - 1, 0) : after + 1].max())

    def updates_between(self, t0_s: float, t1_s: float) -> int:
        return int(np.count_nonzero((self.instants_s > t0_s) & (self.instants_s < t1_s)))


def staircase(t_s: Floats, values: Floats) -> Staircase:
    """The updates visible in `values` sampled at ascending `t_s`. The first sample is no update: its own is unknown."""
    changed = np.flatnonzero(values[1:] != values[:-1])
    before, after = t_s[changed], t_s[changed + 1]
    return Staircase(instants_s=(before + after) / 2, values=values[changed + 1], doubts_s=(after - before) / 2)


Ints = NDArray[np.int64]


class PowerTrace(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """In the order of time. The columns are the fields of PowerSample; what a sample has no reading of is nan."""

    gpu: str
    t_ns: Ints
    latency_ns: Ints
    counter_j: Floats
    power_instant_w: Floats
    power_average_w: Floats
    temperature_c: Floats
    sm_clock_hz: Floats
    memory_clock_hz: Floats
    throttle_reasons: Floats
    power_limit_w: Floats
    memory_used_bytes: Floats
    utilization: Floats
    processes: Sequence[tuple[GpuProcess, ...] | None]
    errors: Sequence[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.t_ns)

    def between(self, t0_ns: int, t1_ns: int) -> PowerTrace:
        """The samples from `t0_ns` to `t1_ns`, both included."""
        begin, end = np.searchsorted(self.t_ns, t0_ns), np.searchsorted(self.t_ns, t1_ns, side="right")
        columns = {name: getattr(self, name)[begin:end] for name in self.__struct_fields__ if name != "gpu"}
        return PowerTrace(gpu=self.gpu, **columns)

    def last(self) -> PowerTrace:
        """Its last sample alone; empty if there is none."""
        return self.between(int(self.t_ns[-1]), int(self.t_ns[-1])) if len(self) else self


def trace_of(gpu: str, samples: Iterable[PowerSample]) -> PowerTrace:
    """Of one GPU's samples in any order; of two at one instant the later one stays the later."""
    ordered = sorted(samples, key=attrgetter("t_ns"))
    columns: dict[str, Any] = {
        name: np.fromiter(map(attrgetter(name), ordered), _dtype(name), len(ordered))
        for name in PowerTrace.__struct_fields__
        if name not in ("gpu", "processes", "errors")
    }
    processes = [sample.processes for sample in ordered]
    return PowerTrace(gpu=gpu, processes=processes, errors=[sample.errors for sample in ordered], **columns)


def _dtype(name: str) -> type[np.int64 | np.float64]:
    return np.int64 if name.endswith("_ns") else np.float64


def traces_of(samples: Iterable[PowerSample], gpus: Iterable[str] = ()) -> dict[str, PowerTrace]:
    """GPU -> its trace, of every GPU that was sampled; before those one for each of `gpus`, be it empty."""
    of_gpu: dict[str, list[PowerSample]] = defaultdict(list, {gpu: [] for gpu in gpus})
    for sample in samples:
        of_gpu[sample.gpu].append(sample)
    return {gpu: trace_of(gpu, own) for gpu, own in of_gpu.items()}


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


class Rest(msgspec.Struct, frozen=True):
    """What the sensors showed while nothing was asked of a server, by GPU."""

    power_w: dict[str, float | None]
    """Mean power; None where it cannot be told."""
    calibration: dict[str, Calibration]
    """Update periods and resolution, from the same seconds."""

    def __str__(self) -> str:
        return "; ".join(self._line(gpu, found) for gpu, found in self.calibration.items())

    def _line(self, gpu: str, found: Calibration) -> str:
        watts = self.power_w.get(gpu)
        updates = {"energy counter": found.counter_period_s, "power": found.instant_period_s}
        each = [f"{what} each {period_s * 1e3:.0f} ms" for what, period_s in updates.items() if period_s is not None]
        return f"{gpu} {'? W' if watts is None else f'{watts:.1f} W'} ({', '.join(each) or 'no update seen'})"
