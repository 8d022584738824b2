"""Kernel stamps: when the last byte of a read reached this machine, however late the process reads it.

Linux stamps every TCP segment on arrival (`SO_TIMESTAMPING`, Documentation/networking/timestamping.rst). `recvmsg` on a
stream gives the stamp of the last byte that it returns, on the realtime clock; a `ClockReading` carries it to
CLOCK_MONOTONIC. A read that brings several segments has the stamp of the last one only.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
import sys
from time import monotonic_ns, time_ns
from typing import ClassVar, NamedTuple, Protocol

SO_TIMESTAMPING = 37
RX_SOFTWARE_AND_REPORT = 1 << 3 | 1 << 4
"""SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE of linux/net_tstamp.h."""
_ANCILLARY_BYTES = 128
"""One control message of three `struct timespec`, and room for another."""
seconds_and_ns = struct.Struct("ll").unpack_from
LEAST_READ, MOST_READ = 512, 1 << 16
"""Bytes. A token's event has 200 to 450; a read takes more only while reads come back full."""
_READABLE = int(select.EPOLLIN) if sys.platform == "linux" else 1
_TRIES = 4
_GOOD_NS = 2_000
MOST_STEP_NS = 50_000
"""Two offsets further apart than this, beyond what their readings leave open, mean that the realtime clock was set.
Slewing moves both clocks alike."""


OLDEST_READING_NS = 5_000_000
"""A request is sent with a reading that is no older: in an idle minute the clocks may drift apart."""


class ClockReading(NamedTuple):
    """One instant by both clocks, in ns, and how far apart the two readings may be."""

    monotonic_ns: int
    realtime_ns: int
    error_ns: int

    @property
    def offset_ns(self) -> int:
        """Realtime minus monotonic."""
        return self.realtime_ns - self.monotonic_ns

    def agrees(self, other: ClockReading) -> bool:
        """The realtime clock was not set between the two."""
        return abs(self.offset_ns - other.offset_ns) <= MOST_STEP_NS + self.error_ns + other.error_ns


def read_clocks() -> ClockReading:
    """Now: the closest of up to four readings of one clock between two of the other."""
    best = ClockReading(0, 0, 1 << 62)
    for _ in range(_TRIES):
        before_ns = monotonic_ns()
        wall_ns = time_ns()
        after_ns = monotonic_ns()
        error_ns = (after_ns - before_ns + 1) // 2
        if error_ns < best.error_ns:
            best = ClockReading((before_ns + after_ns) // 2, wall_ns, error_ns)
        if error_ns <= _GOOD_NS:
            break
    return best


class Receiver(Protocol):
    """What reads a connection, as asyncio.Protocol."""

    def stamped_data_received(self, data: bytes, realtime_ns: int) -> None:
        """`realtime_ns`: when its last byte came; 0 where the kernel gave no stamp."""
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
            return StampedTransport(loop, sock, receiver)
    raise failure or OSError(f"{host} has no address")


class _Poller:
    """The sockets of one event loop, in an epoll of their own that the loop watches as one file.

    A reader that uvloop calls for the socket itself is not always called when the peer resets the connection: in
    tests/integration/test_faults.py 10 of 19 resets then ended as timeouts."""

    of_loop: ClassVar[dict[asyncio.AbstractEventLoop, _Poller]] = {}

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._transports: dict[int, StampedTransport] = {}
        self._clocks: ClockReading | None = None
        loop.add_reader(self._epoll.fileno(), self._poll)

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Poller:
        """The loop's, made for its first socket and closed with its last."""
        if loop not in cls.of_loop:
            cls.of_loop[loop] = cls(loop)
        return cls.of_loop[loop]

    def add(self, fd: int, transport: StampedTransport) -> None:
        """It gets the events of `fd`, whenever that can be read or has failed."""
        self._transports[fd] = transport
        self._epoll.register(fd, select.EPOLLIN)

    def want_to_write(self, fd: int, *, wanted: bool) -> None:
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def remove(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._transports[fd]
        if not self._transports:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            del self.of_loop[self._loop]

    def clocks(self) -> ClockReading:
        """Both clocks, read at most once between two polls, unless these are far apart."""
        if self._clocks is None or monotonic_ns() - self._clocks.monotonic_ns > OLDEST_READING_NS:
            self._clocks = read_clocks()
        return self._clocks

    def _poll(self) -> None:
        self._clocks, transports = None, self._transports
        for fd, events in self._epoll.poll(0):
            transport = transports.get(fd)
            if transport is not None:  # else an earlier one of these events closed it
                transport.ready(events)


class StampedTransport:
    """A TCP connection whose reads carry the kernel's stamp. Its methods are those of asyncio.Transport."""

    __slots__ = ("_open", "_poller", "_read_bytes", "_receive", "_receiver", "_sock", "_unsent", "_waits")

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, receiver: Receiver) -> None:
        self._sock = sock
        self._receiver = receiver
        self._receive = sock.recvmsg
        self._read_bytes = LEAST_READ
        self._unsent = b""
        self._waits = False
        self._open = True
        self._poller = _Poller.of(loop)
        self._poller.add(sock.fileno(), self)

    def write(self, data: bytes) -> None:
        """Sends at once what the socket takes, and the rest as soon as it takes more."""
        if self._waits:
            self._unsent += data
        elif self._open:
            self._send(data)

    def clocks(self) -> ClockReading:
        """Both clocks, about now: after the latest stamp, and before the next."""
        return self._poller.clocks()

    def abort(self) -> None:
        if self._open:
            self._open = False
            self._poller.remove(self._sock.fileno())
            self._sock.close()

    def ready(self, events: int) -> None:
        """Reads, and again at once while reads come back full: up to `MOST_READ`, then it is others' turn."""
        if events != _READABLE:
            if events & select.EPOLLOUT:
                self._send(self._unsent)
            if not events & ~select.EPOLLOUT or not self._open:
                return
        receive, size = self._receive, self._read_bytes
        while True:
            try:
                data, ancillary, _, _ = receive(size, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(error)
                return
            if not data:
                self._lose(None)
                return
            realtime_ns = 0
            if ancillary:
                seconds, ns = seconds_and_ns(ancillary[0][2])
                realtime_ns = seconds * 1_000_000_000 + ns
            self._receiver.stamped_data_received(data, realtime_ns)
            if len(data) < size:
                if size != LEAST_READ:
                    self._read_bytes = LEAST_READ
                return
            self._read_bytes = min(2 * size, MOST_READ)
            if size == MOST_READ or not self._open:
                return
            size = self._read_bytes

    def _send(self, data: bytes) -> None:
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(error)
            return
        if sent == len(data) and not self._waits:
            return
        self._unsent = data[sent:]
        waits = bool(self._unsent)
        if self._waits != waits:
            self._waits = waits
            self._poller.want_to_write(self._sock.fileno(), wanted=waits)

    def _lose(self, error: OSError | None) -> None:
        self.abort()
        self._receiver.connection_lost(error)
