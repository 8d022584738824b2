"""HTTP GET (and POST) with a limit on the length and the time of the whole response, and a key for one host only.

Load goes through `loadgen.load`; this is for model lists, /metrics, exporters, the hub and data files.
"""

from __future__ import annotations

import http.client
import io
import socket
import urllib.error
import urllib.request
from contextlib import closing
from email.message import Message
from functools import partial
from time import monotonic
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

import msgspec

from loadgen.bounds import ANSWER_S, MOST_FACTS_BYTES, shown_bytes

TIMEOUT_S = 10.0
"""Longest wait for the next byte."""
FAILURES = (OSError, http.client.HTTPException, ValueError)
"""What a GET raises where there is no response; ValueError: the URL has no host, or its port is not a number."""
MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
_PIECE_BYTES = 2**16


class ResponseTooLong(OSError):
    """An HTTP response that is longer, or takes longer, than its limit."""


class Response(msgspec.Struct, frozen=True):
    """A whole response, whatever its status."""

    status: int
    reason: str
    headers: Message
    body: bytes


class Connection:
    """A connection to one server, kept for one GET after the other; http_proxy is not used."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, bearer: str | None = None) -> None:
        """Only the URL's scheme, host and port are used. Raises ValueError unless it is an http or https URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is not an http:// or https:// URL")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=timeout_s)
        self._clock = _Clock(timeout_s)
        self._connection.response_class = partial(_TimedResponse, self._clock)  # type: ignore[assignment]
        self._headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}

    def get(self, target: str, most_bytes: int = MOST_FACTS_BYTES, within_s: float = ANSWER_S) -> Response:
        """The response to a GET of a path and query. Redirects are not followed.

        Raises ResponseTooLong beyond `most_bytes` or `within_s` seconds, and others of FAILURES; then the connection is
        closed, and the next GET opens it again.
        """
        return self._asked("GET", target, None, most_bytes, within_s)

    def post(
        self, target: str, body: bytes, most_bytes: int = MOST_FACTS_BYTES, within_s: float = ANSWER_S
    ) -> Response:
        """The response to a POST of a JSON body; otherwise as `get`."""
        return self._asked("POST", target, body, most_bytes, within_s)

    def _asked(self, method: str, target: str, body: bytes | None, most_bytes: int, within_s: float) -> Response:
        self._clock.start(within_s)
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        try:
            self._connection.request(method, target or "/", body=body, headers=headers)
            got = self._connection.getresponse()
            return Response(got.status, got.reason, got.headers, _body(got, most_bytes))
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._clock.meaning_of(error) from None

    def close(self) -> None:
        self._connection.close()


def get(
    url: str,
    most_bytes: int = MOST_FACTS_BYTES,
    within_s: float = ANSWER_S,
    *,
    timeout_s: float = TIMEOUT_S,
    bearer: str | None = None,
    redirects: int = 0,
) -> Response:
    """The response to one GET without a proxy; at most `redirects` are followed, on the same host and port. Raises
    FAILURES."""
    with closing(Connection(url, timeout_s=timeout_s, bearer=bearer)) as connection:
        for left in range(redirects, -1, -1):
            parts = urlsplit(url)
            response = connection.get(parts.path + (f"?{parts.query}" if parts.query else ""), most_bytes, within_s)
            to = urljoin(url, response.headers.get("Location", ""))
            if not left or response.status not in REDIRECTS or urlsplit(to)[:2] != parts[:2]:
                break
            url = to
    return response


def fetch(
    url: str, most_bytes: int, within_s: float = ANSWER_S, *, timeout_s: float = TIMEOUT_S, bearer: str | None = None
) -> Response:
    """The response of a public site, through the environment's proxies and redirects; other hosts do not get the key.
    Raises FAILURES."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {bearer}"} if bearer else {})
    clock = _Clock(timeout_s)
    clock.start(within_s)
    try:
        opener = urllib.request.build_opener(_KeepsKeys, _Timed(clock))
        with opener.open(request, timeout=timeout_s) as got:
            return Response(getattr(got, "status", None) or 200, "", got.headers, _body(got, most_bytes))
    except urllib.error.HTTPError as error:
        with error:
            return Response(error.code, error.reason, error.headers, b"")
    except urllib.error.URLError as error:
        raise clock.meaning_of(error.reason if isinstance(error.reason, OSError) else error) from None
    except OSError as error:
        raise clock.meaning_of(error) from None


def _body(response: http.client.HTTPResponse, most_bytes: int) -> bytes:
    body = bytearray()
    while piece := response.read1(_PIECE_BYTES):
        body += piece
        if len(body) > most_bytes:
            raise ResponseTooLong(f"the answer is longer than {shown_bytes(most_bytes)}")
    missing = getattr(response, "length", None)  # what urllib opens from a file:// URL has no such attribute
    if missing:
        raise http.client.IncompleteRead(b"", missing)
    response.close()
    return bytes(body)


class _KeepsKeys(urllib.request.HTTPRedirectHandler):
    """A redirect to another host does not get the key."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if new is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            new.remove_header("Authorization")
        return new


class _Clock:
    """How long the reads of a response may still wait."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._within_s = self._deadline_s = 0.0

    def start(self, within_s: float) -> None:
        """A request is sent now; the whole response must arrive within `within_s` seconds."""
        self._within_s, self._deadline_s = within_s, monotonic() + within_s

    def left_s(self) -> float:
        """Seconds that the next read may wait. Raises TimeoutError if none are left."""
        left_s = min(self._timeout_s, self._deadline_s - monotonic())
        if left_s <= 0:
            raise TimeoutError("timed out")
        return left_s

    def meaning_of(self, error: Exception) -> Exception:
        """ResponseTooLong for a wait that the deadline ended, else the error."""
        if isinstance(error, TimeoutError) and monotonic() >= self._deadline_s:
            return ResponseTooLong(f"the answer is not complete after {self._within_s:g} s")
        return error


class _Timed(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Responses are read by a clock, as those of `Connection` are."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock

    def do_open(self, http_class: Any, req: urllib.request.Request, **options: Any) -> http.client.HTTPResponse:
        def connection(host: str, **further: Any) -> http.client.HTTPConnection:
            made: http.client.HTTPConnection = http_class(host, **further)
            made.response_class = partial(_TimedResponse, self._clock)  # type: ignore[assignment]
            return made

        return super().do_open(connection, req, **options)


class _TimedResponse(http.client.HTTPResponse):
    """Reads status line, headers and body no longer than its clock allows."""

    def __init__(self, clock: _Clock, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedSocket(clock, sock))


class _TimedSocket(io.RawIOBase):
    def __init__(self, clock: _Clock, sock: socket.socket) -> None:
        self._clock, self._sock = clock, sock
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._clock.left_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
