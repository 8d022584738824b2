"""Every answer that is read has a longest length, and a time for all of it."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from loadgen.errors import UsageError
from loadgen.httpget import Response, ResponseTooLong, fetch, get
from loadgen.power.feed import PowerFeed
from loadgen.serving import facts
from loadgen.serving.metrics import MetricsProbe, MetricsSource

MANY = 2**20
CANARY = "sk-canary-0123456789"


@contextmanager
def sending(
    head: bytes, piece: bytes = b"", pieces: int = 0, *,
    pause_s: float = 0.0, status: bytes = b"200 OK", heard: list[bytes] | None = None,
) -> Iterator[int]:  # fmt: skip
    """The port of a server that answers each connection with the head, then the pieces, then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    try:
                        request = connection.recv(2**16)
                        if heard is not None:
                            heard.append(request)
                        end = b"" if head and not head.endswith(b"\n") else b"\r\n"
                        connection.sendall(b"HTTP/1.1 " + status + b"\r\n" + head + end)
                        for _ in range(pieces):
                            connection.sendall(piece)
                            time.sleep(pause_s)
                    except OSError:
                        continue

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def test_a_body_of_the_bound_is_read_whole() -> None:
    with sending(b"Content-Length: 6\r\n", b"abc", 2) as port:
        assert get(f"http://127.0.0.1:{port}/", 6).body == b"abcabc"


@pytest.mark.parametrize("head", [b"", b"Content-Length: 1000000000000\r\n"], ids=["until the end", "a length"])
def test_a_longer_one_is_given_up(head: bytes) -> None:
    with sending(head, bytes(MANY), 600) as port:
        for ask in (get, fetch):
            with pytest.raises(ResponseTooLong, match="longer than 1 MiB"):
                ask(f"http://127.0.0.1:{port}", MANY)


@pytest.mark.parametrize("ask", [get, fetch])
@pytest.mark.parametrize("head", [b"", b"X: "], ids=["in its body", "in its head"])
def test_one_that_comes_byte_by_byte_has_a_time_for_all_of_it(head: bytes, ask: Callable[..., Response]) -> None:
    """A byte each 10 ms: no single read takes long."""
    late = pytest.raises(ResponseTooLong, match=r"is not complete after 0\.2 s")
    with sending(head, b"a", 10_000, pause_s=0.01) as port, late:
        ask(f"http://127.0.0.1:{port}", MANY, 0.2)


def test_one_that_ends_early_is_incomplete() -> None:
    with sending(b"Content-Length: 7\r\n", b"abc", 2) as port, pytest.raises(http.client.IncompleteRead):
        get(f"http://127.0.0.1:{port}", 100)


def test_a_key_is_sent_to_no_other_host() -> None:
    """A redirect is followed on the same host and port only, and where others are followed, they do not get the key."""
    heard: list[bytes] = []
    with sending(b"Content-Length: 0\r\n", heard=heard) as other:
        head = b"Location: http://127.0.0.1:%d/\r\nContent-Length: 0\r\n" % other
        with sending(head, status=b"302 Found") as port:
            url = f"http://127.0.0.1:{port}"
            assert get(url, redirects=5, bearer=CANARY).status == 302
            assert heard == []
            assert fetch(url, MANY, bearer=CANARY).status == 200
    assert len(heard) == 1
    assert CANARY.encode() not in heard[0]


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
        assert facts.get(url) is None


def test_an_exporters_nested_answer_is_a_sentence() -> None:
    with sending(b"", b"[" * 200_000, 1) as port, pytest.raises(UsageError, match="no power exporter answers"):
        PowerFeed(f"http://127.0.0.1:{port}").connect()
