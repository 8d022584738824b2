"""The compiled reader: it is built where there is a compiler, it does what the one in Python does, and it waits only
where that costs a slot nothing that shows."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import uvloop
from programs import compiler
from streams import REQUEST

from loadgen.clibrary import VARIABLE
from loadgen.load import compiled as compiling
from loadgen.load import http
from loadgen.load import reader as reading
from loadgen.load.compiled import SOURCE, compiled, why_not
from loadgen.load.exchange import Exchange, Request, read_exchange
from loadgen.load.http import Endpoint, HttpSlot
from loadgen.load.kernelstamps import StampedTransport
from loadgen.load.reader import CompiledReader, Kept, Reader

pytestmark = pytest.mark.skipif(not hasattr(socket, "SO_MARK"), reason="it is for Linux")
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing was built before, and what is built is forgotten."""
    monkeypatch.setenv("LOADGEN_CACHE", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)

    def forget() -> None:
        compiled.cache_clear()
        compiling._compiled.cache_clear()

    forget()
    yield tmp_path
    forget()


@pytest.fixture(params=["compiled", "python"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both read alike."""
    if request.param == "python":
        monkeypatch.setattr(reading, "compiled", lambda: None)
    else:
        compiler()
    return str(request.param)


class TestBuilding:
    def test_once(self, built_anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        compiler()
        assert (compiled() is not None, why_not()) == (True, None)
        [library] = (built_anew / "compiled").iterdir()
        compiled.cache_clear()
        compiling._compiled.cache_clear()
        monkeypatch.setenv("PATH", "")
        assert compiled() is not None
        assert [*(built_anew / "compiled").iterdir()] == [library]

    def test_without_a_compiler(self, built_anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        assert (compiled(), why_not()) == (None, "there is no C compiler (Debian: gcc and libc6-dev)")

    def test_with_a_compiler_that_fails(self, built_anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "false")
        assert (compiled(), why_not()) == (None, "false: status 1")
        assert [*(built_anew / "compiled").iterdir()] == []

    def test_with_one_that_is_missing(self, built_anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "no-such-compiler -m64")
        assert compiled() is None
        assert "no-such-compiler" in (why_not() or "")

    def test_the_compiler_is_told_no_secret_whatever_its_name(
        self, built_anew: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`--api-key-env MINE`: nothing in the name says so."""
        script, told = tmp_path / "compiler", tmp_path / "told"
        script.write_text(f'#!/bin/sh\nenv >{told}\nexec {compiler()} "$@"\n')
        script.chmod(0o755)
        for name, value in {"CC": str(script), "MINE": "no-secret-is-this", "VLLM_API_KEY": "abcdefghijkl"}.items():
            monkeypatch.setenv(name, value)
        assert compiled() is not None
        said = told.read_text()
        assert "PATH=" in said
        assert "no-secret-is-this" not in said
        assert "abcdefghijkl" not in said

    def test_not_where_it_is_not_wanted(self, built_anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VARIABLE, "python")
        assert (compiled(), why_not()) == (None, "LOADGEN_READER is python")

    def test_in_a_folder_that_cannot_be_written(self, built_anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        compiler()
        (built_anew / "compiled").write_text("a file")
        assert compiled() is None
        assert "compiled" in (why_not() or "")

    def test_without_warnings(self, tmp_path: Path) -> None:
        options = ["-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*compiler().split(), *options, "-o", tmp_path / "reader.so", SOURCE], check=True)


def event(k: int, finish: str = "null") -> bytes:
    data = (
        f'data: {{"choices":[{{"index":0,"text":" t{k}","finish_reason":{finish}}}],'
        f'"usage":{{"prompt_tokens":1,"completion_tokens":{k}}}}}\n\n'
    ).encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def ask(
    writes: list[tuple[float, bytes]], *, timeout_s: float = 20.0, request: Request = REQUEST
) -> tuple[Exchange, list[int]]:
    """One answer, written so, each after so many seconds, and when; then the server is silent until the client has
    ended it."""
    written_ns: list[int] = []

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.recv(1 << 16)
            for after_s, data in writes:
                time.sleep(after_s)
                written_ns.append(time.monotonic_ns())
                peer.sendall(data)
            with contextlib.suppress(ConnectionResetError):
                peer.recv(1)

    async def client() -> Exchange:
        ended: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
        slot = HttpSlot(Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}", "completions"), 0, timeout_s)
        slot.send(request, lambda raw: ended.set_result(read_exchange(raw)))
        exchange = await ended
        slot.close()
        return exchange

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=serve)
        thread.start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            exchange = runner.run(client())
        thread.join()
    return exchange, written_ns


class TestAnswers:
    def test_in_one_write(self, reader: str) -> None:
        exchange, _ = ask([(0, HEAD + b"".join(map(event, range(1, 30))) + event(30, '"stop"') + END)])
        assert (exchange.status, exchange.stamps, exchange.output_tokens) == ("ok", "kernel", 30)
        assert exchange.text == "".join(f" t{k}" for k in range(1, 31))

    def test_each_token_has_the_stamp_of_the_read_that_brought_its_last_byte(self, reader: str) -> None:
        """A chunk that two writes bring, then two chunks in one."""
        two, apart_s = event(2), 0.02
        exchange, written_ns = ask(
            [
                (0, HEAD + event(1)),
                (apart_s, two[:60]),
                (apart_s, two[60:]),
                (apart_s, event(3) + event(4)),
                (apart_s, event(5, '"stop"') + END),
            ]
        )
        times = [t_ns for t_ns, _ in exchange.token_times]
        by = [bisect_right(written_ns, t_ns + 1_000_000) for t_ns in times]
        assert (exchange.status, exchange.stamps, by) == ("ok", "kernel", [1, 3, 4, 4, 5])
        assert times[2] == times[3]
        assert exchange.t_end_ns == times[-1]

    def test_of_another_form_than_that_of_plain_chunks(self, reader: str) -> None:
        """An extension of a chunk, a size with a leading zero, and a trailer."""
        third = event(3).replace(b"\r\n", b";name=value\r\n", 1)
        trailer = END.removesuffix(b"\r\n") + b"Name: value\r\n\r\n"
        exchange, _ = ask([(0, HEAD + event(1) + event(2) + third + b"0" + event(4) + event(5, '"stop"') + trailer)])
        assert (exchange.status, exchange.output_tokens) == ("ok", 5)

    def test_what_came_before_a_timeout_is_kept(self, reader: str) -> None:
        whole = event(3)
        exchange, _ = ask([(0, HEAD + event(1) + event(2)), (0.05, whole[:40])], timeout_s=1.5)
        assert (exchange.status, exchange.text) == ("timeout", " t1 t2")
        assert [tokens for _, tokens in exchange.token_times] == [1, 1]

    def test_longer_than_any_may_be(self, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (http, reading):
            monkeypatch.setattr(module, "MOST_ANSWER_BYTES", 1 << 12)
        exchange, _ = ask([(0, HEAD + b"".join(map(event, range(1, 48))) + b"ff\r\n")], timeout_s=3)
        assert (exchange.status, exchange.error) == ("broken", "the answer is longer than 4 KiB")

    def test_one_that_has_begun_is_answering(self, reader: str) -> None:
        async def client() -> list[bool]:
            peer = asyncio.get_running_loop().create_future()
            server = await asyncio.start_server(lambda _, writer: peer.set_result(writer), "127.0.0.1", 0)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            slot = HttpSlot(Endpoint(url, "completions"), 0, 20)
            slot.send(REQUEST, lambda raw: None)
            answering = []
            for data in (HEAD, event(1)):
                (await peer).write(data)
                for _ in range(20 if data == HEAD else 500):
                    await asyncio.sleep(0.01)
                    if slot.answering:
                        break
                answering.append(slot.answering)
            slot.close()
            (await peer).close()
            server.close()
            return answering

        assert asyncio.run(client()) == [False, True]

    def test_none_of_an_open_loop_makes_the_reader_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compiler()
        noted: list[int] = []
        monkeypatch.setattr(StampedTransport, "answered", lambda transport, e2e_ns: noted.append(e2e_ns))
        answer = HEAD + event(1, '"stop"') + END
        ask([(0, answer)], request=msgspec.structs.replace(REQUEST, t_scheduled_ns=time.monotonic_ns()))
        assert noted == []
        ask([(0, answer)])
        assert len(noted) == 1


class Receiver:
    def __init__(self) -> None:
        self.got: list[object] = []

    def chunks_received(self, kept: Kept) -> None:
        self.got.append(kept.pieces().body)

    def stamped_data_received(self, data: bytes, t_ns: int, realtime_ns: int) -> None:
        self.got.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.got.append(exc)


class TestWaiting:
    """Waits are those of one that reads chunks which the kernel stamps."""

    @pytest.fixture
    def waits_s(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        compiler()
        waits: list[float] = []
        monkeypatch.setattr(reading, "sleep", waits.append)
        return waits

    @staticmethod
    def read_chunks(answered_ns: list[int], chunks: int) -> None:
        """After answers that took so long, and after a head, reads so many chunks, one at a time."""

        async def main() -> None:
            ours, peer = socket.socketpair()
            ours.setblocking(False)
            reader, receiver = Reader.of(asyncio.get_running_loop()), Receiver()
            assert isinstance(reader, CompiledReader)
            transport = StampedTransport(reader, ours, receiver)
            for e2e_ns in answered_ns:
                transport.answered(e2e_ns)
            peer.sendall(b"head")
            reader._read()
            transport.keep_chunks(4)
            for _ in range(chunks):
                peer.sendall(b"1\r\na\r\n")
                reader._read()
            transport.give()
            assert receiver.got == [b"head", b"a" * chunks]
            transport.abort()
            peer.close()

        asyncio.run(main())

    def test_a_thousandth_of_an_answer_and_not_while_answers_begin(self, waits_s: list[float]) -> None:
        self.read_chunks([150_000_000] * 100, 3)
        assert waits_s == [0.00015] * 3  # before the head, before the second chunk and the third; not after the head

    def test_a_fifth_of_a_millisecond_at_most(self, waits_s: list[float]) -> None:
        self.read_chunks([60_000_000_000] * 100, 2)
        assert max(waits_s) == 0.0002

    @pytest.mark.parametrize("answered_ns", [[], [60_000_000_000], [60_000_000_000] * 100 + [50_000_000]])
    def test_not_before_answers_have_ended_nor_where_they_are_short(
        self, waits_s: list[float], answered_ns: list[int]
    ) -> None:
        self.read_chunks(answered_ns, 3)
        assert waits_s == []
