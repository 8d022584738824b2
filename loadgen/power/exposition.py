"""Power and energy as Prometheus metrics: base units, raw counters, and no series for what is not known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from loadgen.power.sample import GpuInfo, PowerSample, SourceKind
from loadgen.power.sampler import GAP_BUCKETS_S, GpuTotals

STALE_S = 5.0
"""A reading older than this is no longer shown: a lost GPU's series end instead of freezing."""
_GPU = ("gpu", "uuid")
_SCOPES: dict[SourceKind, str] = {"nvml": "gpu", "rapl": "package", "simulated": "gpu"}
_POWERS = {"instant": "power_instant_w", "average": "power_average_w"}
_CLOCKS = {"sm": "sm_clock_hz", "mem": "memory_clock_hz"}


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
        with self._lock:
            families = [*self._energy(), *self._state(), *self._health(), *self._identity()]
        yield from families

    def _each(self) -> Iterator[tuple[tuple[str, str], GpuInfo, GpuTotals]]:
        for info in self._infos:
            yield (str(info.index), info.uuid), info, self._totals[info.uuid]

    def _energy(self) -> Iterator[Metric]:
        fresh_ns = self._fresh_ns()
        counter = CounterMetricFamily(
            "loadgen_gpu_energy_joules",
            "The energy counter as the hardware keeps it; it goes back to 0 when the driver is loaded again.",
            labels=(*_GPU, "scope"),
        )
        integral = CounterMetricFamily(
            "loadgen_gpu_energy_integrated_joules",
            "Trapezoid of instantaneous power since the exporter's start; pauses longer than 1 s add nothing.",
            labels=(*_GPU, "source"),
        )
        resets = CounterMetricFamily("loadgen_gpu_energy_resets", "Times the energy counter went down.", labels=_GPU)
        for gpu, info, totals in self._each():
            counter_j = totals.latest("counter_j", fresh_ns)
            if counter_j is not None:
                scope = _SCOPES[self._source] if info.scope == "gpu" else info.scope
                counter.add_metric((*gpu, scope), counter_j)
            if totals.integrated_j is not None:
                integral.add_metric((*gpu, "instant"), totals.integrated_j)
            if info.supported.get("counter_j", False):
                resets.add_metric(gpu, totals.resets)
        yield from (counter, integral, resets)

    def _state(self) -> Iterator[Metric]:
        fresh_ns = self._fresh_ns()
        power = GaugeMetricFamily("loadgen_gpu_power_watts", "Power drawn.", labels=(*_GPU, "kind"))
        limit = GaugeMetricFamily("loadgen_gpu_power_limit_watts", "Power limits.", labels=(*_GPU, "kind"))
        temperature = GaugeMetricFamily("loadgen_gpu_temperature_celsius", "Temperature of the die.", labels=_GPU)
        clock = GaugeMetricFamily("loadgen_gpu_clock_hertz", "Clock frequencies.", labels=(*_GPU, "clock"))
        memory = GaugeMetricFamily("loadgen_gpu_memory_used_bytes", "Device memory in use.", labels=_GPU)
        utilization = GaugeMetricFamily(
            "loadgen_gpu_utilization_ratio", "Share of the last second or less in which a kernel ran.", labels=_GPU
        )
        for gpu, info, totals in self._each():
            for kind, field in _POWERS.items():
                _set(power, (*gpu, kind), totals.latest(field, fresh_ns))
            enforced_w = totals.latest("power_limit_w", fresh_ns)
            _set(limit, (*gpu, "enforced"), info.power_limit_enforced_w if enforced_w is None else enforced_w)
            _set(limit, (*gpu, "default"), info.power_limit_default_w)
            _set(limit, (*gpu, "max"), info.power_limit_max_w)
            _set(temperature, gpu, totals.latest("temperature_c", fresh_ns))
            for name, field in _CLOCKS.items():
                _set(clock, (*gpu, name), totals.latest(field, fresh_ns))
            _set(memory, gpu, totals.latest("memory_used_bytes", fresh_ns))
            _set(utilization, gpu, totals.latest("utilization", fresh_ns))
        yield from (power, limit, temperature, clock, memory, utilization)

    def _health(self) -> Iterator[Metric]:
        throttle = CounterMetricFamily(
            "loadgen_gpu_throttle_seconds", "Time during which a reason held the clocks.", labels=(*_GPU, "reason")
        )
        errors = CounterMetricFamily(
            "loadgen_gpu_nvml_errors",
            "Readings that failed, by field and NVML's code.",
            labels=(*_GPU, "field", "code"),
        )
        samples = CounterMetricFamily("loadgen_gpu_samples", "Samples taken.", labels=_GPU)
        last = GaugeMetricFamily(
            "loadgen_gpu_last_sample_timestamp_seconds", "Unix time of the newest sample.", labels=_GPU
        )
        gap = HistogramMetricFamily(
            "loadgen_gpu_sample_gap_seconds", "Time between two samples of a GPU in a row.", labels=_GPU
        )
        unix_minus_monotonic_ns = time.time_ns() - self._now_ns()
        for gpu, info, totals in self._each():
            if info.supported.get("throttle_reasons", False):
                for reason, seconds in totals.throttle_s.items():
                    throttle.add_metric((*gpu, reason), seconds)
            for (field, code), count in sorted(totals.errors.items()):
                errors.add_metric((*gpu, field, code), count)
            samples.add_metric(gpu, totals.samples)
            if totals.last_ns is not None:
                last.add_metric(gpu, (totals.last_ns + unix_minus_monotonic_ns) / 1e9)
            gap.add_metric(gpu, _cumulative(totals.gap_counts), totals.gap_sum_s)
        yield from (throttle, errors, samples, last, gap)

    def _identity(self) -> Iterator[Metric]:
        supported = GaugeMetricFamily(
            "loadgen_gpu_field_supported",
            "Whether the GPU has a field; 0: its series is absent.",
            labels=(*_GPU, "field"),
        )
        names = ("name", "driver", "vbios", "mig", "source", "simulated")
        known = GaugeMetricFamily("loadgen_gpu_info", "What the GPU is.", labels=(*_GPU, *names))
        for gpu, info, _ in self._each():
            for field, has in info.supported.items():
                supported.add_metric((*gpu, field), int(has))
            flags = (str(info.mig).lower(), self._source, str(self._simulated(info)).lower())
            known.add_metric((*gpu, info.name, info.driver or "", info.vbios or "", *flags), 1)
        yield supported
        yield known
        yield GaugeMetricFamily(
            "loadgen_simulated",
            "1: SIMULATED, every figure of this page comes from a model; 0: from hardware.",
            value=int(any(map(self._simulated, self._infos))),
        )

    def _simulated(self, info: GpuInfo) -> bool:
        return info.simulated or self._source == "simulated"

    def _fresh_ns(self) -> int:
        return self._now_ns() - round(STALE_S * 1e9)


def _set(family: GaugeMetricFamily, labels: tuple[str, ...], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, value)


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(str, GAP_BUCKETS_S), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
