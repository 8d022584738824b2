"""SimulatedReader: a power curve seen through sensors like a GPU's, faults included; nothing is measured."""

from __future__ import annotations

import os
import random
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from loadgen.errors import UsageError
from loadgen.notation import number, spelled
from loadgen.power.nvml import seen_process
from loadgen.power.sample import READINGS, SW_THERMAL_SLOWDOWN, GpuInfo, GpuLostError, GpuProcess, PowerSample

FORMS = "reset@T, lost@T, gap@T:SECONDS, throttle@T:SECONDS, foreign@T:SECONDS:WATTS"
_PARTS = {"reset": 1, "lost": 1, "gap": 2, "throttle": 2, "foreign": 3}
_UNITS = ("s", "s", "W")


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault: the counter starts again at 0, the GPU is gone for good, no field can be read, heat lowers the
    clocks, or another user's work draws power."""

    kind: Literal["reset", "lost", "gap", "throttle", "foreign"]
    at_s: float
    """Seconds after the GPU's start."""
    duration_s: float = 0.0
    watts: float = 0.0

    def is_on(self, elapsed_s: float) -> bool:
        """Whether a fault that lasts is under way."""
        return self.at_s <= elapsed_s < self.at_s + self.duration_s

    def joules(self, elapsed_s: float) -> float:
        """The energy that the fault has added so far."""
        return self.watts * min(max(elapsed_s - self.at_s, 0.0), self.duration_s)


def parse_faults(texts: Iterable[str]) -> tuple[Fault, ...]:
    """The faults of `KIND@T[:SECONDS[:WATTS]]` texts; raises UsageError for any other form."""
    faults = []
    for text in texts:
        name, _, numbers = text.partition("@")
        kind, parts = spelled(name, _PARTS), numbers.split(":")
        try:
            values = [number(part, unit) for part, unit in zip(parts, _UNITS, strict=False)]
        except ValueError:
            values = []
        if len(parts) != _PARTS.get(kind) or len(values) != len(parts) or min(values) < 0:
            raise UsageError(f"--fault {text} is not one of {FORMS}")
        fields = dict(zip(("at_s", "duration_s", "watts"), values, strict=False))
        faults.append(msgspec.convert({"kind": kind, **fields}, Fault))
    return tuple(faults)


KEPT_SEGMENTS = 16384
LONGEST_INSTANT_WINDOW_S = 0.025
AVERAGE_WINDOW_S = 1.0
"""NVML field 185: mean of the last second."""
AVERAGE_PERIOD_S = 0.1
DELAY_S = 0.02
"""Readings are this old: a step's power is recorded when the event loop begins it, a little late."""
COUNTS_PER_J = 1000
"""NVML field 83 counts millijoules."""
COUNTER_START_J = 250_000.0
AMBIENT_C = 30.0
FULL_LOAD_C = 40.0
"""Degrees above ambient at the power limit."""
THROTTLED_C = 90.0
SM_CLOCK_HZ = 1.755e9
THROTTLED_CLOCK_HZ = 1.2e9
MEMORY_CLOCK_HZ = 2.6e9
FOREIGN_PID = 2**22 + 1
"""Larger than any process id of Linux."""
NEIGHBOUR = GpuProcess(pid=FOREIGN_PID, memory_bytes=2**30, name="simulated neighbour", lineage=(FOREIGN_PID,))
FIELDS = READINGS[:-1]
"""All but the utilization."""


class Sensors(msgspec.Struct, frozen=True, kw_only=True):
    """How often the sensors update (seconds of real time) and how well they read."""

    counter_period_s: float = 0.02
    instant_period_s: float = 0.02
    instant_window_s: float = 0.02
    """Each instantaneous reading is the mean of this long before its update."""
    instant_noise: float = 0.005
    """Standard deviation over the reading."""

    @classmethod
    def of_period(cls, period_s: float) -> Sensors:
        """Counter and instantaneous power with that update period; the latter sees at most 25 ms of it, as an A100's
        does (arXiv 2312.02741)."""
        window_s = min(period_s, LONGEST_INSTANT_WINDOW_S)
        return cls(counter_period_s=period_s, instant_period_s=period_s, instant_window_s=window_s)


class PowerCurve:
    """True power over time: watts of each stretch recorded, idle in between. One thread records, others may ask."""

    def __init__(self, idle_w: float, start_ns: int) -> None:
        self.start_ns = start_ns
        self._idle_w = idle_w
        self._starts_ns: list[int] = [start_ns]
        self._segments: list[tuple[int, float, float]] = [(start_ns, 0.0, 0.0)]
        """End, watts, and joules from the start to the segment's begin."""
        self._lock = threading.Lock()

    def record(self, start_ns: int, end_ns: int, watts: float) -> None:
        """The power from one instant to another, not before what is recorded already."""
        with self._lock:
            start_ns = max(start_ns, self._segments[-1][0])
            if end_ns <= start_ns:
                return
            joules = self._joules(start_ns)
            self._starts_ns.append(start_ns)
            self._segments.append((end_ns, watts, joules))
            if len(self._segments) > 2 * KEPT_SEGMENTS:
                del self._starts_ns[:KEPT_SEGMENTS], self._segments[:KEPT_SEGMENTS]

    def joules(self, t_ns: int) -> float:
        """Energy from the start until `t_ns`, negative before it; exact within the last 16,000 stretches."""
        with self._lock:
            return self._joules(t_ns)

    def _joules(self, t_ns: int) -> float:
        index = max(bisect_right(self._starts_ns, t_ns) - 1, 0)
        start_ns = self._starts_ns[index]
        end_ns, watts, joules = self._segments[index]
        busy_ns = min(max(t_ns - start_ns, 0), end_ns - start_ns)
        return joules + (watts * busy_ns + self._idle_w * (t_ns - start_ns - busy_ns)) / 1e9


class SimulatedReader:
    """One simulated GPU, a PowerReader. Equal seed, curve and times of reading give equal samples; in a gap every field
    fails, named in the sample's errors."""

    def __init__(
        self,
        curve: PowerCurve,
        info: GpuInfo,
        *,
        sensors: Sensors | None = None,
        faults: Sequence[Fault] = (),
        memory_used_bytes: Callable[[], int] = lambda: 0,
        seed: int = 0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`info` needs its enforced limit; fault times count from the curve's start."""
        assert info.power_limit_enforced_w is not None
        self._curve = curve
        self._info = msgspec.structs.replace(info, simulated=True, supported=dict.fromkeys(FIELDS, True))
        self._limit_w = info.power_limit_enforced_w
        self._sensors = sensors or Sensors()
        self._faults = tuple(faults)
        self._resets_s = sorted(fault.at_s for fault in faults if fault.kind == "reset")
        self._memory_used_bytes = memory_used_bytes
        self._seed = seed
        self._clock_ns = clock_ns
        self._phase = random.Random(f"phase {seed}").random()
        self._counter_base_j = -COUNTER_START_J
        self._resets_seen = 0
        self._average: tuple[int, float] | None = None
        name, lineage = seen_process(os.getpid())
        self._own = GpuProcess(pid=os.getpid(), name=name, lineage=lineage)
        self._foreign_listed = False

    def gpus(self) -> list[GpuInfo]:
        return [self._info]

    def read(self, uuid: str, *, slow: bool) -> PowerSample:
        """One sample; `slow` asks for clocks, temperature, throttle reasons, limit and memory too. Processes are listed
        then, and at once when another one comes or goes.

        Raises GpuLostError after a `lost` fault, ValueError for another GPU's UUID.
        """
        if uuid != self._info.uuid:
            raise ValueError(f"{uuid} is not {self._info.uuid}")
        before_ns = self._clock_ns()
        elapsed_s = self._elapsed_s(before_ns)
        if any(fault.kind == "lost" and elapsed_s >= fault.at_s for fault in self._faults):
            raise GpuLostError(f"{uuid}: NVML_ERROR_GPU_IS_LOST (simulated)")
        if self._is_on("gap", elapsed_s):
            asked = FIELDS if slow else FIELDS[:3]
            errors = tuple(f"{field}: NVML_ERROR_TIMEOUT" for field in asked)
            return PowerSample(t_ns=before_ns, latency_ns=0, gpu=uuid, errors=errors)
        counter_j = self._counter_j(before_ns)
        instant_w = self._instant_w(before_ns)
        average_w = self._average_w(before_ns)
        after_ns = self._clock_ns()
        more: dict[str, Any] = {}
        foreign = self._is_on("foreign", elapsed_s)
        if slow or foreign != self._foreign_listed:
            self._foreign_listed = foreign
            own = msgspec.structs.replace(self._own, memory_bytes=self._memory_used_bytes())
            more["processes"] = (own, NEIGHBOUR) if foreign else (own,)
        if slow:
            throttled = self._is_on("throttle", elapsed_s)
            more |= {
                "temperature_c": THROTTLED_C
                if throttled
                else round(AMBIENT_C + FULL_LOAD_C * average_w / self._limit_w),
                "sm_clock_hz": THROTTLED_CLOCK_HZ if throttled else SM_CLOCK_HZ,
                "memory_clock_hz": MEMORY_CLOCK_HZ,
                "throttle_reasons": SW_THERMAL_SLOWDOWN if throttled else 0,
                "power_limit_w": self._limit_w,
                "memory_used_bytes": self._memory_used_bytes(),
            }
        return PowerSample(
            t_ns=(before_ns + after_ns) // 2,
            latency_ns=after_ns - before_ns,
            gpu=uuid,
            counter_j=counter_j,
            power_instant_w=instant_w,
            power_average_w=average_w,
            **more,
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _elapsed_s(self, t_ns: int) -> float:
        return (t_ns - self._curve.start_ns) / 1e9

    def _is_on(self, kind: str, elapsed_s: float) -> bool:
        return any(fault.kind == kind and fault.is_on(elapsed_s) for fault in self._faults)

    def _joules(self, t_ns: int) -> float:
        elapsed_s = self._elapsed_s(t_ns)
        return self._curve.joules(t_ns) + sum(fault.joules(elapsed_s) for fault in self._faults)

    def _updated_ns(self, t_ns: int, period_s: float) -> int:
        """The last update of a sensor of that period, as readings at `t_ns` show it."""
        period_ns = round(period_s * 1e9)
        t_ns -= round(DELAY_S * 1e9)
        return t_ns - (t_ns - self._curve.start_ns - round(self._phase * period_ns)) % period_ns

    def _counter_j(self, t_ns: int) -> float:
        joules = self._joules(self._updated_ns(t_ns, self._sensors.counter_period_s))
        resets = bisect_right(self._resets_s, self._elapsed_s(t_ns))
        if resets > self._resets_seen:
            self._resets_seen = resets
            self._counter_base_j = joules
        return int((joules - self._counter_base_j) * COUNTS_PER_J) / COUNTS_PER_J

    def _instant_w(self, t_ns: int) -> float:
        updated_ns = self._updated_ns(t_ns, self._sensors.instant_period_s)
        draw = random.Random(f"{self._seed} {updated_ns - self._curve.start_ns}")
        noise = draw.gauss(0.0, self._sensors.instant_noise)
        return round(self._mean_w(updated_ns, self._sensors.instant_window_s) * (1 + noise), 3)

    def _average_w(self, t_ns: int) -> float:
        updated_ns = self._updated_ns(t_ns, AVERAGE_PERIOD_S)
        if self._average is None or self._average[0] != updated_ns:
            self._average = updated_ns, round(self._mean_w(updated_ns, AVERAGE_WINDOW_S), 3)
        return self._average[1]

    def _mean_w(self, t_ns: int, window_s: float) -> float:
        return (self._joules(t_ns) - self._joules(t_ns - round(window_s * 1e9))) / window_s
