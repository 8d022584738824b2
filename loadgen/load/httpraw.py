"""HttpRaw: the stream of one answer over HTTP, as it arrived."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from loadgen.bounds import MOST_ANSWER_BYTES
from loadgen.load.alike import Alike, alike_events
from loadgen.load.clockreading import MOST_STEP_NS, ClockReading
from loadgen.load.exchange import Raw, Request, Status
from loadgen.load.pieces import Ints, Pieces
from loadgen.load.reader import Kept
from loadgen.load.sse import GZIP_MAGIC, split_events, undone

_LINE_FEED = ord("\n")


class HttpRaw(Raw):
    """A stream as it arrived: what each read brought of the body, and when."""

    __slots__ = ("_earlier", "_end_clock", "clock", "coding", "read_realtime_ns", "read_t_ns", "reads")

    def __init__(self, request: Request, slot: int) -> None:
        self.reads: list[bytes | tuple[bytes, ...]] = []
        """Bytes: one whole chunk, with its framing; else the pieces of the body."""
        self.read_t_ns: list[int] = []
        """By the process."""
        self.read_realtime_ns: list[int] = []
        """By the kernel; 0: not stamped."""
        self._earlier: list[Pieces | Kept] = []
        """What came before `reads`."""
        self.clock: ClockReading | None = None
        """Just before it was sent; None: the kernel is not asked."""
        self._end_clock: ClockReading | None = None
        self.coding = ""
        """By its Content-Encoding field."""
        super().__init__(request, slot)

    def came(self, read: bytes | tuple[bytes, ...], t_ns: int, realtime_ns: int = 0) -> None:
        """A read."""
        self.reads.append(read)
        self.read_t_ns.append(t_ns)
        self.read_realtime_ns.append(realtime_ns)

    def kept(self, kept: Kept) -> None:
        """Reads that brought whole chunks."""
        if self.reads:
            self._earlier.append(self._pieces())
            self.reads, self.read_t_ns, self.read_realtime_ns = [], [], []
        self._earlier.append(kept)

    @property
    def begun(self) -> bool:
        """Some of the body has come."""
        return bool(self._earlier) or any(self.reads)

    def ended(self, t_ns: int, failure: tuple[Status, str] | None, clock: ClockReading | None = None) -> None:
        """At `t_ns`, where it failed, else with its last byte; `clock`: then. `events` and `error_body` correct it by
        the kernel's stamps, which is not to hold up the slot's next request."""
        self.failure, self.t_end_ns, self._end_clock = failure, t_ns, clock

    def _stamped(self, pieces: Pieces) -> Ints:
        """When the read of each came. The kernel's stamps count if every read has one, the realtime clock was not set
        meanwhile, and they lie between the sending and the process's own."""
        end, self._end_clock = self._end_clock, None
        _, by_process, stamps = pieces.places.T
        if end is not None and self.clock is not None and len(stamps) and stamps.all() and self.clock.agrees(end):
            first_ns, last_ns = stamps.item(0) - self.clock.offset_ns, stamps.item(-1) - self.clock.offset_ns
            slack_ns = MOST_STEP_NS + self.clock.error_ns
            if first_ns >= self.t_send_ns - slack_ns and last_ns <= by_process.item(-1) + slack_ns:
                self.stamps = "kernel"
                if self.failure is None:
                    self.t_end_ns = last_ns
        if self.clock is None or self.stamps == "process":
            return pieces.places[:, 1]
        times: Ints = stamps - self.clock.offset_ns
        return times

    def keep(self, t_ns: int, data: bytes) -> None:
        """A read that brought so much of the body."""
        self.came((data,), t_ns)

    def events(self) -> tuple[list[int], list[bytes]]:
        times, pieces = self._decoded()
        return split_events(times.tolist(), pieces.all(), ended=self.failure is None)

    def parts(self) -> tuple[list[int], list[bytes | Alike]]:
        times, pieces = self._decoded()
        return alike_events(times, pieces, ended=self.failure is None)

    def error_body(self) -> bytes:
        return self._decoded()[1].body

    def _decoded(self) -> tuple[Ints, Pieces]:
        """When the read came that brought each piece of the answer's body, and the pieces, with their content coding
        undone; none, and a failure, where that cannot be done."""
        earlier = [part.pieces() if isinstance(part, Kept) else part for part in self._earlier]
        pieces = Pieces.joined([*earlier, self._pieces()])
        times = self._stamped(pieces)
        coding = self.coding or ("gzip" if pieces.body.startswith(GZIP_MAGIC) else "")
        if not coding:
            return times, pieces
        try:
            decoded = undone(coding, pieces.all(), MOST_ANSWER_BYTES)
        except ValueError as error:
            self.failure = self.failure or ("malformed", str(error))
            return times[:0], Pieces.of([], [], [])
        return times, Pieces.of(decoded, *pieces.places.T[1:].tolist())

    def _pieces(self) -> Pieces:
        """What the transport did not keep. A read that brought nothing of the body has an empty piece."""
        if self.reads == [()]:
            return Pieces(b"", np.array([[0, self.read_t_ns[0], self.read_realtime_ns[0]]], dtype=np.int64))
        pieces: list[bytes] = []
        t_ns: list[int] = []
        realtime_ns: list[int] = []
        begin = 0
        for kind, some in groupby(self.reads, type):
            reads: list[Any] = list(some)
            end = begin + len(reads)
            if kind is bytes:
                pieces += [read[4:-2] if read[3] == _LINE_FEED else read[5:-2] for read in reads]
                t_ns += self.read_t_ns[begin:end]
                realtime_ns += self.read_realtime_ns[begin:end]
            else:
                for place, read in enumerate(reads, begin):
                    pieces += read or (b"",)
                    t_ns += [self.read_t_ns[place]] * (len(read) or 1)
                    realtime_ns += [self.read_realtime_ns[place]] * (len(read) or 1)
            begin = end
        return Pieces.of(pieces, t_ns, realtime_ns)
