"""What an exporter sends: samples and the energies of a window as JSON, and power and energy as Prometheus metrics.

Those have base units, raw counters, and no series for what is not known.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from operator import attrgetter

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from loadgen.power.energy import MARGIN_S, WindowEnergy, energy_of_window
from loadgen.power.sample import NAMES, READINGS, GpuInfo, PowerSample, SourceKind
from loadgen.power.trace import Calibration

PAGE_SAMPLES = 5000
"""Most samples in one response; a full page says that there are more."""


class ClockReading(msgspec.Struct, frozen=True, kw_only=True):
    """GET /clock: the exporter's clocks at one instant."""

    monotonic_ns: int
    unix_ns: int
    boot_id: str | None
    """/proc/sys/kernel/random/boot_id: equal on both sides where CLOCK_MONOTONIC is shared."""


class Gpus(msgspec.Struct, frozen=True, kw_only=True):
    """GET /gpus: what is sampled."""

    source: SourceKind
    simulated: bool
    gpus: tuple[GpuInfo, ...]
    calibration: dict[str, Calibration | None] = {}
    """By UUID; None until enough was sampled."""
    latest: dict[str, PowerSample] = {}
    """By UUID: the newest full reading, with the GPU's processes."""
    server_pid: int | None = None
    """The server whose GPUs these are, where it reads its own sensors, as a simulated one does."""


class SamplePage(msgspec.Struct, frozen=True, kw_only=True):
    """GET /samples: a stretch of the exporter's samples, oldest first."""

    next: int
    """What to ask for next."""
    lost: int
    """Samples of this stretch that were forgotten before this request."""
    samples: tuple[PowerSample, ...]
    more: bool = False
    """Further samples are there already."""


class Windows(msgspec.Struct, frozen=True, kw_only=True):
    """GET /window: one for each GPU."""

    windows: tuple[WindowEnergy, ...]


REACH_NS = 300_000_000
"""Samples must reach this far beyond an instant to bracket it between updates of the energy counter (each 0.1 s)."""
PATIENCE_NS = 5_000_000_000
"""A GPU that is not sampled this long after the window's end will not be: its window is invalid, not early."""


class NotCoveredError(Exception):
    """The window has not been sampled to its end yet; `str(error)` is one sentence."""


def window_energies(
    samples: Sequence[PowerSample], infos: Sequence[GpuInfo], t0_ns: int, t1_ns: int, now_ns: int
) -> tuple[WindowEnergy, ...]:
    """Energy of each GPU of `infos` over [t0_ns, t1_ns], in their order; `samples` are of any GPUs, oldest first.

    Raises NotCoveredError while samples that the window's end needs may still come.
    """
    margin_ns = round(MARGIN_S * 1e9)
    first = bisect_left(samples, t0_ns - margin_ns, key=attrgetter("t_ns"))
    behind = bisect_left(samples, t1_ns + margin_ns, key=attrgetter("t_ns"))
    of_gpu: dict[str, list[PowerSample]] = {info.uuid: [] for info in infos}
    for sample in samples[first:behind]:
        if sample.gpu in of_gpu:
            of_gpu[sample.gpu].append(sample)
    for uuid, own in of_gpu.items():
        if now_ns < t1_ns + PATIENCE_NS and (not own or own[-1].t_ns < t1_ns + REACH_NS):
            raise NotCoveredError(f"{uuid} is not sampled beyond t1={t1_ns} yet; ask again in a second")
    return tuple(_energy(info, of_gpu[info.uuid], t0_ns, t1_ns) for info in infos)


def _energy(info: GpuInfo, samples: Sequence[PowerSample], t0_ns: int, t1_ns: int) -> WindowEnergy:
    energy = energy_of_window(samples, t0_ns, t1_ns, limit_w=info.plausible_limit_w, scope=info.scope)
    energy = msgspec.structs.replace(energy, gpu=info.uuid)
    if info.mig_reason is None:
        return energy
    return msgspec.structs.replace(energy, verdict="invalid", reasons=(info.mig_reason, *energy.reasons))


STALE_S = 5.0
"""An older reading is not shown: a lost GPU's series end instead of freezing."""
BRIDGE_S = 1.0
"""Between two readings further apart than this nothing is integrated: what happened there is unknown."""
SLOW_BRIDGE_S = 5.0
"""The same for fields that are read about once a second."""
GAP_BUCKETS_S = (0.03, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SCOPES: dict[SourceKind, str] = {"nvml": "gpu", "rapl": "package", "simulated": "gpu"}
_GPU = ("gpu", "uuid")
_IDENTITY = ("name", "driver", "vbios", "mig", "source", "simulated")
_COUNTERS = {
    "energy_joules": (
        "The energy counter as the hardware keeps it; it goes back to 0 when the driver is loaded again.", ("scope",),
    ),
    "energy_integrated_joules": (
        "Trapezoid of instantaneous power since the exporter's start; pauses longer than 1 s add nothing.", ("source",),
    ),
    "energy_resets": ("Times the energy counter went down.", ()),
    "throttle_seconds": ("Time during which a reason held the clocks.", ("reason",)),
    "nvml_errors": ("Readings that failed, by field and NVML's code.", ("field", "code")),
    "samples": ("Samples taken.", ()),
}  # fmt: skip
_GAUGES = {
    "power_watts": ("Power drawn.", ("kind",)),
    "power_limit_watts": ("Power limits.", ("kind",)),
    "temperature_celsius": ("Temperature of the die.", ()),
    "clock_hertz": ("Clock frequencies.", ("clock",)),
    "memory_used_bytes": ("Device memory in use.", ()),
    "utilization_ratio": ("Share of the last second or less in which a kernel ran.", ()),
    "last_sample_timestamp_seconds": ("Unix time of the newest sample.", ()),
    "field_supported": ("Whether the GPU has a field; 0: its series is absent.", ("field",)),
    "info": ("What the GPU is.", _IDENTITY),
}
"""Name after `loadgen_gpu_` -> help and labels, besides the GPU's."""


class GpuTotals:
    """Sums over one GPU's samples since the exporter's start, and its latest readings. Every sample is added once, in
    order. Not thread-safe."""

    def __init__(self) -> None:
        self.samples = 0
        self.last_ns: int | None = None
        self.integrated_j: float | None = None
        """Trapezoid of instantaneous power since the first reading; None until there is one."""
        self.resets = 0
        """How often the energy counter went down."""
        self.throttle_s = dict.fromkeys(NAMES.values(), 0.0)
        """How long each reason has been read as set."""
        self.errors: Counter[tuple[str, str]] = Counter()
        """(field, NVML's code) -> readings that failed."""
        self.gap_counts = [0] * (len(GAP_BUCKETS_S) + 1)
        """Seconds between successive samples: how many fell into each bucket, the last for all longer ones."""
        self.gap_sum_s = 0.0
        self._latest: dict[str, tuple[int, float]] = {}

    def add(self, sample: PowerSample) -> None:
        """Count one sample."""
        self.samples += 1
        if self.last_ns is not None:
            gap_s = (sample.t_ns - self.last_ns) / 1e9
            self.gap_counts[bisect_left(GAP_BUCKETS_S, gap_s)] += 1
            self.gap_sum_s += gap_s
        self.last_ns = sample.t_ns
        if sample.power_instant_w is not None:
            before_w, dt_s = self._before("power_instant_w", sample)
            added_j = (before_w + sample.power_instant_w) / 2 * dt_s if dt_s <= BRIDGE_S else 0.0
            self.integrated_j = (self.integrated_j or 0.0) + added_j
        if sample.counter_j is not None and sample.counter_j < self._before("counter_j", sample)[0]:
            self.resets += 1
        if sample.throttle_reasons is not None:
            mask, dt_s = self._before("throttle_reasons", sample)
            for bit, reason in NAMES.items():
                if int(mask) & bit and dt_s <= SLOW_BRIDGE_S:
                    self.throttle_s[reason] += dt_s
        for error in sample.errors:
            field, _, code = error.partition(": ")
            self.errors[field, code] += 1
        for name in READINGS:
            if (value := getattr(sample, name)) is not None:
                self._latest[name] = (sample.t_ns, value)

    def _before(self, name: str, sample: PowerSample) -> tuple[float, float]:
        """The field's last reading and the seconds since; (0, inf) before the first."""
        t_ns, value = self._latest.get(name, (None, 0.0))
        return value, float("inf") if t_ns is None else (sample.t_ns - t_ns) / 1e9

    def latest(self, name: str, since_ns: int) -> float | None:
        """The newest reading of a field of PowerSample, None if there is none from `since_ns` on."""
        t_ns, value = self._latest.get(name, (0, None))
        return value if t_ns >= since_ns else None


class PowerCollector(Collector):
    """One family per metric; every GPU of `infos` a series where it has the field. Safe from any thread."""

    def __init__(
        self, infos: Sequence[GpuInfo], source: SourceKind, *, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._infos = tuple(infos)
        self._source = source
        self._now_ns = now_ns
        self._totals = {info.uuid: GpuTotals() for info in infos}
        self._lock = threading.Lock()

    def add(self, samples: Sequence[PowerSample]) -> None:
        """Count samples that have not been counted yet, in the order they were read."""
        with self._lock:
            for sample in samples:
                self._totals[sample.gpu].add(sample)

    def describe(self) -> list[Metric]:
        """Nothing: names are not checked against other collectors', so registering reads no sample."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metric families of this instant."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for name, (text, labels) in _COUNTERS.items():
            families[name] = CounterMetricFamily(f"loadgen_gpu_{name}", text, labels=(*_GPU, *labels))
        for name, (text, labels) in _GAUGES.items():
            families[name] = GaugeMetricFamily(f"loadgen_gpu_{name}", text, labels=(*_GPU, *labels))
        gap = HistogramMetricFamily(
            "loadgen_gpu_sample_gap_seconds", "Time between two samples of a GPU in a row.", labels=_GPU
        )
        with self._lock:
            for info in self._infos:
                gpu, totals = (str(info.index), info.uuid), self._totals[info.uuid]
                for name, labels, value in self._series(info, totals):
                    if value is not None:
                        families[name].add_metric((*gpu, *labels), value)
                bounds = (*map(str, GAP_BUCKETS_S), "+Inf")
                gap.add_metric(gpu, list(zip(bounds, accumulate(totals.gap_counts), strict=True)), totals.gap_sum_s)
        simulated = GaugeMetricFamily(
            "loadgen_simulated",
            "1: SIMULATED, every figure of this page comes from a model; 0: from hardware.",
            value=int(any(map(self._simulated, self._infos))),
        )
        yield from (*families.values(), gap, simulated)

    def _series(self, info: GpuInfo, totals: GpuTotals) -> Iterator[tuple[str, tuple[str, ...], float | None]]:
        """(name, labels besides the GPU's, value) of one GPU; None is not shown."""
        now_ns = self._now_ns()

        def latest(field: str) -> float | None:
            return totals.latest(field, now_ns - round(STALE_S * 1e9))

        scope = _SCOPES[self._source] if info.scope == "gpu" else info.scope
        yield "energy_joules", (scope,), latest("counter_j")
        yield "energy_integrated_joules", ("instant",), totals.integrated_j
        yield "energy_resets", (), totals.resets if info.supported.get("counter_j") else None
        yield "power_watts", ("instant",), latest("power_instant_w")
        yield "power_watts", ("average",), latest("power_average_w")
        enforced_w = latest("power_limit_w")
        yield "power_limit_watts", ("enforced",), info.power_limit_enforced_w if enforced_w is None else enforced_w
        yield "power_limit_watts", ("default",), info.power_limit_default_w
        yield "power_limit_watts", ("max",), info.power_limit_max_w
        yield "temperature_celsius", (), latest("temperature_c")
        yield "clock_hertz", ("sm",), latest("sm_clock_hz")
        yield "clock_hertz", ("mem",), latest("memory_clock_hz")
        yield "memory_used_bytes", (), latest("memory_used_bytes")
        yield "utilization_ratio", (), latest("utilization")
        for reason, seconds in totals.throttle_s.items():
            yield "throttle_seconds", (reason,), seconds if info.supported.get("throttle_reasons") else None
        for (field, code), count in sorted(totals.errors.items()):
            yield "nvml_errors", (field, code), count
        yield "samples", (), totals.samples
        if totals.last_ns is not None:
            yield "last_sample_timestamp_seconds", (), (totals.last_ns + time.time_ns() - now_ns) / 1e9
        for field, supported in info.supported.items():
            yield "field_supported", (field,), int(supported)
        flags = (str(info.mig).lower(), self._source, str(self._simulated(info)).lower())
        yield "info", (info.name, info.driver or "", info.vbios or "", *flags), 1

    def _simulated(self, info: GpuInfo) -> bool:
        return info.simulated or self._source == "simulated"
