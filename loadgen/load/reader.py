"""Reader: reads all sockets of an event loop. That of reader.c where there is a C compiler, else one in Python."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
from abc import ABC, abstractmethod
from ctypes import string_at
from time import monotonic_ns, sleep
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from loadgen.bounds import MOST_ANSWER_BYTES
from loadgen.load.clockreading import OLDEST_READING_NS, ClockReading, read_clocks
from loadgen.load.compiled import CHUNK_BYTES, Event, compiled
from loadgen.load.pieces import Pieces

if TYPE_CHECKING:
    from loadgen.load.kernelstamps import StampedTransport

MOST_WAIT_NS, LEAST_WAIT_NS, WAIT_SHARE = 200_000, 100_000, 1_000
"""How long the compiled reader waits for more before it reads: one part in so many of the time that an answer takes,
within these. What is there has the kernel's stamp, and costs less where more is read at a time. It does not wait while
answers begin and end."""
_SLOWER = 16


class Kept:
    """Whole chunks of an answer, in memory that reader.c has given up."""

    __slots__ = ("_event", "_library", "wire_bytes")

    def __init__(self, library: ctypes.CDLL, event: Event) -> None:
        self._library, self._event = library, event
        self.wire_bytes = event.wire_size
        """With their framing."""

    def pieces(self) -> Pieces:
        """Their data. Copied only now: an answer's end holds up the next request."""
        body = string_at(self._event.data or 0, self._event.data_size)
        places = np.frombuffer(string_at(self._event.chunks or 0, CHUNK_BYTES * self._event.count), dtype=np.int64)
        return Pieces(body, places.reshape(-1, 3))

    def __del__(self) -> None:
        self._library.reader_free(self._event.data, self._event.chunks)


class Receiver(Protocol):
    """What gets what a connection reads, as asyncio.Protocol does."""

    def chunks_received(self, kept: Kept) -> None:
        """What came first, if any was kept (`StampedTransport.keep_chunks`)."""
        ...

    def stamped_data_received(self, data: bytes, t_ns: int, realtime_ns: int) -> None:
        """`t_ns`: when it was read; `realtime_ns`: when its last byte came; 0 where the kernel gave no stamp."""
        ...

    def connection_lost(self, exc: Exception | None) -> None: ...


class Reader(ABC):
    """Reads the sockets of one event loop, in an epoll of their own that the loop watches as one file.

    A reader that uvloop calls for the socket itself is not always called when the peer resets the connection: in
    tests/integration/test_faults.py 10 of 19 resets then ended as timeouts."""

    of_loop: ClassVar[dict[asyncio.AbstractEventLoop, Reader]] = {}

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transports: dict[int, StampedTransport] = {}
        self._clocks: ClockReading | None = None
        loop.add_reader(self._fileno(), self._read)

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Reader:
        """The loop's, made for its first socket and closed with its last."""
        if loop not in cls.of_loop:
            library = compiled()
            cls.of_loop[loop] = PythonReader(loop) if library is None else CompiledReader(loop, library)
        return cls.of_loop[loop]

    def add(self, fd: int, transport: StampedTransport) -> None:
        """It gets what `fd` brings, and is told when it can be written to again or has ended. Raises OSError."""
        self._register(fd)
        self._transports[fd] = transport

    def remove(self, fd: int) -> None:
        self._unregister(fd)
        del self._transports[fd]
        if not self._transports:
            self._loop.remove_reader(self._fileno())
            self._close()
            self.of_loop.pop(self._loop, None)

    def clocks(self) -> ClockReading:
        """Both clocks, read at most once between two polls, unless these are far apart."""
        if self._clocks is None or monotonic_ns() - self._clocks.monotonic_ns > OLDEST_READING_NS:
            self._clocks = read_clocks()
        return self._clocks

    @abstractmethod
    def want_to_write(self, fd: int, *, wanted: bool) -> None: ...

    @abstractmethod
    def _fileno(self) -> int: ...

    @abstractmethod
    def _register(self, fd: int) -> None: ...

    @abstractmethod
    def _unregister(self, fd: int) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _read(self) -> None:
        """Reads what can be read."""


class CompiledReader(Reader):
    """The reader of reader.c: Python sees an answer's head, and its end with all that came between."""

    def __init__(self, loop: asyncio.AbstractEventLoop, library: ctypes.CDLL) -> None:
        self._library = library
        self._reader = library.reader_open()
        if not self._reader:
            raise OSError("no memory, or no file descriptor, for the reader")
        self._events = library.reader_events(self._reader)
        self._wait_ns = self._seen = 0
        super().__init__(loop)

    def want_to_write(self, fd: int, *, wanted: bool) -> None:
        _check(self._library.reader_write_wanted(self._reader, fd, wanted))

    def keep_chunks(self, fd: int, taken: int) -> None:
        """As `StampedTransport.keep_chunks`."""
        event = self._library.reader_keep(self._reader, fd, taken, MOST_ANSWER_BYTES)
        if event:
            self._see(event.contents, self._transports[fd])

    def has_kept(self, fd: int) -> bool:
        return bool(self._library.reader_has_kept(self._reader, fd))

    def give(self, fd: int, receiver: Receiver) -> None:
        """As `StampedTransport.give`."""
        self._give(self._library.reader_take(self._reader, fd).contents, receiver)

    def _fileno(self) -> int:
        return int(self._library.reader_fileno(self._reader))

    def _register(self, fd: int) -> None:
        _check(self._library.reader_add(self._reader, fd))

    def _unregister(self, fd: int) -> None:
        self._library.reader_remove(self._reader, fd)

    def _close(self) -> None:
        self._library.reader_close(self._reader)

    def answered(self, e2e_ns: int) -> None:
        """An answer that the kernel stamped took so long, and none is due at a time of its own."""
        wait_ns = min(MOST_WAIT_NS, e2e_ns // WAIT_SHARE)
        self._wait_ns = min(wait_ns, self._wait_ns + max(1, wait_ns // _SLOWER))

    def _read(self) -> None:
        if self._wait_ns >= LEAST_WAIT_NS and not self._seen:
            sleep(self._wait_ns / 1e9)
        self._clocks, transports, events = None, self._transports, self._events
        self._seen = self._library.reader_poll(self._reader, MOST_ANSWER_BYTES)
        for k in range(self._seen):
            if not transports:  # an earlier one of these events closed the last, and with it the reader
                return
            transport = transports.get(events[k].fd)
            if transport is not None:  # else an earlier one closed it
                self._see(events[k], transport)

    def _see(self, event: Event, transport: StampedTransport) -> None:
        lost, error = event.lost, event.error
        if event.writable:
            transport.send_rest()
        if transport.is_open:
            self._give(event, transport.receiver)
        if lost:
            transport.lose(OSError(error, os.strerror(error)) if error else None)

    def _give(self, event: Event, receiver: Receiver) -> None:
        """What the connection's memory holds is taken first: the receiver may close it."""
        data = string_at(event.begun or 0, event.begun_size) if event.begun_size else b""
        t_ns, realtime_ns = event.t_ns, event.realtime_ns
        if event.count:
            own = Event.from_buffer_copy(event)
            self._library.reader_release(self._reader, event.fd)
            receiver.chunks_received(Kept(self._library, own))
        if data:
            receiver.stamped_data_received(data, t_ns, realtime_ns)


def _check(error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))


class PythonReader(Reader):
    """Keeps no chunks: every read goes to the receiver."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        super().__init__(loop)

    def want_to_write(self, fd: int, *, wanted: bool) -> None:
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def _fileno(self) -> int:
        return self._epoll.fileno()

    def _register(self, fd: int) -> None:
        self._epoll.register(fd, select.EPOLLIN)

    def _unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def _close(self) -> None:
        self._epoll.close()

    def _read(self) -> None:
        self._clocks, transports = None, self._transports
        for fd, events in self._epoll.poll(0):
            transport = transports.get(fd)
            if transport is not None:  # else an earlier one of these events closed it
                transport.ready(events)
