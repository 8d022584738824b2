"""PowerFeed: an exporter's samples, pulled in the background, with times on this process's clock."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from time import monotonic_ns
from typing import TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from loadgen.bounds import MOST_EXPORTER_BYTES
from loadgen.errors import UsageError
from loadgen.httpget import Connection
from loadgen.power.sample import ClockOffset, GpuInfo, PowerSample, SourceKind, boot_id
from loadgen.power.trace import Calibration
from loadgen.power.wire import REACH_NS, ClockReading, Gpus, SamplePage

EXCHANGES = 20


def measure_offset(
    read: Callable[[], ClockReading], *, own_boot_id: str | None, now_ns: Callable[[], int] = monotonic_ns
) -> ClockOffset:
    """The offset by the quickest of 20 exchanges: the exporter read its clock between our two readings.

    An equal boot id means one shared clock, unless the readings contradict it (time namespaces). Raises what `read`
    raises.
    """
    exchanges = []
    for _ in range(EXCHANGES):
        before_ns = now_ns()
        theirs = read()
        exchanges.append((before_ns, theirs, now_ns()))
    return clock_offset(exchanges, own_boot_id=own_boot_id)


def clock_offset(exchanges: Iterable[tuple[int, ClockReading, int]], *, own_boot_id: str | None) -> ClockOffset:
    """The offset by the quickest of exchanges: what the other clock read between two readings of ours."""
    shared = True
    offsets: list[tuple[int, int]] = []
    for before_ns, theirs, after_ns in exchanges:
        shared &= theirs.boot_id is not None and theirs.boot_id == own_boot_id
        shared &= before_ns <= theirs.monotonic_ns <= after_ns
        offsets.append((after_ns - before_ns, theirs.monotonic_ns - (before_ns + after_ns) // 2))
    if shared:
        return ClockOffset(offset_ns=0, bound_ns=0, same_machine=True)
    took_ns, offset_ns = min(offsets, key=itemgetter(0))
    return ClockOffset(offset_ns=offset_ns, bound_ns=(took_ns + 1) // 2, same_machine=False)


PERIOD_S = 0.5
HURRY_S = 0.05
"""The period while a caller waits in `drain_until`."""
CLOCK_EVERY_S = 60.0
"""Two quartz clocks drift apart by at most about 6 ms in between (100 ppm)."""
TIMEOUT_S = 5.0
_FAILURES = (OSError, http.client.HTTPException, msgspec.DecodeError, UnicodeDecodeError, RecursionError)
T = TypeVar("T")


class PowerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Where the samples come from."""

    source: SourceKind
    simulated: bool
    gpus: tuple[GpuInfo, ...]
    """Those that were asked for."""
    calibration: dict[str, Calibration | None]
    """By UUID; None where the exporter has not sampled enough for it yet."""
    clock: ClockOffset
    latest: dict[str, PowerSample] = {}
    """By UUID: the newest full reading before the first sample, with the GPU's processes."""
    server_pid: int | None = None
    """The server whose own sensors these are."""


class PowerFeed:
    """Samples of an exporter's GPUs; `gpus` are UUIDs, None for all that it samples."""

    def __init__(self, url: str, gpus: Sequence[str] | None = None) -> None:
        """Raises UsageError for a malformed `url` (http://host:port, a path may follow)."""
        self._url = url.rstrip("/")
        self._asked = tuple(gpus) if gpus is not None else None
        try:
            parts = urlsplit(self._url)
            if parts.query or parts.fragment:
                raise ValueError
            self._connection = Connection(self._url, timeout_s=TIMEOUT_S)
        except ValueError:
            raise UsageError(f"exporter URL {self._url} is malformed; write http://host:port") from None
        self._path = parts.path
        self._seq: int | None = None
        self.clock = ClockOffset(offset_ns=0, bound_ns=0, same_machine=False)
        """As last measured."""
        self._news = threading.Condition()
        self._samples: list[PowerSample] = []
        self._newest_ns: dict[str, int] = {}
        self._waiting = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.lost = 0
        """Samples that the exporter forgot before they were pulled."""
        self.failures = 0
        """Pulls that failed; a later pull gets what they missed."""

    def connect(self) -> PowerFacts:
        """Read the exporter's facts and compare clocks; samples count from here.

        Raises UsageError, one sentence, when there is no exporter or it does not sample a GPU that was asked for.
        """
        try:
            self.clock = self._measure_clock()
            facts = self._ask("/gpus", Gpus)
            infos = self._pick(facts.gpus)
            self._seq = self._ask("/samples", SamplePage).next
        except _FAILURES as error:
            why = str(error) or type(error).__name__
            sentence = f"no power exporter answers at {self._url} ({why}); start `loadgen exporter` there"
            raise UsageError(sentence) from None
        finally:
            self._connection.close()
        self._newest_ns = {info.uuid: 0 for info in infos}
        return PowerFacts(
            source=facts.source,
            simulated=facts.simulated,
            gpus=infos,
            calibration={info.uuid: facts.calibration.get(info.uuid) for info in infos},
            clock=self.clock,
            latest={info.uuid: facts.latest[info.uuid] for info in infos if info.uuid in facts.latest},
            server_pid=facts.server_pid,
        )

    def start(self) -> None:
        """Pull in the background from now on; `connect` comes first."""
        if self._seq is None:
            raise RuntimeError("PowerFeed.start() before connect()")
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="power-feed", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Pull a last time and end; samples can still be taken."""
        if self._thread is None:
            return
        with self._news:
            self._stopping = True
            self._news.notify_all()
        self._thread.join()
        self._thread = None

    def take(self) -> list[PowerSample]:
        """The samples since the last call, oldest first, `t_ns` on our CLOCK_MONOTONIC."""
        with self._news:
            samples, self._samples = self._samples, []
        return samples

    def drain_until(self, t_ns: int, timeout_s: float) -> bool:
        """Wait until samples of every GPU reach REACH_NS beyond `t_ns`; False when they did not within `timeout_s`."""
        with self._news:
            self._waiting += 1
            self._news.notify_all()
            try:
                return self._news.wait_for(lambda: self._reaches(t_ns + REACH_NS), timeout_s)
            finally:
                self._waiting -= 1

    def _reaches(self, t_ns: int) -> bool:
        return all(newest_ns > t_ns for newest_ns in self._newest_ns.values())

    def _pick(self, infos: tuple[GpuInfo, ...]) -> tuple[GpuInfo, ...]:
        if self._asked is None:
            return infos
        known = {info.uuid: info for info in infos}
        for uuid in self._asked:
            if uuid not in known:
                raise UsageError(f"GPU {uuid} is not sampled by {self._url}; it samples {', '.join(known) or 'none'}")
        return tuple(known[uuid] for uuid in self._asked)

    def _measure_clock(self) -> ClockOffset:
        return measure_offset(lambda: self._ask("/clock", ClockReading), own_boot_id=boot_id())

    def _ask(self, path: str, kind: type[T], **query: object) -> T:
        """GET; raises OSError, HTTPException or DecodeError when the response is not a `kind`."""
        target = f"{self._path}{path}?{urlencode(query, safe=',')}" if query else f"{self._path}{path}"
        response = self._connection.get(target, MOST_EXPORTER_BYTES)
        if response.status != 200:
            raise http.client.HTTPException(f"{path} answers {response.status}")
        return msgspec.json.decode(response.body, type=kind)

    def _run(self) -> None:
        clock_due_s = time.monotonic() + CLOCK_EVERY_S
        while True:
            stopping = self._stopping
            try:
                if not self.clock.same_machine and time.monotonic() >= clock_due_s:
                    self.clock = self._measure_clock()
                    clock_due_s = time.monotonic() + CLOCK_EVERY_S
                more = self._pull()
            except _FAILURES:
                more = False
                self.failures += 1
                self._connection.close()
            if stopping and not more:
                break
            if not more:
                self._pause()
        self._connection.close()

    def _pause(self) -> None:
        """Half a second, cut short when a caller begins to wait."""
        with self._news:
            if not self._waiting:
                self._news.wait_for(lambda: self._stopping or self._waiting, PERIOD_S)
            elif not self._stopping:
                self._news.wait_for(lambda: self._stopping, HURRY_S)

    def _pull(self) -> bool:
        """Append one page; True when more is there already."""
        assert self._seq is not None
        page = self._ask("/samples", SamplePage, since=self._seq, gpu=",".join(self._newest_ns))
        if page.next < self._seq:
            self._seq = 0
            return True
        self._seq = page.next
        samples = page.samples
        if offset_ns := self.clock.offset_ns:
            samples = tuple(msgspec.structs.replace(sample, t_ns=sample.t_ns - offset_ns) for sample in samples)
        with self._news:
            self.lost += page.lost
            self._samples += samples
            for sample in samples:
                self._newest_ns[sample.gpu] = sample.t_ns
            self._news.notify_all()
        return page.more
