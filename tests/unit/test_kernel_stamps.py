"""Stamps of the kernel: they are of the arrival, however late the client reads."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
import uvloop
from streams import REQUEST, finished

from loadgen.load import kernelstamps
from loadgen.load import reader as reading
from loadgen.load.clockreading import read_clocks
from loadgen.load.exchange import Exchange, Request, read_exchange
from loadgen.load.http import Endpoint, HttpSlot
from loadgen.load.httpraw import HttpRaw

linux = pytest.mark.skipif(sys.platform != "linux", reason="SO_TIMESTAMPING is Linux's")
TOKENS = 6
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(k: int) -> bytes:
    finish = '"length"' if k == TOKENS else "null"
    data = (
        f'data: {{"choices":[{{"index":0,"text":"t","finish_reason":{finish}}}],'
        f'"usage":{{"prompt_tokens":1,"completion_tokens":{k}}}}}\n\n'
    )
    return f"{len(data):x}\r\n{data}\r\n".encode()


END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def listening() -> socket.socket:
    """A server that no client comes to ends with an error, so that its test fails instead of waiting."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)
    return listener


class Server:
    """Sends a token every 40 ms, and keeps for each when it began and ended to send it."""

    def __init__(self) -> None:
        self.listener = listening()
        self.sent_ns: list[tuple[int, int]] = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        peer, _ = self.listener.accept()
        with peer:
            peer.settimeout(20)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            received = b""
            while b"{}" not in received:
                received += peer.recv(65536)
            peer.sendall(HEAD)
            for k in range(1, TOKENS + 1):
                time.sleep(0.04)
                before_ns = time.monotonic_ns()
                peer.sendall(event(k) + END * (k == TOKENS))
                self.sent_ns.append((before_ns, time.monotonic_ns()))

    def close(self) -> None:
        self.listener.close()
        self.thread.join()


@pytest.fixture(params=["compiled", "python"], autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both read alike; where there is no compiler, both are the one in Python."""
    if request.param == "python":
        monkeypatch.setattr(reading, "compiled", lambda: None)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def ask(url: str, asleep_s: float, request: Request = REQUEST) -> Exchange:
    """One request, of a client that sleeps so long in every turn of its event loop."""

    async def main() -> Exchange:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Exchange] = loop.create_future()
        slot = HttpSlot(Endpoint(url, "completions"), 0, 30.0)
        slot.send(request, lambda raw: ended.set_result(read_exchange(raw)))
        while not ended.done():
            await asyncio.sleep(0)
            time.sleep(asleep_s)  # noqa: ASYNC251
            await asyncio.sleep(0.001)
        slot.close()
        return ended.result()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


@linux
@pytest.mark.parametrize("asleep_s", [0.0, 0.03])
def test_a_token_is_stamped_when_it_was_sent_however_late_it_is_read(server: Server, asleep_s: float) -> None:
    exchange = ask(f"http://127.0.0.1:{server.listener.getsockname()[1]}", asleep_s)
    server.close()
    assert (exchange.status, exchange.stamps) == ("ok", "kernel")
    assert [tokens for _, tokens in exchange.token_times] == [1] * TOKENS
    for (t_ns, _), (before_ns, after_ns) in zip(exchange.token_times, server.sent_ns, strict=True):
        assert before_ns - 1_000_000 <= t_ns <= after_ns + 10_000_000
    assert exchange.t_end_ns == exchange.token_times[-1][0]


@linux
def test_a_first_token_behind_a_long_head_is_not_read_with_the_second() -> None:
    """The first read ends inside the head; the client sleeps until the second token has come, too."""
    head = HEAD.removesuffix(b"\r\n") + b"Padding: " + b"x" * 600 + b"\r\n\r\n"
    with listening() as listener:
        second_ns: list[int] = []

        def run() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(head + event(1))
                time.sleep(0.3)
                second_ns.append(time.monotonic_ns())
                peer.sendall(event(2) + event(TOKENS) + END)

        thread = threading.Thread(target=run)
        thread.start()
        exchange = ask(f"http://127.0.0.1:{listener.getsockname()[1]}", 0.2)
        thread.join()
    assert exchange.stamps == "kernel"
    assert exchange.token_times[0][0] < second_ns[0]


@linux
def test_a_reset_ends_the_answer_at_once() -> None:
    with listening() as listener:

        def run() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(HEAD + event(1))
                time.sleep(0.05)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=run)
        thread.start()
        exchange = ask(f"http://127.0.0.1:{listener.getsockname()[1]}", 0.0)
        thread.join()
    assert exchange.status == "broken"
    assert exchange.error is not None and exchange.error.startswith("connection lost inside the answer")


@linux
def test_a_request_larger_than_the_sockets_buffers_is_sent_whole() -> None:
    body = b'{"prompt":"' + b"x" * 20_000_000 + b'"}'
    received = bytearray()
    with listening() as listener:

        def run() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(20)
                while not received.endswith(b'x"}'):
                    received.extend(peer.recv(1 << 20))
                peer.sendall(HEAD + event(TOKENS) + END)

        thread = threading.Thread(target=run)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        exchange = ask(url, 0.0, msgspec.structs.replace(REQUEST, body=body))
        thread.join()
    assert exchange.status == "ok"
    assert bytes(received).partition(b"\r\n\r\n")[2] == body


@linux
def test_a_kernel_that_refuses_to_stamp_is_measured_by_the_process(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernelstamps, "SO_TIMESTAMPING", 9_999)
    exchange = ask(f"http://127.0.0.1:{server.listener.getsockname()[1]}", 0.0)
    assert (exchange.status, exchange.stamps, len(exchange.token_times)) == ("ok", "process", TOKENS)


def test_a_set_clock_leaves_the_process_stamps() -> None:
    raw = finished([(100, event(1))])
    now = read_clocks()
    for clock, stamps in ((now, "kernel"), (now._replace(realtime_ns=now.realtime_ns + 10**9), "process")):
        raw.clock, raw.stamps = clock, "process"
        raw.read_realtime_ns = [clock.offset_ns + 50] * len(raw.read_t_ns)
        raw.ended(100, None, read_clocks())
        times, _ = raw.events()
        assert (raw.stamps, raw.t_end_ns) == (stamps, 50 if stamps == "kernel" else 100)
        assert times == [raw.t_end_ns]


@pytest.mark.parametrize("off_ns", [-7_200 * 10**9, 10**9])
def test_stamps_that_cannot_be_leave_the_process_stamps(off_ns: int) -> None:
    """Where the process reads another realtime clock than the kernel: before the request was sent, or yet to come."""
    raw = finished([(100, event(1))])
    raw.clock = read_clocks()
    raw.read_realtime_ns = [raw.clock.offset_ns + 50 + off_ns]
    raw.ended(100, None, read_clocks())
    raw.events()
    assert (raw.stamps, raw.t_end_ns) == ("process", 100)


def test_a_read_without_a_stamp_leaves_the_process_stamps() -> None:
    raw = finished([(100, event(1)), (200, event(2))])
    raw.clock = read_clocks()
    raw.read_realtime_ns = [raw.clock.offset_ns + 50, 0]
    raw.ended(200, None, read_clocks())
    raw.events()
    assert (raw.stamps, raw.t_end_ns) == ("process", 200)


@pytest.mark.parametrize("data", [b"\n\ndata: [DONE]\n\n", b"data: " + b"x" * 240 + b"\n\n", b"\n" * 300])
def test_a_whole_chunk_carries_its_data_whatever_that_begins_with(data: bytes) -> None:
    """Its size has two hexadecimal digits, or three."""
    raw = HttpRaw(REQUEST, 0)
    raw.came((b"before",), 1)
    raw.came(b"%x\r\n%b\r\n" % (len(data), data), 2)
    raw.ended(2, None)
    assert raw.error_body() == b"before" + data
