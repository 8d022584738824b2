"""Servers as they are met in the wild, each with a path of its own: what every one does right stands in `Wild`.

    class Refusing(Wild):
        def refuse(self, asked, head):
            return whole(429, {"error": {"message": "slow down"}})

    with serving({"plain": Wild(), "refusing": Refusing()}) as url:
        loadgen.sweep(targets={"a:fp16": f"{url}/plain", "b:fp16": f"{url}/refusing"}, ...)

A `Wild` has true timing: its first token leaves `ttft_s` after its request was read, token k `itl_s` later than token
k - 1 on absolute deadlines, with `tokens` of them (or the request's `max_tokens`, if that is less). Its /metrics are
vLLM's: the gauges, the counters, and an engine that makes one step per token of the batch. Override:

    answer(asked)            yields the stream's bytes; `chunk`, `total`, `event` and DONE make pieces, `token(k)` waits
                             until token k is due and counts it
    respond(asked, head, w)  the whole answer with its HTTP head, for other framing; True: close the connection
    refuse(asked, head)      bytes of a whole HTTP answer instead (`whole` makes them), or None
    models(head), metrics(head)  bytes of a whole HTTP answer; `series(head)` gives the lines of /metrics, to add to

`seen` has (head, body) of every POST, `connections` counts those that asked this server at least once. The servers run
in a thread of this process, on a free port of 127.0.0.1; `python tests/wild_server.py --port N` serves a plain one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

DONE = b"data: [DONE]\n\n"
PROMPT_TOKENS = 50


class Wild:
    """A server that does everything right."""

    model = "wild"
    tokens = 12
    ttft_s = 0.04
    itl_s = 0.01
    headers = "Content-Type: text/event-stream\r\n"

    def __init__(self, **changes: Any) -> None:
        """`changes`: attributes by name, as tokens=1."""
        vars(self).update(changes)
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.connections = 0
        self.running = self.peak = 0
        self.made = self.prompt = self.steps = self.first_s = 0.0
        self.firsts = 0
        self._read_s: dict[asyncio.Task[Any] | None, float] = {}

    async def answer(self, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        """The stream."""
        count = self.count(asked)
        for k in range(count):
            await self.token(k)
            yield self.chunk(f" {k}", k + 1, "length" if k == count - 1 else None)
        yield self.total(count)
        yield DONE

    async def respond(self, asked: dict[str, Any], head: str, writer: asyncio.StreamWriter) -> bool:
        """Writes an answer in chunked coding; True: the connection ends here."""
        writer.write(b"HTTP/1.1 200 OK\r\n" + self.headers.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        async for piece in self.answer(asked):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        return False

    def refuse(self, asked: dict[str, Any], head: str) -> bytes | None:
        return None

    def models(self, head: str) -> bytes:
        return whole(200, {"object": "list", "data": [{"id": self.model, "object": "model"}]})

    def metrics(self, head: str) -> bytes:
        return whole(200, "".join(f"{line}\n" for line in self.series(head)).encode())

    def series(self, head: str) -> list[str]:
        values = {
            "num_requests_running": self.running,
            "num_requests_waiting": 0,
            "num_preemptions_total": 0,
            "generation_tokens_total": self.made,
            "prompt_tokens_total": self.prompt,
            "iteration_tokens_total_count": self.steps,
            "time_to_first_token_seconds_count": self.firsts,
            "time_to_first_token_seconds_sum": self.first_s,
        }
        return [f'vllm:{name}{{engine="0",model_name="{self.model}"}} {value}' for name, value in values.items()]

    def count(self, asked: dict[str, Any]) -> int:
        """Tokens of the answer."""
        return min(self.tokens, int(asked.get("max_tokens") or self.tokens))

    async def token(self, k: int, tokens: int = 1) -> None:
        """Returns when token k of the running answer is due, and counts `tokens` as made."""
        due_s = self._read_s[asyncio.current_task()] + self.ttft_s + k * self.itl_s
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        if k == 0:
            self.firsts += 1
            self.first_s += self.ttft_s
        self.made += tokens
        self.steps += tokens / max(1, self.peak)

    def chunk(self, text: str | None, so_far: int | None = None, finish: str | None = None, **choice: Any) -> bytes:
        """An event of a completion; `so_far`: its usage, None for none; `choice`: further fields of its choice."""
        body: dict[str, Any] = {"id": "x", "object": "text_completion", "model": self.model}
        body["choices"] = [{"index": 0, "text": text, "finish_reason": finish, **choice}]
        return self.event(body | ({"usage": usage_of(so_far)} if so_far is not None else {}))

    def delta(self, so_far: int | None = None, finish: str | None = None, **delta: Any) -> bytes:
        """The same of a chat."""
        body: dict[str, Any] = {"id": "x", "object": "chat.completion.chunk", "model": self.model}
        body["choices"] = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return self.event(body | ({"usage": usage_of(so_far)} if so_far is not None else {}))

    def total(self, tokens: int) -> bytes:
        """The last event, with the usage."""
        return self.event({"id": "x", "model": self.model, "choices": [], "usage": usage_of(tokens)})

    def event(self, content: Any) -> bytes:
        return b"data: " + json.dumps(content).encode() + b"\n\n"

    async def serve(self, method: str, path: str, head: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; True: the connection ends here."""
        if method == "GET":
            writer.write(self._page(path, head))
            return False
        asked = json.loads(body)
        self.seen.append((head, asked))
        refusal = self.refuse(asked, head)
        if refusal is not None:
            writer.write(refusal)
            return False
        task = asyncio.current_task()
        self._read_s[task] = time.monotonic()
        self.prompt += PROMPT_TOKENS
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            return await self.respond(asked, head, writer)
        finally:
            self.running -= 1
            self._read_s.pop(task, None)

    def _page(self, path: str, head: str) -> bytes:
        if path.endswith("/models"):
            return self.models(head)
        if path.startswith("/metrics"):
            return self.metrics(head)
        return whole(200, {"version": "0.33.0"}) if path == "/version" else whole(404, {})


def usage_of(completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": completion_tokens,
        "total_tokens": PROMPT_TOKENS + completion_tokens,
    }


def whole(status: int, content: Any, headers: str = "") -> bytes:
    """An HTTP answer with a length; `content`: bytes, or what becomes JSON."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return f"HTTP/1.1 {status} X\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


class _Front:
    """The port, in a thread of its own."""

    def __init__(self, servers: Mapping[str, Wild], host: str, port: int) -> None:
        self._servers = servers
        self._loop = asyncio.new_event_loop()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=1024)
        self._connections: set[asyncio.Task[Any]] = set()
        self.thread = threading.Thread(target=self._run, daemon=True)
        bound = self._socket.getsockname()[1]
        self.url = f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=self._socket))
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked: set[str] = set()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, target, _ = head.split(" ", 2)
                _, _, length = head.lower().partition("content-length:")
                body = await reader.readexactly(int(length.split("\r\n")[0])) if length else b""
                name, _, path = target.lstrip("/").partition("/")
                if name not in self._servers:
                    name, path = "", target.lstrip("/")
                server = self._servers.get(name)
                if server is None:
                    writer.write(whole(404, {}))
                    continue
                server.connections += name not in asked
                asked.add(name)
                if await server.serve(method, f"/{path}", head, body, writer):
                    break
        writer.close()


@contextlib.contextmanager
def serving(servers: Mapping[str, Wild] | Wild, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The address of these servers, each below its name (a single one has no name), while the context lasts."""
    front = _Front({"": servers} if isinstance(servers, Wild) else servers, host, port)
    front.thread.start()
    try:
        yield front.url
    finally:
        front.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    with serving(Wild(), port=parser.parse_args().port):
        threading.Event().wait()
