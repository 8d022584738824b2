"""PowerTrace: the samples of one GPU as columns. Staircase: the updates of a sensor that holds its value in between.

Calibration and Rest: periods and resolution of a GPU's sensors from their samples, and its power at rest. Owners: whom
the processes on a GPU belong to, and what that means for the energy of a window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.power.sample import READINGS, GpuProcess, PowerSample, Scope

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MICROJOULES = 1e6


@dataclass(frozen=True)
class Staircase:
    """The updates of a held value. An update between two samples is placed at their middle."""

    instants_s: Floats
    """When the value changed, ascending."""
    values: Floats
    """The value from that instant on."""
    doubts_s: Floats
    """Half the distance of the two samples: the error of the instant is at most this."""

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
    """The updates visible in `values` sampled at ascending `t_s`. The first sample is not an update."""
    changed = np.flatnonzero(values[1:] != values[:-1])
    before, after = t_s[changed], t_s[changed + 1]
    return Staircase(instants_s=(before + after) / 2, values=values[changed + 1], doubts_s=(after - before) / 2)


class PowerTrace(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """In the order of time. The columns are the fields of PowerSample; nan where a sample has no reading."""

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
        """The last sample alone; empty if there is none."""
        return self.between(int(self.t_ns[-1]), int(self.t_ns[-1])) if len(self) else self


def trace_of(gpu: str, samples: Iterable[PowerSample]) -> PowerTrace:
    """The trace of one GPU's samples in any order; two at one instant keep their order."""
    ordered = sorted(samples, key=attrgetter("t_ns"))
    kinds: dict[str, type[Any]] = {"t_ns": np.int64, "latency_ns": np.int64, **dict.fromkeys(READINGS, np.float64)}
    columns = {name: np.fromiter(map(attrgetter(name), ordered), kind, len(ordered)) for name, kind in kinds.items()}
    processes = [sample.processes for sample in ordered]
    return PowerTrace(gpu=gpu, processes=processes, errors=[sample.errors for sample in ordered], **columns)


def traces_of(samples: Iterable[PowerSample], gpus: Iterable[str] = ()) -> dict[str, PowerTrace]:
    """GPU -> its trace: first one for each of `gpus`, which may be empty, then one for every other GPU in `samples`."""
    of_gpu: dict[str, list[PowerSample]] = defaultdict(list, {gpu: [] for gpu in gpus})
    for sample in samples:
        of_gpu[sample.gpu].append(sample)
    return {gpu: trace_of(gpu, own) for gpu, own in of_gpu.items()}


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The sensors of one GPU as its samples show them. None: the GPU lacks the field, or too few updates were seen.

    A period close to sampling_period_s is an upper bound: a sampler sees no update faster than its own ticks.
    """

    samples: int
    duration_s: float
    sampling_period_s: float | None
    """Median time between samples."""
    counter_period_s: float | None
    """Median time between changes of the energy counter."""
    counter_resolution_j: float | None
    """Largest energy of which every change of the counter is a multiple: its step unless power was too even."""
    instant_period_s: float | None
    """Median time between changes of power_instant_w; steady power shows fewer changes than updates."""
    average_period_s: float | None
    """The same of power_average_w."""
    power_w_mean: float | None
    """Mean power over the samples, by the counter, else by instantaneous power; idle power when the GPU idled."""


def calibrate(samples: Iterable[PowerSample]) -> dict[str, Calibration]:
    """UUID -> the calibration of each GPU in `samples` (any order)."""
    return {gpu: calibration_of(trace) for gpu, trace in traces_of(samples).items()}


def calibration_of(trace: PowerTrace) -> Calibration:
    """The calibration of one GPU; the trace must not be empty."""
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
    """What the sensors showed while a server had no requests, by GPU."""

    power_w: dict[str, float | None]
    """Mean power; None where it is not known."""
    calibration: dict[str, Calibration]
    """Update periods and resolution, from the same seconds."""

    def __str__(self) -> str:
        lines = []
        for gpu, found in self.calibration.items():
            watts = self.power_w.get(gpu)
            periods_s = {"energy counter": found.counter_period_s, "power": found.instant_period_s}
            updates = [f"{name} every {s * 1e3:.0f} ms" for name, s in periods_s.items() if s is not None]
            power = "? W" if watts is None else f"{watts:.1f} W"
            lines.append(f"{gpu} {power} ({', '.join(updates) or 'no update seen'})")
        return "; ".join(lines)


UNLISTED_BYTES = 2 * 2**30
"""With more GPU memory in use than this, an empty list of processes is not believed."""
IDLE_READINGS = 3
"""Fewest readings of 0% utilization that show that a GPU was not used."""
MPS_SERVER = "nvidia-cuda-mps"
"""Names of the Multi-Process Service's own processes begin so: they work for its clients."""

Owner = Literal["server", "peer", "unknown", "other"]


class Owners(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the processes on the GPUs of one server before its first window."""

    server: tuple[int, ...] = ()
    """Processes of which the server is made, or whose descendants, session or group it is; empty: not known."""
    peers: tuple[int, ...] = ()
    """The same of the sweep's other servers, which get no requests while this one is measured."""
    before: tuple[int, ...] = ()
    """Processes that used a GPU before the server was started."""
    at_rest: tuple[int, ...] = ()
    """Processes that used a GPU when the server was up and had not had a request."""

    def of(self, process: GpuProcess) -> Owner:
        """Who a process belongs to: unknown if it cannot be seen and was first listed with the server at rest."""
        family = {process.pid, *process.lineage}
        if family.intersection(self.server):
            return "server"
        if family.intersection(self.peers):
            return "peer"
        if process.pid in self.before or process.pid not in self.at_rest:
            return "other"
        if process.lineage:
            return "other" if self.server else "server"
        return "unknown"


class Uses(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes on a window's GPUs mean for its energy, a sentence each."""

    foreign: tuple[str, ...] = ()
    """Another user's work is in the joules."""
    unsure: tuple[str, ...] = ()
    """It may be, or a GPU was not used at all."""


def uses_in(
    traces: Sequence[PowerTrace], t0_ns: int, t1_ns: int, owners: Owners | None, scopes: Mapping[str, Scope]
) -> Uses:
    """The uses of the GPUs whose traces these are, over [t0_ns, t1_ns]. CPU packages have no list of processes."""
    foreign: list[str] = []
    unsure: list[str] = []
    gpus = [trace for trace in traces if scopes.get(trace.gpu, "gpu") != "package"]
    for trace in gpus:
        if owners is not None:
            _judge(trace, t0_ns, t1_ns, owners, foreign, unsure)
    idle = [trace.gpu for trace in gpus if _was_idle(trace.between(t0_ns, t1_ns))]
    named = f"{' and '.join(idle)} {'was' if len(idle) == 1 else 'were'} idle for the whole window"
    if idle and len(idle) == len(gpus):
        foreign.append(f"{named}: the server does not run there, name its GPUs (--gpu)")
    elif idle:
        unsure.append(f"{named}, and the energy includes that: omit from --gpu what the server does not use")
    return Uses(foreign=tuple(foreign), unsure=tuple(unsure))


def _judge(trace: PowerTrace, t0_ns: int, t1_ns: int, owners: Owners, foreign: list[str], unsure: list[str]) -> None:
    lists = _lists(trace, t0_ns, t1_ns)
    if not lists:
        unsure.append(f"cannot tell who uses {trace.gpu}: the driver lists no processes")
        return
    listed = {process.pid: process for processes in lists for process in processes}
    listed = {pid: process for pid, process in listed.items() if not (process.name or "").startswith(MPS_SERVER)}
    for process in listed.values():
        owner = owners.of(process)
        if owner == "other" and process.kind == "graphics":
            unsure.append(f"{process} draws graphics on {trace.gpu}: the energy includes its share")
        elif owner == "other":
            foreign.append(f"{process} used {trace.gpu} and is not the server's: the energy includes its share")
        elif owner == "peer":
            unsure.append(f"{process} of another target is on {trace.gpu}: the energy includes its idle power")
        elif owner == "unknown":
            unsure.append(f"cannot tell whether {process} on {trace.gpu} is the server's: it cannot be seen from here")
    used = trace.between(t0_ns, t1_ns).memory_used_bytes
    most = float(np.nanmax(used)) if not np.isnan(used).all() else 0.0
    if not listed and most > UNLISTED_BYTES:
        unsure.append(
            f"cannot tell who uses {trace.gpu}: {most / 2**30:.1f} GiB are in use and no process is listed (in a "
            "container NVML lists only what the container may see)"
        )


def _lists(trace: PowerTrace, t0_ns: int, t1_ns: int) -> list[tuple[GpuProcess, ...]]:
    """The lists read inside the window; if there is none, the last one before it, which held until then."""
    read = [
        (t_ns, processes)
        for t_ns, processes in zip(trace.t_ns.tolist(), trace.processes, strict=True)
        if processes is not None and t_ns <= t1_ns
    ]
    return [processes for t_ns, processes in read if t_ns >= t0_ns] or [processes for _, processes in read[-1:]]


def _was_idle(inside: PowerTrace) -> bool:
    read = inside.utilization[~np.isnan(inside.utilization)]
    return bool(read.size >= IDLE_READINGS and (read == 0).all())
