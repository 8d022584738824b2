"""A server that fails as told: the first part of a request's path names the fault (see faults.py).

Every path is a server of its own, with its own counters: `http://HOST:PORT/reset-inside`, or `.../reset-inside~2` for
a second one. A fault strikes its first request and then each `every`-th; the others are answered: 12 tokens, 4 ms
apart, the first after 8 ms. /metrics is what a server would say that runs everything it was asked in one batch.
`http://HOST:PORT` itself has no fault: `python tests/fault_server.py --port N` is a server that can be launched.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from faults import HOSTILE, REQUEST_FAULTS, RequestFault

from loadgen.measure.preflight import REQUESTS

TOKENS = 12
TTFT_S = 0.008
ITL_S = 0.004
SLOW_HEADERS_S = 0.03
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BATCH = 8
LATELY_S = 0.25
SPARED = "spared"
"""The variant of a path whose fault spares what a sweep asks before its first cell."""
"""What every sweep against this server asks for; its counters say that so many tokens are made in a step."""
RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"
RESTART_AFTER = 40
"""Requests after which a server that restarts does so."""


class Cut(Exception):
    """The connection ends here; `reset` with RST."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__()
        self.reset = reset


@dataclass
class State:
    """One path's server."""

    fault: RequestFault | None
    requests: int = 0
    tokens: float = 0.0
    prompt_tokens: float = 0.0
    running: int = 0
    begun: list[tuple[float, int]] = field(default_factory=list)
    """When requests of late began, and how many ran then."""
    steps: float = 0.0
    counted: float = 0.0
    """The tokens that `steps` accounts for."""
    scrapes: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def page(self) -> str:
        batch = self.batch()
        self.steps += (self.tokens - self.counted) / batch
        self.counted = self.tokens
        values = {
            "num_requests_running": batch if self.running else 0,
            "num_requests_waiting": 0,
            "num_preemptions_total": 0,
            "generation_tokens_total": self.tokens,
            "prompt_tokens_total": self.prompt_tokens,
            "iteration_tokens_total_count": self.steps,
        }
        return "".join(f'vllm:{name}{{engine="0"}} {value:.3f}\n' for name, value in values.items())

    def begin(self) -> None:
        self.running += 1
        self.begun.append((time.monotonic(), self.running))

    def batch(self) -> int:
        """The most that ran at once of late: a slot that a busy machine refills late leaves no gap in it."""
        since = time.monotonic() - LATELY_S
        self.begun = [(t, running) for t, running in self.begun if t > since] or self.begun[-1:]
        return max((running for _, running in self.begun), default=BATCH)

    def restart(self) -> None:
        """Every connection breaks, every counter begins again at 0."""
        self.tokens = self.prompt_tokens = self.steps = self.counted = 0.0
        for writer in self.writers:
            cut(writer)


class FaultServer:
    """Serves in a thread of its own; a context manager that gives the address."""

    def __init__(self, port: int = 0, *, ssl: Any = None, model: str = "faulty", version: str = "1") -> None:
        self._model, self._version = model, version
        self._states: dict[str, State] = {}
        self._loop = asyncio.new_event_loop()
        self._socket = socket.create_server(("127.0.0.1", port), backlog=512)
        self._ssl = ssl
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seen: dict[str, list[bytes]] = defaultdict(list)
        """Heads of the requests, by path."""

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"{'https' if self._ssl else 'http'}://{host}:{port}"

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gone: its connections are reset, and new ones refused."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def wait(self) -> None:
        """Until it is killed."""
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listening = asyncio.start_server(self._serve, sock=self._socket, ssl=self._ssl)
        server = self._loop.run_until_complete(listening)
        self._loop.run_forever()
        server.close()
        for state in self._states.values():
            for writer in state.writers:
                cut(writer)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError, Cut):
            own = writer.get_extra_info("socket")
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            resets_next = False
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if resets_next:
                    cut(writer)
                    raise Cut(reset=True)
                method, target, _ = head.split(b" ", 2)
                name, _, path = target.decode().lstrip("/").partition("/")
                if name in ("v1", "version", "health") or name.startswith("metrics"):
                    name, path = "", target.decode().lstrip("/")
                self.seen[name].append(head)
                kind, _, variant = name.partition("~")
                spared = -REQUESTS if variant == SPARED else 0
                state = self._states.setdefault(name, State(REQUEST_FAULTS.get(kind), requests=spared))
                state.writers.add(writer)
                if method == b"GET":
                    writer.write(await self._page(state, path))
                    continue
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                asked = json.loads(await reader.readexactly(length))
                resets_next = await self._answer(state, asked, head, writer) == "reset-after"
        for state in self._states.values():
            state.writers.discard(writer)
        writer.close()

    async def _page(self, state: State, path: str) -> bytes:
        text = ""
        if path == "v1/models":
            text = json.dumps({"data": [{"id": self._model}]})
        elif path == "version":
            text = json.dumps({"version": self._version})
        elif path.startswith("metrics"):
            if state.fault is not None and state.fault.name == "no-metrics":
                return whole(404, b"{}")
            text = state.page()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text.encode())

    async def _answer(self, state: State, asked: dict[str, Any], head: bytes, writer: asyncio.StreamWriter) -> str:
        """Answers one request; returns the fault that struck it, if any."""
        fault, state.requests = state.fault, state.requests + 1
        if fault is not None and fault.name == "restart" and state.requests == RESTART_AFTER:
            state.restart()
            raise Cut(reset=True)
        struck = fault is not None and fault.every is not None and (state.requests - 1) % fault.every == 0
        strikes = struck and state.requests > 0
        name = fault.name if fault is not None and strikes else ""
        state.begin()
        try:
            async for piece in pieces(name, asked, head, state):
                writer.write(piece)
                await writer.drain()
        except Cut as end:
            if end.reset:
                cut(writer)
            raise
        finally:
            state.running -= 1
        return name


def cut(writer: asyncio.StreamWriter) -> None:
    """Ends the connection with a reset."""
    own = writer.get_extra_info("socket")
    if own is not None:
        with contextlib.suppress(OSError):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


async def pieces(fault: str, asked: dict[str, Any], head: bytes, state: State) -> AsyncIterator[bytes]:
    """The answer as it is written, with that fault in it."""
    if fault in ("reset-before", "closed-before"):
        raise Cut(reset=fault == "reset-before")
    if fault == "slow-headers":
        await asyncio.sleep(SLOW_HEADERS_S)
    if fault == "no-headers":
        await asyncio.sleep(3600)
    if fault == "not-http":
        yield b"SSH-2.0-OpenSSH_9.9\r\n"
        raise Cut(reset=False)
    if fault.startswith("http-"):
        yield http_error(int(fault.split("-")[1]), body=fault.endswith("-json"))
        return
    if fault == "hostile-error":
        yield http_error(500, body=True, said=HOSTILE)
        return
    if fault == "echoed-key":
        yield http_error(401, body=True, said=head.decode())
        return
    if fault == "no-stream":
        yield whole(200, b'{"choices": [{"text": "5", "finish_reason": "stop"}]}')
        return
    count = min(TOKENS, int(asked["max_tokens"]))
    state.prompt_tokens += 20
    yield HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if fault == "closed-after" else HEAD
    await asyncio.sleep(TTFT_S)
    for event in events(fault, count):
        if event is None:
            state.tokens += 1
            await asyncio.sleep(ITL_S)
        elif event == b"stall":
            await asyncio.sleep(3600)
        elif event in (b"reset", b"close"):
            raise Cut(reset=event == b"reset")
        else:
            yield chunk(b"data: " + event + b"\n\n")
    yield b"0\r\n\r\n"
    if fault == "closed-after":
        raise Cut(reset=False)


def events(fault: str, count: int) -> Iterator[bytes | None]:
    """Data of the stream's events; None: a token's time passes, and it counts as made."""
    counted = fault not in ("no-usage", "some-without-usage")
    middle = count // 2
    for position in range(count):
        text, so_far, finish = f" {position}", position + 1, "stop" if position == count - 1 else None
        if position == middle:
            if fault in ("reset-inside", "closed-inside", "stalled"):
                yield {"reset-inside": b"reset", "closed-inside": b"close", "stalled": b"stall"}[fault]
            if fault == "malformed-sse":
                yield b'{"choices": ['
            if fault == "invalid-utf-8":
                yield b'{"choices": [{"index": 0, "text": "\xff\xfe"}]}'
            if fault == "error-in-stream":
                yield b'{"error": {"message": "EngineCore died", "code": 500}}'
                return
            if fault == "giant-line":
                text = "x" * 2**18
            if fault == "hostile-text":
                text = HOSTILE
            if fault == "usage-goes-back":
                so_far = 1
            if fault == "early-done":
                yield b"[DONE]"
            if fault == "two-ends":
                finish = "length"
        if fault == "no-tokens":
            text, so_far = "", 0
        elif fault == "double-usage":
            so_far *= 2
        if fault != "no-tokens":
            yield None
        usage = {"prompt_tokens": 20, "completion_tokens": so_far} if counted else None
        yield encoded([{"index": 0, "text": text, "finish_reason": finish}], usage)
        if fault == "no-tokens":
            yield encoded([{"index": 0, "text": "", "finish_reason": "stop"}], usage)
            break
    total = {"no-tokens": 0, "double-usage": 2 * count, "impossible-usage": -1}.get(fault, count)
    if counted:
        yield encoded([], {"prompt_tokens": 20, "completion_tokens": total})
    if fault == "no-done":
        return
    yield b"[DONE]"


def encoded(choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
    content: dict[str, Any] = {"id": "0", "object": "text_completion", "model": "faulty", "choices": choices}
    return json.dumps(content | ({"usage": usage} if usage else {})).encode()


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def whole(status: int, body: bytes) -> bytes:
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def http_error(status: int, *, body: bool, said: str = "the server says no") -> bytes:
    error = {"error": {"message": said, "type": "Error", "code": status}}
    return whole(status, json.dumps(error).encode() if body else b"")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    with FaultServer(parser.parse_args().port) as launched:
        launched.wait()
