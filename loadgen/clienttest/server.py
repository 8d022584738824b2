"""A server of known timing, `python -m loadgen.clienttest.server`: a token to every stream at every tick. Its text
is CLOCK_MONOTONIC in ns just before it was sent; an answer's `stop_reason`, the same when its request was read.
One thread on selectors, ticks on absolute deadlines, about 5 us of CPU per token."""

from __future__ import annotations

import argparse
import re
import selectors
import socket
import sys
from collections import deque
from time import monotonic_ns

import msgspec

MODEL = "selftest"
PROMPT_TOKENS = 100
_PARENT = "parent"
"""Marks standard input, which ends with the process that started this one."""
_NS_DIGITS = 19
_READ_EVERY = 64
"""Sends of a tick between two reads: a request waits no longer than these take."""
_RECEIVE_BYTES = 1 << 18
_MAX_TOKENS = re.compile(rb'"max_tokens":\s*(\d+)')
_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
_DONE = b"data: [DONE]\n\n"


class Token(msgspec.Struct, frozen=True):
    """The bytes of an event around its time, as one HTTP chunk."""

    before: bytes
    after: bytes

    def at(self, t_ns: int) -> bytes:
        return b"%b%019d%b" % (self.before, t_ns, self.after)


class Frames:
    """The events of answers, each made once."""

    def __init__(self) -> None:
        self._middle: list[Token] = []

    def middle(self, position: int) -> Token:
        """The event of an answer's token, counted from 0, that is not its last."""
        while len(self._middle) <= position:
            place = len(self._middle) + 1
            before, after = _event(f'" {"0" * _NS_DIGITS}"', "null", "null", place).split(b"0" * _NS_DIGITS)
            length = len(before) + _NS_DIGITS + len(after)
            self._middle.append(Token(b"%x\r\n" % length + before, after + b"\r\n"))
        return self._middle[position]

    def last(self, position: int, t_ns: int, read_ns: int) -> bytes:
        """The last token, the usage and the end of the answer."""
        token = _event(f'" {t_ns:019d}"', '"length"', f'"{read_ns}"', position + 1)
        usage = _event(None, "null", "null", position + 1)
        return b"".join(b"%x\r\n%b\r\n" % (len(data), data) for data in (token, usage, _DONE)) + b"0\r\n\r\n"


def _event(text: str | None, finish: str, stop: str, tokens: int) -> bytes:
    choice = "" if text is None else (
        f'{{"index":0,"text":{text},"logprobs":null,"finish_reason":{finish},"stop_reason":{stop},'
        '"prompt_logprobs":null}'
    )  # fmt: skip
    return (
        f'data: {{"id":"cmpl-selftest","object":"text_completion","created":1700000000,"model":"{MODEL}",'
        f'"choices":[{choice}],"usage":{{"prompt_tokens":{PROMPT_TOKENS},"total_tokens":{PROMPT_TOKENS + tokens},'
        f'"completion_tokens":{tokens}}}}}\n\n'
    ).encode()


class Stream:
    """One client connection with at most one request at a time."""

    __slots__ = ("_unsent", "connection", "open", "read_ns", "received", "sent", "tokens")

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.read_ns = 0
        self.tokens = 0
        self.sent = 0
        self.open = True
        self._unsent = b""

    def send(self, data: bytes) -> None:
        """Never waits: bytes that the kernel's buffers do not take go with the next token."""
        if self._unsent:
            data = self._unsent + data
        try:
            done = self.connection.send(data)
        except BlockingIOError:
            done = 0
        except OSError:
            self.open = False
            return
        self._unsent = data[done:]


class Server:
    """Serves until its process or its standard input ends."""

    def __init__(self, listening: socket.socket, *, first_ns: int, tick_ns: int) -> None:
        self._listening = listening
        self._first_ns = first_ns
        self._tick_ns = tick_ns
        self._frames = Frames()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listening, selectors.EVENT_READ)
        self._selector.register(sys.stdin, selectors.EVENT_READ, _PARENT)
        self._waiting: deque[Stream] = deque()
        self._streaming: list[Stream] = []
        self._tokens = 0
        self._ttft_ns = 0
        self._firsts = 0

    def run(self) -> None:
        due_ns = monotonic_ns() + self._tick_ns
        while True:
            first_ns = self._waiting[0].read_ns + self._first_ns if self._waiting else due_ns
            self._read(max(0.0, (min(due_ns, first_ns) - monotonic_ns()) / 1e9))
            while self._waiting and self._waiting[0].read_ns + self._first_ns <= monotonic_ns():
                self._begin(self._waiting.popleft())
            if monotonic_ns() >= due_ns:
                self._tick()
                due_ns += self._tick_ns

    def _tick(self) -> None:
        streams, self._streaming = self._streaming, []
        for place, stream in enumerate(streams):
            if place % _READ_EVERY == _READ_EVERY - 1:
                self._read(0.0)
            self._token(stream)

    def _begin(self, stream: Stream) -> None:
        self._firsts += 1
        self._ttft_ns += monotonic_ns() - stream.read_ns
        stream.send(_HEAD)
        self._token(stream)

    def _token(self, stream: Stream) -> None:
        position = stream.sent
        stream.sent += 1
        self._tokens += 1
        if stream.sent < stream.tokens:
            stream.send(self._frames.middle(position).at(monotonic_ns()))
            if stream.open:
                self._streaming.append(stream)
        else:
            stream.send(self._frames.last(position, monotonic_ns(), stream.read_ns))

    def _read(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.data == _PARENT:
                sys.exit()
            elif key.data is None:
                connection, _ = self._listening.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._selector.register(connection, selectors.EVENT_READ, Stream(connection))
            else:
                self._receive(key.data)

    def _receive(self, stream: Stream) -> None:
        try:
            data = stream.connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(stream.connection)
            stream.connection.close()
            stream.open = False
            return
        stream.received += data
        head, found, body = stream.received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        expected = int(length[1]) if length else 0
        if not found or len(body) < expected:
            return
        stream.received = body[expected:]
        if head.startswith(b"GET "):
            self._tell(stream, head)
            return
        asked = _MAX_TOKENS.search(body)
        stream.read_ns, stream.sent, stream.tokens = monotonic_ns(), 0, int(asked[1]) if asked else 1
        self._waiting.append(stream)

    def _tell(self, stream: Stream, head: bytes) -> None:
        """Sends /metrics with vLLM's names; every other page is empty."""
        figures = {
            "num_requests_running": len(self._streaming) + len(self._waiting),
            "num_requests_waiting": 0,
            "generation_tokens_total": self._tokens,
            "time_to_first_token_seconds_count": self._firsts,
            "time_to_first_token_seconds_sum": self._ttft_ns / 1e9,
        }
        page = b""
        if head.startswith(b"GET /metrics"):
            page = "".join(f'vllm:{name}{{engine="0"}} {value}\n' for name, value in figures.items()).encode()
        stream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page))


def main() -> None:
    """Prints the port that it listens on, and serves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--first-ms", type=float, required=True)
    parser.add_argument("--tick-ms", type=float, required=True)
    asked = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        listening.setblocking(False)
        print(listening.getsockname()[1], flush=True)
        Server(listening, first_ns=round(asked.first_ms * 1e6), tick_ns=round(asked.tick_ms * 1e6)).run()


if __name__ == "__main__":
    main()
