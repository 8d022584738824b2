"""GpuTotals: what a GPU's samples add up to since the exporter's start, and its latest readings."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from loadgen.power import throttle
from loadgen.power.sample import PowerSample

BRIDGE_S = 1.0
"""Between two readings further apart than this nothing is integrated: what happened there is unknown."""
SLOW_BRIDGE_S = 5.0
"""The same for fields that are read about once a second."""
GAP_BUCKETS_S = (0.03, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
READINGS = (
    "counter_j", "power_instant_w", "power_average_w", "temperature_c", "sm_clock_hz", "memory_clock_hz",
    "throttle_reasons", "power_limit_w", "memory_used_bytes", "utilization",
)  # fmt: skip


class GpuTotals:
    """Every sample of one GPU is added once, in order; totals only grow. Not thread-safe."""

    def __init__(self) -> None:
        self.samples = 0
        self.last_ns: int | None = None
        self.integrated_j: float | None = None
        """Trapezoid of instantaneous power since the first reading; None until there is one."""
        self.resets = 0
        """How often the energy counter went down."""
        self.throttle_s = dict.fromkeys(throttle.NAMES.values(), 0.0)
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
        self._integrate(sample)
        self._count_reset(sample)
        self._hold_throttle(sample)
        for error in sample.errors:
            field, _, code = error.partition(": ")
            self.errors[field, code] += 1
        for name in READINGS:
            value = getattr(sample, name)
            if value is not None:
                self._latest[name] = (sample.t_ns, value)

    def latest(self, name: str, since_ns: int) -> float | None:
        """The newest reading of a field of PowerSample, None if there is none from `since_ns` on."""
        t_ns, value = self._latest.get(name, (0, None))
        return value if t_ns >= since_ns else None

    def _integrate(self, sample: PowerSample) -> None:
        if sample.power_instant_w is None:
            return
        if self.integrated_j is None:
            self.integrated_j = 0.0
        before = self._latest.get("power_instant_w")
        if before is not None and (dt_s := (sample.t_ns - before[0]) / 1e9) <= BRIDGE_S:
            self.integrated_j += (before[1] + sample.power_instant_w) / 2 * dt_s

    def _count_reset(self, sample: PowerSample) -> None:
        before = self._latest.get("counter_j")
        if before is not None and sample.counter_j is not None and sample.counter_j < before[1]:
            self.resets += 1

    def _hold_throttle(self, sample: PowerSample) -> None:
        """A reason holds from the reading that shows it to the next one."""
        before = self._latest.get("throttle_reasons")
        if before is None or sample.throttle_reasons is None:
            return
        dt_s = (sample.t_ns - before[0]) / 1e9
        if dt_s <= SLOW_BRIDGE_S:
            for bit, reason in throttle.NAMES.items():
                if int(before[1]) & bit:
                    self.throttle_s[reason] += dt_s
