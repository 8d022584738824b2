"""Every answer that is read has a longest length, and a time for all of it."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from loadgen.bounds import AnswerTooLong, body_of
from loadgen.errors import UsageError
from loadgen.power.feed import PowerFeed
from loadgen.serving.facts import get
from loadgen.serving.metrics import MetricsProbe, MetricsSource

MANY = 2**20


@contextmanager
def sending(head: bytes, piece: bytes = b"", pieces: int = 0) -> Iterator[int]:
    """The port of a server that answers one connection with the head, then the pieces, then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(2**16)
                        connection.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
                        for _ in range(pieces):
                            connection.sendall(piece)
                    except OSError:
                        continue

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def asked(port: int, most_bytes: int, within_s: float = 30.0) -> bytes:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/")
        return body_of(connection.getresponse(), most_bytes, within_s)


def test_a_body_of_the_bound_is_read_whole() -> None:
    with sending(b"Content-Length: 6\r\n", b"abc", 2) as port:
        assert asked(port, 6) == b"abcabc"


@pytest.mark.parametrize("head", [b"", b"Content-Length: 1000000000000\r\n"], ids=["until the end", "a length"])
def test_a_longer_one_is_given_up(head: bytes) -> None:
    with sending(head, bytes(MANY), 600) as port, pytest.raises(AnswerTooLong, match="longer than 1 MiB"):
        asked(port, MANY)


def test_one_that_takes_too_long_is_given_up() -> None:
    with sending(b"", bytes(MANY), 600) as port, pytest.raises(AnswerTooLong, match="not complete after 0 s"):
        asked(port, 600 * MANY, 0.0)


def test_one_that_ends_early_is_incomplete() -> None:
    with sending(b"Content-Length: 7\r\n", b"abc", 2) as port, pytest.raises(http.client.IncompleteRead):
        asked(port, 100)


def test_metrics_exporter_and_facts_without_end_end_in_a_sentence() -> None:
    """Each sends 600 MiB, of which no more than a bound and what the kernel buffers is read."""
    with sending(b"", bytes(MANY), 600) as port:
        url = f"http://127.0.0.1:{port}"
        probe = MetricsProbe(MetricsSource(target_url=url))
        assert probe.scrape() is None
        assert probe.failure == f"{url}/metrics cannot be read: the answer is longer than 16 MiB"
        probe.close()
        with pytest.raises(UsageError, match="the answer is longer than 16 MiB"):
            PowerFeed(url).connect()
        assert get(url) is None


def test_an_exporters_nested_answer_is_a_sentence() -> None:
    with sending(b"", b"[" * 200_000, 1) as port, pytest.raises(UsageError, match="no power exporter answers"):
        PowerFeed(f"http://127.0.0.1:{port}").connect()
