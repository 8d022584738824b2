"""PowerTrace: the samples of one GPU as columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.power.sample import GpuProcess, PowerSample
from loadgen.power.staircase import Floats

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
