"""Kernel stamps: when the last byte of a read reached this machine, however late the process reads it.

Linux stamps every TCP segment on arrival (`SO_TIMESTAMPING`, Documentation/networking/timestamping.rst). `recvmsg` on a
stream gives the stamp of the last byte that it returns, on the realtime clock; a `ClockReading` carries it to
CLOCK_MONOTONIC. A read that brings several segments has the stamp of the last one only.

A Reader reads all sockets of an event loop: that of reader.c where there is a C compiler, else one in Python.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import socket
import struct
import sys
from abc import ABC, abstractmethod
from ctypes import string_at
from time import monotonic_ns, sleep
from typing import ClassVar, NamedTuple, Protocol

from loadgen.bounds import MOST_ANSWER_BYTES
from loadgen.load.clockreading import OLDEST_READING_NS, ClockReading, read_clocks
from loadgen.load.compiled import CHUNK_BYTES, Event, compiled

SO_TIMESTAMPING = 37
RX_SOFTWARE_AND_REPORT = 1 << 3 | 1 << 4
"""SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE of linux/net_tstamp.h."""
_ANCILLARY_BYTES = 128
"""One control message of three `struct timespec`, and room for another."""
seconds_and_ns = struct.Struct("ll").unpack_from
LEAST_READ, MOST_READ = 512, 1 << 16
"""Bytes. A token's event has 200 to 450; a read takes more only while reads come back full."""
_READABLE = int(select.EPOLLIN) if sys.platform == "linux" else 1


MOST_WAIT_NS, LEAST_WAIT_NS, WAIT_SHARE = 200_000, 100_000, 1_000
"""How long the compiled reader waits for more before it reads: one part in so many of the time that an answer takes,
within these. What is there has the kernel's stamp; read later, and more at a time, it costs half. It does not wait
while answers begin and end."""
_SLOWER = 16


class Kept(NamedTuple):
    """Whole chunks of an answer that the compiled reader kept."""

    body: bytes
    """Their data."""
    chunks: bytes
    """Three integers of 64 bits each: where its data ends in `body`, and when the read of its last byte came, by the
    process and by the kernel on the realtime clock (0: not stamped)."""
    wire_bytes: int
    """With their framing."""


class Receiver(Protocol):
    """What gets what a connection reads, as asyncio.Protocol does."""

    def chunks_received(self, kept: Kept) -> None:
        """What came first, if any was kept (`StampedTransport.keep_chunks`)."""
        ...

    def stamped_data_received(self, data: bytes, t_ns: int, realtime_ns: int) -> None:
        """`t_ns`: when it was read; `realtime_ns`: when its last byte came; 0 where the kernel gave no stamp."""
        ...

    def connection_lost(self, exc: Exception | None) -> None: ...


async def open_stamped(host: str, port: int, receiver: Receiver) -> StampedTransport | None:
    """A connected transport, whose reads have a stamp where the kernel gives one; None on other systems than Linux.
    Raises OSError as connecting does."""
    if sys.platform != "linux":
        return None
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, kind, proto, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, proto)
        try:
            with contextlib.suppress(OSError):  # a sandbox may refuse it: then reads come without a stamp
                sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, RX_SOFTWARE_AND_REPORT)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return StampedTransport(Reader.of(loop), sock, receiver)
    raise failure or OSError(f"{host} has no address")


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

    @staticmethod
    def _give(event: Event, receiver: Receiver) -> None:
        """All is copied first: the receiver may close the connection, and its memory goes with it."""
        body, chunks, begun = event.data, event.chunks, event.begun
        data = string_at(begun, event.begun_size) if begun is not None and event.begun_size else b""
        t_ns, realtime_ns = event.t_ns, event.realtime_ns
        if event.count and body is not None and chunks is not None:
            wire_bytes = event.wire_size
            receiver.chunks_received(
                Kept(string_at(body, event.data_size), string_at(chunks, CHUNK_BYTES * event.count), wire_bytes)
            )
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


class StampedTransport:
    """A TCP connection whose reads carry the kernel's stamp. Its methods are those of asyncio.Transport."""

    __slots__ = ("_fd", "_read_bytes", "_reader", "_receive", "_sock", "_unsent", "_waits", "is_open", "receiver")

    def __init__(self, reader: Reader, sock: socket.socket, receiver: Receiver) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self.receiver = receiver
        self._receive = sock.recvmsg
        self._read_bytes = LEAST_READ
        self._unsent = b""
        self._waits = False
        self.is_open = True
        self._reader = reader
        reader.add(self._fd, self)

    def write(self, data: bytes) -> None:
        """Sends at once what the socket takes, and the rest as soon as it takes more."""
        if self._waits:
            self._unsent += data
        elif self.is_open:
            self._send(data)

    def clocks(self) -> ClockReading:
        """Both clocks, about now: after the latest stamp, and before the next."""
        return self._reader.clocks()

    @property
    def keeps(self) -> bool:
        """It can keep chunks; the following three are for such a one."""
        return isinstance(self._reader, CompiledReader)

    def keep_chunks(self, taken: int) -> None:
        """The receiver took so many bytes of what it got last, and a chunk begins there. From now on the transport
        keeps whole chunks, and gives them with what follows them, the answer's end as a rule; which may be now."""
        if self.is_open and isinstance(self._reader, CompiledReader):
            self._reader.keep_chunks(self._fd, taken)

    @property
    def has_kept(self) -> bool:
        return self.is_open and isinstance(self._reader, CompiledReader) and self._reader.has_kept(self._fd)

    def give(self) -> None:
        """The receiver gets what was kept, now."""
        if self.is_open and isinstance(self._reader, CompiledReader):
            self._reader.give(self._fd, self.receiver)

    def answered(self, e2e_ns: int) -> None:
        """An answer that the kernel stamped took so long: no reading need be quicker than a small part of that."""
        if isinstance(self._reader, CompiledReader):
            self._reader.answered(e2e_ns)

    def abort(self) -> None:
        if self.is_open:
            self.is_open = False
            self._reader.remove(self._fd)
            self._sock.close()

    def ready(self, events: int) -> None:
        """Reads, and again at once while reads come back full: up to `MOST_READ`, then it is others' turn."""
        if events != _READABLE:
            if events & select.EPOLLOUT:
                self.send_rest()
            if not events & ~select.EPOLLOUT or not self.is_open:
                return
        receive, size = self._receive, self._read_bytes
        while True:
            try:
                data, ancillary, _, _ = receive(size, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self.lose(error)
                return
            if not data:
                self.lose(None)
                return
            realtime_ns = 0
            if ancillary:
                seconds, ns = seconds_and_ns(ancillary[0][2])
                realtime_ns = seconds * 1_000_000_000 + ns
            self.receiver.stamped_data_received(data, monotonic_ns(), realtime_ns)
            if len(data) < size:
                if size != LEAST_READ:
                    self._read_bytes = LEAST_READ
                return
            self._read_bytes = min(2 * size, MOST_READ)
            if size == MOST_READ or not self.is_open:
                return
            size = self._read_bytes

    def send_rest(self) -> None:
        """What waited, now that the socket takes more."""
        self._send(self._unsent)

    def lose(self, error: OSError | None) -> None:
        """The connection has ended."""
        if self.is_open:
            self.abort()
            self.receiver.connection_lost(error)

    def _send(self, data: bytes) -> None:
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lose(error)
            return
        if sent == len(data) and not self._waits:
            return
        self._unsent = data[sent:]
        waits = bool(self._unsent)
        if self._waits != waits:
            self._waits = waits
            self._reader.want_to_write(self._fd, wanted=waits)
