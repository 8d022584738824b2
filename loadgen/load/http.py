"""HTTP/1.1 transport: one keep-alive connection per slot. Reads are stamped by the kernel, or else by this process."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from time import monotonic_ns
from typing import cast
from urllib.parse import urljoin, urlsplit

import httptools

from loadgen.bounds import MOST_ANSWER_BYTES, shown_bytes
from loadgen.load.exchange import STOPPED, Request, Status
from loadgen.load.httpraw import HttpRaw
from loadgen.load.kernelstamps import StampedTransport, open_stamped
from loadgen.load.reader import Kept

Done = Callable[[HttpRaw], None]
_NOT_HTTP = (httptools.HttpParserError, httptools.HttpParserUpgrade)
_CHUNK_BYTES = {form % size: len(form % size) + size + 2 for form in (b"%x\r\n", b"%X\r\n") for size in range(16, 4096)}
"""The bytes of a whole chunk, with its line of the size and its end, by that line (RFC 9112, section 7.1): two digits
or three, as a token's event has."""
_HEAD_END = b"\r\n\r\n"


class Endpoint:
    """Where requests go: `POST <url>/v1/completions` or `/v1/chat/completions`."""

    def __init__(self, url: str, api: str, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.tls else 80)
        host = parts.netloc.rpartition("@")[2]
        path = parts.path.rstrip("/") + ("/v1/chat/completions" if api == "chat" else "/v1/completions")
        self._url = f"{parts.scheme}://{host}{path}"
        authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}"
            "Content-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: "
        ).encode()

    def resolved(self, location: str) -> str:
        """The URL that a redirect names, which may be relative."""
        try:
            return urljoin(self._url, location)
        except ValueError:
            return location

    def wire(self, body: bytes) -> bytes:
        """The whole request as bytes."""
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)


class HttpSlot:
    """One slot of the closed loop: a request at a time, on a connection that is kept while it works."""

    def __init__(self, endpoint: Endpoint, slot: int, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._slot = slot
        self._timeout_s = timeout_s
        self._connection: _Connection | None = None

    def send(self, request: Request, done: Done) -> None:
        """Start a request; `done` is called in the very callback that read its last byte."""
        self._start(HttpRaw(request, self._slot), done, self._timeout_s)

    def _start(self, raw: HttpRaw, done: Done, timeout_s: float) -> None:
        if self._connection is None or not self._connection.usable:
            self._connection = _Connection(self._endpoint, self._start)
        self._connection.start(raw, done, timeout_s)

    @property
    def answering(self) -> bool:
        """The request in flight has begun to be answered."""
        return self._connection is not None and self._connection.answering

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class _Connection(asyncio.Protocol):
    """One TCP connection. Nothing is parsed here but HTTP framing (httptools); after a failure it is not used again."""

    __slots__ = (
        *("_again", "_between_chunks", "_chunked", "_complete", "_connecting", "_done", "_due_s", "_endpoint"),
        *("_framed", "_keep_alive", "_keeper", "_kept", "_loop", "_now_ns", "_parser", "_pieces", "_raw"),
        *("_realtime_ns", "_received", "_timeout_s", "_timer", "_transport", "on_body", "usable"),
    )

    def __init__(self, endpoint: Endpoint, again: Callable[[HttpRaw, Done, float], None] | None = None) -> None:
        """`again` sends a request once more, with the seconds that are left of its timeout."""
        self._endpoint = endpoint
        self._again = again
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | StampedTransport | None = None
        self._keeper: StampedTransport | None = None
        """The transport, if it keeps chunks."""
        self._connecting: asyncio.Task[None] | None = None
        self._raw: HttpRaw | None = None
        self._done: Done | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timeout_s = self._due_s = 0.0
        self._pieces: list[bytes] = []
        """What this read brought of the body."""
        self.on_body = self._pieces.append
        self._parser = httptools.HttpResponseParser(self)
        self._now_ns = self._realtime_ns = 0
        self._received = 0
        self._kept = False
        """It answered another request before."""
        self._complete = False
        self._framed = False
        self._keep_alive = False
        self._between_chunks = False
        """The parser waits for a chunk to begin: fed a whole one, it would be where it is."""
        self._chunked = False
        self.usable = True

    @property
    def answering(self) -> bool:
        kept = self._keeper is not None and self._keeper.has_kept
        return self._raw is not None and (kept or self._raw.begun)

    def start(self, raw: HttpRaw, done: Done, timeout_s: float) -> None:
        self._raw, self._done = raw, done
        self._complete = self._framed = self._keep_alive = self._between_chunks = self._chunked = False
        self._received = 0
        self._pieces.clear()
        self._kept = self._transport is not None
        self._timeout_s, self._due_s = timeout_s, self._loop.time() + timeout_s
        if self._timer is None or self._timer.when() > self._due_s:
            self._set_timer(timeout_s)
        if self._transport is None:
            self._connecting = self._loop.create_task(self._connect(raw))
        else:
            self._write(raw, self._transport, kept=True)

    def _set_timer(self, in_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(in_s, self._check_time)

    def _check_time(self) -> None:
        """A request that began after the timer was set has time left: the timer is set again for it. So an answer
        that comes in time costs no timer."""
        self._timer = None
        left_s = self._due_s - self._loop.time()
        if self._raw is not None and left_s > 0:
            self._set_timer(left_s)
        else:
            self._finish(("timeout", f"no complete answer within {self._timeout_s:g} s"))

    def close(self) -> None:
        self._finish(("broken", STOPPED))
        self._abandon()

    async def _connect(self, raw: HttpRaw) -> None:
        endpoint = self._endpoint
        try:
            stamped = None if endpoint.tls else await open_stamped(endpoint.host, endpoint.port, self)
            if stamped is None:
                await self._loop.create_connection(lambda: self, endpoint.host, endpoint.port, ssl=endpoint.tls)
            else:
                self.stamped_connection_made(stamped)
        except (OSError, UnicodeError) as error:
            self._finish(("connect", f"{endpoint.host}:{endpoint.port}: {getattr(error, 'strerror', None) or error}"))
            return
        if self._transport is not None:
            self._write(raw, self._transport)

    def _write(self, raw: HttpRaw, transport: asyncio.Transport | StampedTransport, *, kept: bool = False) -> None:
        if isinstance(transport, StampedTransport):
            raw.clock = transport.clocks()
        wire = self._endpoint.wire(raw.request.body)
        if kept:  # else its time began with the connection
            raw.t_send_ns = monotonic_ns()
        transport.write(wire)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(0)  # before 0.23 uvloop else writes only when its turn ends

    def stamped_connection_made(self, transport: StampedTransport) -> None:
        """In place of `connection_made`."""
        self._transport = transport
        self._keeper = transport if transport.keeps else None

    def data_received(self, data: bytes) -> None:
        self.stamped_data_received(data, monotonic_ns(), 0)

    def chunks_received(self, kept: Kept) -> None:
        if self._raw is not None:
            self._received += kept.wire_bytes
            self._raw.kept(kept)

    def stamped_data_received(self, data: bytes, t_ns: int, realtime_ns: int) -> None:
        raw = self._raw
        if raw is None:
            self._abandon()
            return
        size = len(data)
        self._received += size
        if (
            self._between_chunks
            and self._received <= MOST_ANSWER_BYTES
            and data[-2:] == b"\r\n"
            and (_CHUNK_BYTES.get(data[:5]) == size or _CHUNK_BYTES.get(data[:4]) == size)
        ):  # a token, as a rule; as `came` does, without the call
            raw.reads.append(data)
            raw.read_t_ns.append(t_ns)
            raw.read_realtime_ns.append(realtime_ns)
            return
        self._now_ns, self._realtime_ns = t_ns, realtime_ns
        taken = size
        if self._keeper is not None and self._received == size and _HEAD_END in data:
            taken = data.index(_HEAD_END) + len(_HEAD_END)  # its chunks are the transport's
        try:
            self._parser.feed_data(data[:taken])
            if taken < size and not self._between_chunks:
                self._parser.feed_data(data[taken:])
                taken = size
        except _NOT_HTTP as error:
            self._misunderstood(raw, error)
            return
        if self._complete:
            self._finish(None)
            return
        self._came(raw)
        if self._received > MOST_ANSWER_BYTES:
            self._finish(("broken", f"the answer is longer than {shown_bytes(MOST_ANSWER_BYTES)}"))
        elif self._between_chunks and self._keeper is not None:
            self._received -= size - taken
            self._keeper.keep_chunks(taken)

    def _came(self, raw: HttpRaw) -> None:
        """A read that was parsed, or the part of it that ends the answer."""
        raw.came(tuple(self._pieces), self._now_ns, self._realtime_ns)
        self._pieces.clear()

    def _misunderstood(self, raw: HttpRaw, error: Exception) -> None:
        """What came before stays; an answer that was whole before it stays an answer."""
        self._keep_alive = False
        if self._complete:
            self._finish(None)
            return
        self._came(raw)
        upgraded = isinstance(error, httptools.HttpParserUpgrade)
        self._finish(("broken", f"not HTTP: {'another protocol was switched to' if upgraded else error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._abandon()
        raw = self._raw
        if raw is None or self._sent_again(raw):
            return
        if raw.http_status is not None and exc is None and not self._framed:
            self._finish(None)
            return
        where = "before the answer" if raw.http_status is None else "inside the answer"
        self._finish(("broken", f"connection lost {where}" + (f": {exc}" if exc else "")))

    def _sent_again(self, raw: HttpRaw) -> bool:
        """A kept connection that ended before any byte of the answer was closed before the request was read: servers
        close idle ones. Such a request is sent once more, on a new connection (RFC 9112, section 9.3.1)."""
        done = self._done
        if not self._kept or self._received or raw.retries or self._again is None or done is None:
            return False
        self._raw = self._done = None
        raw.retries += 1
        self._again(raw, done, max(0.0, self._due_s - self._loop.time()))
        return True

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = True

    def on_message_begin(self) -> None:
        """A message after the answer's end: the connection is not used again."""
        if self._complete:
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-length":
                self._framed = True
            case b"transfer-encoding":
                self._framed = True
                self._chunked = value.strip().lower() == b"chunked"
            case b"content-encoding" if self._raw is not None and not self._complete:
                coding = value.strip().lower().decode("latin-1")
                self._raw.coding = "" if coding == "identity" else coding
            case b"location" if self._raw is not None and not self._complete:
                self._raw.location = self._endpoint.resolved(value.decode("latin-1").strip())

    def on_headers_complete(self) -> None:
        if self._raw is not None and not self._complete:
            self._raw.http_status = self._parser.get_status_code()
            self._between_chunks = self._chunked and self._raw.http_status >= 200

    def on_message_complete(self) -> None:
        self._between_chunks = False
        if self._complete or self._raw is None:
            return
        if self._parser.get_status_code() < 200:
            self._raw.http_status, self._framed, self._chunked = None, False, False
            self._raw.coding, self._raw.location = "", None
            return
        self._came(self._raw)
        self._complete = True
        self._keep_alive = self._framed and self._parser.should_keep_alive()

    def _finish(self, failure: tuple[Status, str] | None) -> None:
        if failure is not None and self._keeper is not None:
            self._keeper.give()
        raw, done, transport = self._raw, self._done, self._transport
        if raw is None or done is None:
            return
        self._raw = self._done = None
        raw.size_bytes = self._received
        clock = None
        if isinstance(transport, StampedTransport):
            clock = transport.clocks()
            if failure is None and self._realtime_ns and raw.request.t_scheduled_ns is None:
                transport.answered(self._now_ns - raw.t_send_ns)
        raw.ended(monotonic_ns() if failure else self._now_ns, failure, clock)
        if failure is not None or not self._keep_alive:
            self._abandon()
        done(raw)

    def _abandon(self) -> None:
        self.usable = False
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        elif self._connecting is not None:
            self._connecting.cancel()
