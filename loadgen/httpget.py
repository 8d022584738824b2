"""HTTP GET as loadgen itself asks: an answer has a longest length and a time for all of it, and a key has one host.

Load goes through `loadgen.client`; this is for model lists, /metrics, exporters, the hub and data files.
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
"""Without a byte. The whole answer has a time of its own."""
FAILURES = (OSError, http.client.HTTPException, ValueError)
"""What a GET raises where there is no answer; ValueError: the URL has no host, or a port that is no number."""
MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
_PIECE_BYTES = 2**16


class AnswerTooLong(OSError):
    """An HTTP answer that is longer, or takes longer, than its bound."""


class Answer(msgspec.Struct, frozen=True):
    """A whole answer, whatever its status."""

    status: int
    reason: str
    headers: Message
    body: bytes


class Connection:
    """A connection to one server, kept for one GET after the other, straight there whatever http_proxy says."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, bearer: str | None = None) -> None:
        """Of the URL the scheme, host and port. Raises ValueError for one that is not of http or https."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is not an http:// or https:// URL")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=timeout_s)
        self._connection.response_class = partial(_TimedResponse, self)  # type: ignore[assignment]
        self._headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        self._timeout_s = timeout_s
        self.deadline_s = 0.0
        """When the current answer must be whole; CLOCK_MONOTONIC."""

    def get(self, target: str, most_bytes: int = MOST_FACTS_BYTES, within_s: float = ANSWER_S) -> Answer:
        """The answer to a GET of a path and query. Redirects are not followed.

        Raises AnswerTooLong beyond `most_bytes` or `within_s` seconds, and others of FAILURES; then the connection is
        closed, and the next GET opens it again.
        """
        self.deadline_s = monotonic() + within_s
        try:
            self._connection.request("GET", target or "/", headers=self._headers)
            answer = self._connection.getresponse()
            body = _body(answer, most_bytes, within_s)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            if isinstance(error, TimeoutError) and monotonic() >= self.deadline_s:
                raise AnswerTooLong(f"the answer is not complete after {within_s:g} s") from None
            raise
        return Answer(answer.status, answer.reason, answer.headers, body)

    def left_s(self) -> float:
        """How long a read may wait. Raises TimeoutError if there is no time left."""
        left_s = min(self._timeout_s, self.deadline_s - monotonic())
        if left_s <= 0:
            raise TimeoutError("timed out")
        return left_s

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
) -> Answer:
    """The answer to one GET, straight from the server. At most `redirects` are followed, on the same host and port.

    Raises FAILURES.
    """
    with closing(Connection(url, timeout_s=timeout_s, bearer=bearer)) as connection:
        for left in range(redirects, -1, -1):
            parts = urlsplit(url)
            answer = connection.get(parts.path + (f"?{parts.query}" if parts.query else ""), most_bytes, within_s)
            to = urljoin(url, answer.headers.get("Location", ""))
            if not left or answer.status not in REDIRECTS or urlsplit(to)[:2] != parts[:2]:
                break
            url = to
    return answer


def fetch(
    url: str, most_bytes: int, within_s: float = ANSWER_S, *, timeout_s: float = TIMEOUT_S, bearer: str | None = None
) -> Answer:
    """The answer of a public site, through the environment's proxies and redirects; other hosts do not get the key.

    Raises FAILURES.
    """
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {bearer}"} if bearer else {})
    try:
        with urllib.request.build_opener(_KeepsKeys).open(request, timeout=timeout_s) as answer:
            body = _body(answer, most_bytes, within_s)
            return Answer(getattr(answer, "status", None) or 200, "", answer.headers, body)
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.reason, error.headers, b"")
    except urllib.error.URLError as error:
        raise error.reason if isinstance(error.reason, OSError) else error from None


def _body(answer: http.client.HTTPResponse, most_bytes: int, within_s: float) -> bytes:
    deadline_s = monotonic() + within_s
    pieces, length = list[bytes](), 0
    while piece := answer.read1(_PIECE_BYTES):
        length += len(piece)
        if length > most_bytes:
            raise AnswerTooLong(f"the answer is longer than {shown_bytes(most_bytes)}")
        if monotonic() > deadline_s:
            raise AnswerTooLong(f"the answer is not complete after {within_s:g} s")
        pieces.append(piece)
    missing = getattr(answer, "length", None)  # what urllib opens from a file:// URL has no such attribute
    if missing:
        raise http.client.IncompleteRead(b"", missing)
    answer.close()
    return b"".join(pieces)


class _KeepsKeys(urllib.request.HTTPRedirectHandler):
    """A redirect to another host does not get the key."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if new is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            new.remove_header("Authorization")
        return new


class _TimedResponse(http.client.HTTPResponse):
    """Reads, of the status line and the headers too, no longer than its connection's deadline."""

    def __init__(self, connection: Connection, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedSocket(connection, sock))


class _TimedSocket(io.RawIOBase):
    def __init__(self, connection: Connection, sock: socket.socket) -> None:
        self._connection, self._sock = connection, sock
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._connection.left_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
