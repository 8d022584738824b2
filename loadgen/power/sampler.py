"""Sampler: a thread that reads a machine's power sensors on absolute deadlines and keeps the recent samples.

Selection: which of a machine's GPUs are measured.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import msgspec
import numpy as np

from loadgen.errors import UsageError
from loadgen.power.sample import GPU_LOST, GpuInfo, GpuLostError, PowerReader, PowerSample, UnreadableGpu

PERIOD_S = 0.02
SLOW_PERIOD_S = 1.0
HISTORY_S = 900.0
LATENESS_TICKS = 100_000
DARK_S = 5.0
"""After this long without an energy field from any GPU the sensors are opened again,"""
REOPEN_FIRST_S = 1.0
REOPEN_MOST_S = 60.0
"""each time after twice as long, from the first of these to the second."""


class SamplerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How well a sampler has kept its time since its start."""

    period_s: float
    ticks: int
    """Deadlines that were kept."""
    ticks_missed: int
    """Deadlines that passed while it was still reading or not scheduled; they are skipped."""
    lateness_ms_p50: float | None
    """Delay from deadline to the begin of a reading, over the last 100,000 ticks."""
    lateness_ms_p99: float | None
    lateness_ms_max: float | None
    slow_reads: dict[str, int]
    """UUID -> readings dropped because they took longer than the period: their time is too uncertain."""
    lost: dict[str, str]
    """UUID -> why the GPU no longer answers."""


class Sampler:
    """Samples `uuids` every `period_s`, all fields every `slow_period_s`, from start() to stop(); a context manager.

    Samples are numbered from 0 in the order taken; the last `history_s` of them are kept. The last sample of a lost GPU
    has no reading and the loss in its errors. The reader belongs to the thread until stop().

    When no GPU has given an energy field for DARK_S, `say` gets one line, `reopen` is called until it helps, and `say`
    gets a second line when readings are back.
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
        self._energy_ns = time.monotonic_ns()
        self._reopen_due_ns: int | None = None
        """None while the sensors answer."""
        self._reopen_wait_s = 0.0
        self._period_ns = round(period_s * 1e9)
        self._slow_period_s = slow_period_s
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
        """Ends the thread; the samples can still be read."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def since(self, sequence: int) -> tuple[int, int, list[PowerSample]]:
        """(the number to ask with next time, how many were too old to be kept, the samples from `sequence` on).

        Raises RuntimeError when the thread has failed.
        """
        with self._lock:
            if self._failure is not None:
                raise RuntimeError(f"the power sampler has stopped: {self._failure!r}") from self._failure
            oldest = self._next - len(self._ring)
            first = min(max(sequence, oldest), self._next)
            samples = [self._ring[number % self._capacity] for number in range(first, self._next)]
            return self._next, max(0, oldest - max(sequence, 0)), samples

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
                self._slow_due_ns[uuid] = sample.t_ns + round(self._slow_period_s * 1e9)
        with self._lock:
            self._ticks += 1
            self._lateness_ns.append(max(0, late_ns))
            for sample in samples:
                if len(self._ring) < self._capacity:
                    self._ring.append(sample)
                else:
                    self._ring[self._next % self._capacity] = sample
                self._next += 1
        self._revive(samples)

    def _revive(self, samples: Sequence[PowerSample]) -> None:
        """Reports sensors that stopped answering, opens them again, and reports their return."""
        now_ns = time.monotonic_ns()
        if any(sample.has_energy for sample in samples):
            if self._reopen_due_ns is not None:
                self._say(f"the power sensors answer again after {(now_ns - self._energy_ns) / 1e9:.0f} s")
                self._reopen_due_ns = None
            self._energy_ns = now_ns
            return
        if now_ns - self._energy_ns < DARK_S * 1e9:
            return
        if self._reopen_due_ns is None:
            again = ": trying again until they answer" if self._reopen is not None else ""
            self._say(f"{dark_reason(self._newest(), DARK_S)}{again}")
            self._reopen_due_ns, self._reopen_wait_s = now_ns, REOPEN_FIRST_S
        if self._reopen is not None and now_ns >= self._reopen_due_ns:
            with contextlib.suppress(Exception):  # whatever is wrong, it is tried again
                self._reopen()
            with self._lock:
                self._active = list(self._uuids)
                self._lost.clear()
            self._reopen_due_ns = time.monotonic_ns() + round(self._reopen_wait_s * 1e9)
            self._reopen_wait_s = min(2 * self._reopen_wait_s, REOPEN_MOST_S)

    def _newest(self) -> list[PowerSample]:
        """As many of the newest samples as there are GPUs, the newest first."""
        count = min(len(self._uuids), len(self._ring))
        return [self._ring[(self._next - back) % self._capacity] for back in range(1, count + 1)]


def dark_reason(samples: Sequence[PowerSample], dark_s: float) -> str:
    """The sentence for sensors that gave no energy field for `dark_s`, with the errors of the newest `samples`."""
    errors = dict.fromkeys(error for sample in samples for error in sample.errors)
    return f"no GPU reported energy or power for {dark_s:g} s" + (f" ({'; '.join(errors)})" if errors else "")


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
    CUDA_DEVICE_ORDER, None when unset. `unreadable`: this machine's GPUs that are not in `infos`. Raises UsageError
    where the choice is open (never all of several by accident) or a chosen GPU cannot be read.
    """
    machine = _Machine(infos, unreadable)
    if asked:
        return list(dict.fromkeys(machine.by_uuid(name.strip(), "--gpu") for name in asked))
    if visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        if not names or names[0] == "-1":
            raise UsageError(f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU: pass --gpu UUID to measure one anyway")
        return list(dict.fromkeys(machine.visible(name, order) for name in names))
    if len(infos) == 1:
        return [infos[0].uuid]
    raise UsageError(
        f"this machine has {len(infos)} GPUs and none was chosen: pass --gpu with the server's ({machine})"
    )


@dataclass(frozen=True)
class _Machine:
    """The GPUs to choose from."""

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
            raise UsageError(f"{where} {name!r} {fits} of this machine: choose from {self}")
        return fitting[0]

    def visible(self, name: str, order: str | None) -> str:
        """The UUID of one entry of CUDA_VISIBLE_DEVICES: an index by PCI bus, or a UUID."""
        if not name.isdecimal():
            return self.by_uuid(name, "CUDA_VISIBLE_DEVICES")
        # CUDA numbers the fastest first unless told otherwise, NVML by PCI bus: the same for GPUs of one kind only.
        if order != "PCI_BUS_ID" and len({info.name for info in self.infos}) > 1:
            raise UsageError(
                f"CUDA_VISIBLE_DEVICES names GPU {name} by number and this machine's GPUs differ, so CUDA may count "
                f"them in another order: set CUDA_DEVICE_ORDER=PCI_BUS_ID or pass --gpu ({self})"
            )
        for gpu in self.unreadable:
            if gpu.index == int(name):
                raise UsageError(f"CUDA_VISIBLE_DEVICES names GPU {int(name)}: {gpu}: pass --gpu ({self})")
        for info in self.infos:
            if info.index == int(name):
                return info.uuid
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES names GPU {int(name)}, which this machine does not have: pass --gpu ({self})"
        )

    def __str__(self) -> str:
        readable = ", ".join(f"{info.uuid} {info.name}" for info in self.infos) or "none"
        return "; ".join([readable, *map(str, self.unreadable)])
