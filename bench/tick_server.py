"""A cheap server for benchmarks of clients: one process that sends every stream a token on each tick of one clock.

All tokens of a tick leave together, as those of an engine step do: the worst case for whoever must stamp them. The
first token of an answer leaves FIRST_MS after its request, on a timer of its own. Frames are made beforehand.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop

FIRST_MS = 50.0
TICK_MS = 20.0
TOKENS = 200
PROMPT_TOKENS = 100
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def _frame(data: bytes) -> bytes:
    body = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(body), body)


def _event(choices: list[object], tokens: int) -> bytes:
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + tokens,
        "completion_tokens": tokens,
    }
    event = {
        "id": "cmpl-0123456789abcdef0123456789abcdef",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "tick",
        "choices": choices,
        "usage": usage,
    }
    return _frame(json.dumps(event).encode())


def _token(position: int, finish_reason: str | None) -> bytes:
    choice = {
        "index": 0,
        "text": f" {position}",
        "logprobs": None,
        "finish_reason": finish_reason,
        "stop_reason": None,
        "prompt_logprobs": None,
    }
    return _event([choice], position + 1)


MIDDLE = [_token(position, None) for position in range(TOKENS)]
LAST = [_token(k, "length") + _event([], k + 1) + _frame(b"[DONE]") + b"0\r\n\r\n" for k in range(TOKENS)]


class Connection(asyncio.Protocol):
    """One client connection; at most one request at a time."""

    streaming: set[Connection]

    def __init__(self, streaming: set[Connection]) -> None:
        self.streaming = streaming
        self._received = b""
        self._sent = 0
        self._tokens = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.streaming.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        self._received = body[length:]
        self._tokens = min(TOKENS, json.loads(body[:length])["max_tokens"])
        self._sent = 0
        self._transport.write(HEAD)
        asyncio.get_running_loop().call_later(FIRST_MS / 1e3, self._begin)

    def _begin(self) -> None:
        self.streaming.add(self)
        self.send_token()

    def send_token(self) -> None:
        if self._transport.is_closing():
            self.streaming.discard(self)
            return
        position = self._sent
        self._sent += 1
        last = self._sent == self._tokens
        self._transport.write(LAST[position] if last else MIDDLE[position])
        if last:
            self.streaming.discard(self)


async def serve(port: int) -> None:
    """Serves until killed; ticks on absolute deadlines."""
    loop = asyncio.get_running_loop()
    streaming: set[Connection] = set()
    await loop.create_server(lambda: Connection(streaming), "127.0.0.1", port, backlog=512)
    print("ready", flush=True)
    due_s = loop.time()
    while True:
        due_s += TICK_MS / 1e3
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        for connection in list(streaming):
            connection.send_token()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
