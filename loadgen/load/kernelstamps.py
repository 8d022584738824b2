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
from time import monotonic_ns

from loadgen.load.clockreading import ClockReading
from loadgen.load.reader import CompiledReader, Reader, Receiver

SO_TIMESTAMPING = 37
RX_SOFTWARE_AND_REPORT = 1 << 3 | 1 << 4
"""SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE of linux/net_tstamp.h."""
_ANCILLARY_BYTES = 128
"""One control message of three `struct timespec`, and room for another."""
seconds_and_ns = struct.Struct("ll").unpack_from
LEAST_READ, MOST_READ = 512, 1 << 16
"""Bytes. A token's event has 200 to 450; a read takes more only while reads come back full."""
_READABLE = int(select.EPOLLIN) if sys.platform == "linux" else 1


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
