"""Sampler: a thread that reads a machine's power sensors on absolute deadlines and keeps the recent samples.

GpuTotals: what a GPU's samples add up to since the exporter's start, and its latest readings.

Selection: which of a machine's GPUs are measured.
"""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec
import numpy as np

from loadgen.errors import UsageError
from loadgen.power.sample import GPU_LOST, NAMES, GpuInfo, GpuLostError, PowerReader, PowerSample, UnreadableGpu

PERIOD_S = 0.02
SLOW_PERIOD_S = 1.0
HISTORY_S = 900.0
LATENESS_TICKS = 100_000
DARK_S = 5.0
"""Without an energy field from any GPU for so long, the sensors are opened again ..."""
REOPEN_FIRST_S = 1.0
REOPEN_MOST_S = 60.0
"""... each time after twice as long, from the first of these to the second."""


def has_energy(sample: PowerSample) -> bool:
    """Whether some energy field was read: the counter, instantaneous or average power."""
    return not (sample.counter_j is None and sample.power_instant_w is None and sample.power_average_w is None)


class SamplerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How well a sampler kept its time, since it was started."""

    period_s: float
    ticks: int
    """Deadlines at which it read."""
    ticks_missed: int
    """Deadlines that passed while it was still reading or not scheduled; they are not made up for."""
    lateness_ms_p50: float | None
    """How long after its deadline a tick began, over the last 100 000 ticks."""
    lateness_ms_p99: float | None
    lateness_ms_max: float | None
    slow_reads: dict[str, int]
    """UUID -> readings dropped because they took longer than the period: their stamp would be too vague."""
    lost: dict[str, str]
    """UUID -> why the GPU no longer answers."""


class Sampler:
    """Samples `uuids` every `period_s`, all fields every `slow_period_s`, from start() to stop(); a context manager.

    Samples are numbered from 0 in the order taken; the last `history_s` of them are kept. Of a lost GPU the last sample
    says so in its errors and has no reading; the others go on. The reader belongs to the thread until stop().

    When no GPU gives an energy field for DARK_S, `say` gets one line, `reopen` is called until it helps, and `say` gets
    a second line when readings are back.
    """

    def __init__(
        self,
        reader: PowerReader,
        uuids: Sequence[str],
        *,
        period_s: float = PERIOD_S,
        slow_period_s: float = SLOW_PERIOD_S,
        history_s: float = HISTORY_S,
        reopen: Callable[[], object] | None = None,
        say: Callable[[str], object] = lambda _line: None,
    ) -> None:
        self.period_s = period_s
        self._reader = reader
        self._uuids = tuple(uuids)
        self._active = list(uuids)
        self._reopen = reopen
        self._say = say
        self._bright_ns = time.monotonic_ns()
        self._reopen_due_ns: int | None = None
        """None while the sensors answer."""
        self._reopen_wait_s = 0.0
        self._period_ns = round(period_s * 1e9)
        self._slow_period_ns = round(slow_period_s * 1e9)
        self._slow_due_ns = dict.fromkeys(uuids, 0)
        self._capacity = max(1, round(history_s / period_s) * len(uuids))
        self._ring: list[PowerSample] = []
        self._next = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loadgen-power", daemon=True)
        self._failure: Exception | None = None
        self._ticks = 0
        self._ticks_missed = 0
        self._lateness_ns: deque[int] = deque(maxlen=LATENESS_TICKS)
        self._slow_reads: Counter[str] = Counter()
        self._lost: dict[str, str] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what was sampled can still be asked for."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def since(self, sequence: int, uuids: Sequence[str] | None = None) -> tuple[int, int, list[PowerSample]]:
        """(the number to ask with next time, how many were too old to be kept, the samples from `sequence` on).

        `uuids` narrows the samples, not the count of the lost. Raises RuntimeError when the thread has failed.
        """
        with self._lock:
            if self._failure is not None:
                raise RuntimeError(f"the power sampler has stopped: {self._failure!r}") from self._failure
            oldest = self._next - len(self._ring)
            first = min(max(sequence, oldest), self._next)
            samples = [self._ring[number % self._capacity] for number in range(first, self._next)]
            following = self._next
        lost = max(0, oldest - max(sequence, 0))
        if uuids is not None:
            samples = [sample for sample in samples if sample.gpu in uuids]
        return following, lost, samples

    def statistics(self) -> SamplerStatistics:
        with self._lock:
            late_ms = np.array(self._lateness_ns, dtype=np.float64) / 1e6
            p50, p99, most = np.percentile(late_ms, [50, 99, 100]).tolist() if late_ms.size else (None, None, None)
            return SamplerStatistics(
                period_s=self.period_s,
                ticks=self._ticks,
                ticks_missed=self._ticks_missed,
                lateness_ms_p50=p50,
                lateness_ms_p99=p99,
                lateness_ms_max=most,
                slow_reads=dict(self._slow_reads),
                lost=dict(self._lost),
            )

    def _run(self) -> None:
        try:
            deadline_ns = time.monotonic_ns()
            while not self._stopping.wait(max(0, deadline_ns - time.monotonic_ns()) / 1e9):
                self._tick(time.monotonic_ns() - deadline_ns)
                deadline_ns += self._period_ns
                missed = max(0, (time.monotonic_ns() - deadline_ns) // self._period_ns)
                deadline_ns += missed * self._period_ns
                with self._lock:
                    self._ticks_missed += missed
        except Exception as error:
            with self._lock:
                self._failure = error

    def _tick(self, late_ns: int) -> None:
        samples = []
        for uuid in tuple(self._active):
            slow = time.monotonic_ns() >= self._slow_due_ns[uuid]
            try:
                sample = self._reader.read(uuid, slow=slow)
            except GpuLostError as error:
                self._active.remove(uuid)
                sample = PowerSample(t_ns=time.monotonic_ns(), latency_ns=0, gpu=uuid, errors=(f"{GPU_LOST}{error}",))
                with self._lock:
                    self._lost[uuid] = str(error)
            if sample.latency_ns > self._period_ns:
                with self._lock:
                    self._slow_reads[uuid] += 1
                continue
            samples.append(sample)
            if slow:
                self._slow_due_ns[uuid] = sample.t_ns + self._slow_period_ns
        with self._lock:
            self._ticks += 1
            self._lateness_ns.append(max(0, late_ns))
            for sample in samples:
                self._keep(sample)
        self._revive(samples)

    def _revive(self, samples: Sequence[PowerSample]) -> None:
        """Tells of sensors that went dark, opens them again, and tells of their return."""
        now_ns = time.monotonic_ns()
        if any(map(has_energy, samples)):
            if self._reopen_due_ns is not None:
                self._say(f"the power sensors answer again after {(now_ns - self._bright_ns) / 1e9:.0f} s")
                self._reopen_due_ns = None
            self._bright_ns = now_ns
            return
        if now_ns - self._bright_ns < DARK_S * 1e9:
            return
        if self._reopen_due_ns is None:
            errors = dict.fromkeys(error for sample in self._ring_end() for error in sample.errors)
            why = f" ({'; '.join(errors)})" if errors else ""
            again = ": they are opened again until they answer" if self._reopen is not None else ""
            self._say(f"no GPU gave its energy or power for {DARK_S:g} s{why}{again}")
            self._reopen_due_ns, self._reopen_wait_s = now_ns, REOPEN_FIRST_S
        if self._reopen is not None and now_ns >= self._reopen_due_ns:
            with contextlib.suppress(Exception):  # whatever is wrong, it is tried again
                self._reopen()
            with self._lock:
                self._active = list(self._uuids)
                self._lost.clear()
            self._reopen_due_ns = time.monotonic_ns() + round(self._reopen_wait_s * 1e9)
            self._reopen_wait_s = min(2 * self._reopen_wait_s, REOPEN_MOST_S)

    def _ring_end(self) -> list[PowerSample]:
        """The newest sample of each GPU."""
        return [
            self._ring[(self._next - back) % self._capacity]
            for back in range(1, len(self._uuids) + 1)
            if back <= len(self._ring)
        ]

    def _keep(self, sample: PowerSample) -> None:
        if len(self._ring) < self._capacity:
            self._ring.append(sample)
        else:
            self._ring[self._next % self._capacity] = sample
        self._next += 1


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
            for bit, reason in NAMES.items():
                if int(before[1]) & bit:
                    self.throttle_s[reason] += dt_s


def select_gpus(
    infos: Sequence[GpuInfo],
    *,
    asked: Sequence[str] | None,
    visible: str | None,
    order: str | None = None,
    unreadable: Sequence[UnreadableGpu] = (),
) -> list[str]:
    """UUIDs to measure, each once: those `asked` for, else CUDA's visible ones, else the only one that can be read.

    `asked`: UUIDs or beginnings of them that fit one GPU. `visible`, `order`: the values of CUDA_VISIBLE_DEVICES and
    CUDA_DEVICE_ORDER, None when unset. `unreadable`: GPUs of this machine beside `infos`. Raises UsageError where the
    choice is open (never all of several by accident) or a chosen GPU cannot be read.
    """
    here = _Here(infos, unreadable)
    if asked:
        return _each_once(here.by_uuid(name.strip(), "--gpu") for name in asked)
    if visible is not None:
        return _visible(here, visible, order)
    if len(infos) == 1:
        return [infos[0].uuid]
    raise UsageError(f"{len(infos)} GPUs are here and none was chosen: pass --gpu with the server's ({here})")


@dataclass(frozen=True)
class _Here:
    """A machine's GPUs, to be chosen from."""

    infos: Sequence[GpuInfo]
    unreadable: Sequence[UnreadableGpu]

    def by_uuid(self, name: str, where: str) -> str:
        if name.startswith("MIG-"):
            raise UsageError(
                f"{where} names the MIG slice {name}, whose energy cannot be told from its GPU's: name a GPU"
            )
        fitting = [info.uuid for info in self.infos if name and info.uuid.startswith(name)]
        if name in fitting:
            return name
        lost = [gpu for gpu in self.unreadable if name and (gpu.uuid or "").startswith(name)]
        if lost and not fitting:
            raise UsageError(f"{where} {name!r}: {lost[0]}: choose from {self}")
        if len(fitting) + len(lost) != 1:
            fits = f"fits {len(fitting) + len(lost)} GPUs" if fitting else "fits no GPU"
            raise UsageError(f"{where} {name!r} {fits} here: choose from {self}")
        return fitting[0]

    def of_number(self, number: int) -> str:
        """The UUID of the GPU with that number by PCI bus."""
        for gpu in self.unreadable:
            if gpu.index == number:
                raise UsageError(f"CUDA_VISIBLE_DEVICES names GPU {number}: {gpu}: pass --gpu ({self})")
        for info in self.infos:
            if info.index == number:
                return info.uuid
        raise UsageError(f"CUDA_VISIBLE_DEVICES names GPU {number}, which is not here: pass --gpu ({self})")

    def __str__(self) -> str:
        readable = ", ".join(f"{info.uuid} {info.name}" for info in self.infos) or "none"
        return "; ".join([readable, *map(str, self.unreadable)])


def _visible(here: _Here, visible: str, order: str | None) -> list[str]:
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if not names or names[0] == "-1":
        raise UsageError(f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU: pass --gpu UUID to measure one anyway")
    return _each_once(_of_visible(here, name, order) for name in names)


def _of_visible(here: _Here, name: str, order: str | None) -> str:
    """The UUID of one entry of CUDA_VISIBLE_DEVICES: an index or a UUID."""
    if not name.isdecimal():
        return here.by_uuid(name, "CUDA_VISIBLE_DEVICES")
    # CUDA numbers the fastest first unless told otherwise, NVML by PCI bus: the same for GPUs of one kind only.
    if order != "PCI_BUS_ID" and len({info.name for info in here.infos}) > 1:
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES names GPU {name} by number and the GPUs here differ, so that CUDA may count them in "
            f"another order: set CUDA_DEVICE_ORDER=PCI_BUS_ID or pass --gpu ({here})"
        )
    return here.of_number(int(name))


def _each_once(uuids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(uuids))
