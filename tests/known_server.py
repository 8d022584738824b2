"""A server whose every time is known: token k of an answer leaves at arrival + TTFT + k ITL, whatever the load.

    python tests/known_server.py --port 8100 --ttft-ms 200 --itl-ms 20 --tokens 50

A process of its own, a thread per connection, `time.sleep` to absolute deadlines: a late token does not delay the
next, and asyncio's millisecond timers play no part. It speaks vLLM's SSE on /v1/completions and /v1/chat/completions.
An answer has `--tokens` tokens, or the request's `max_tokens` if that is less; every fifth token has no text, as half a
character has none. The role-only chunk of a chat leaves at TTFT / 2, long before the first token.

With VLLM_API_KEY in the environment it asks for that key. /metrics counts what was really written. There is no
`vllm:iteration_tokens_total`, since nothing here runs in steps: whoever reads it has to take the gauge
`vllm:num_requests_running`.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

MODEL = "known-timing"
EMPTY_TEXT_EVERY = 5


class Counters:
    """What /metrics says."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, tuple[str, float]] = {
            "num_requests_running": ("gauge", 0),
            "num_requests_waiting": ("gauge", 0),
            "num_preemptions_total": ("counter", 0),
            "prompt_tokens_total": ("counter", 0),
            "generation_tokens_total": ("counter", 0),
            "time_to_first_token_seconds_count": ("counter", 0),
            "time_to_first_token_seconds_sum": ("counter", 0),
        }

    def add(self, name: str, amount: float) -> None:
        with self._lock:
            kind, value = self._values[name]
            self._values[name] = kind, value + amount

    def page(self) -> str:
        with self._lock:
            values = dict(self._values)
        return "".join(
            f'# TYPE vllm:{name} {kind}\nvllm:{name}{{engine="0",model_name="{MODEL}"}} {value}\n'
            for name, (kind, value) in values.items()
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    ttft_s: ClassVar[float]
    itl_s: ClassVar[float]
    tokens: ClassVar[int]
    counters: ClassVar[Counters] = Counters()

    def parse_request(self) -> bool:
        self.arrival_s = time.monotonic()
        return super().parse_request()

    def is_refused(self) -> bool:
        """As vLLM does with a key: /v1 is answered to those who send it, other pages to everybody."""
        key = os.environ.get("VLLM_API_KEY")
        if not key or not self.path.startswith("/v1") or self.headers["Authorization"] == f"Bearer {key}":
            return False
        self.send_error(401)
        return True

    def do_GET(self) -> None:
        if self.is_refused():
            return
        pages: dict[str, tuple[str, str]] = {
            "/health": ("text/plain", ""),
            "/version": ("application/json", json.dumps({"version": "known"})),
            "/v1/models": ("application/json", json.dumps({"object": "list", "data": [{"id": MODEL}]})),
            "/metrics": ("text/plain; version=0.0.4", self.counters.page()),
        }
        kind, text = pages.get(self.path, ("text/plain", "no such page"))
        body = text.encode()
        self.send_response(200 if self.path in pages else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        if self.is_refused():
            return
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokens = min(self.tokens, asked["max_tokens"])
        prompt_tokens = len(json.dumps(asked.get("messages") or asked["prompt"]).split())
        events = chat_events if self.path == "/v1/chat/completions" else completion_events
        self.counters.add("num_requests_running", 1)
        self.counters.add("prompt_tokens_total", prompt_tokens)
        finished = False
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for position, event in events(tokens, asked, prompt_tokens):
                deadline_s = self.arrival_s + (
                    self.ttft_s + position * self.itl_s if position is not None else self.ttft_s / 2
                )
                time.sleep(max(0.0, deadline_s - time.monotonic()))
                if event["choices"] and position is not None:
                    self.counters.add("generation_tokens_total", 1)
                if position == 0:
                    self.counters.add("time_to_first_token_seconds_sum", time.monotonic() - self.arrival_s)
                    self.counters.add("time_to_first_token_seconds_count", 1)
                self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.counters.add("num_requests_running", -1)
            finished = True
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
        except OSError:
            self.close_connection = True
        finally:
            if not finished:
                self.counters.add("num_requests_running", -1)

    def _chunk(self, body: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))

    def log_message(self, *_: Any) -> None:
        pass


def completion_events(
    tokens: int, asked: dict[str, Any], prompt_tokens: int
) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """(position of the token that the event brings, event)."""
    for position, text, finish_reason in _tokens(tokens):
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
        yield position, _event("text_completion", [choice], asked, prompt_tokens, position + 1)
    yield from _usage_event("text_completion", asked, prompt_tokens, tokens)


def chat_events(tokens: int, asked: dict[str, Any], prompt_tokens: int) -> Iterator[tuple[int | None, dict[str, Any]]]:
    """The same for a chat; None is the position of the role-only chunk."""
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    yield None, _event("chat.completion.chunk", [role], asked, prompt_tokens, 0)
    for position, text, finish_reason in _tokens(tokens):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason, "stop_reason": None}
        yield position, _event("chat.completion.chunk", [choice], asked, prompt_tokens, position + 1)
    yield from _usage_event("chat.completion.chunk", asked, prompt_tokens, tokens)


def _tokens(tokens: int) -> Iterator[tuple[int, str, str | None]]:
    for position in range(tokens):
        text = "" if position % EMPTY_TEXT_EVERY == EMPTY_TEXT_EVERY - 1 else f" {position}"
        yield position, text, "length" if position == tokens - 1 else None


def _usage_event(
    kind: str, asked: dict[str, Any], prompt_tokens: int, tokens: int
) -> Iterator[tuple[int | None, dict[str, Any]]]:
    if (asked.get("stream_options") or {}).get("include_usage"):
        event = _event(kind, [], asked, prompt_tokens, tokens)
        yield tokens - 1, {**event, "usage": _usage(prompt_tokens, tokens)}


def _event(
    kind: str, choices: list[dict[str, Any]], asked: dict[str, Any], prompt_tokens: int, so_far: int
) -> dict[str, Any]:
    event = {"id": "known-0", "object": kind, "created": 0, "model": MODEL, "choices": choices}
    if (asked.get("stream_options") or {}).get("continuous_usage_stats"):
        event["usage"] = _usage(prompt_tokens, so_far)
    return event


def _usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + tokens,
        "completion_tokens": tokens,
    }


class Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ttft-ms", type=float, default=200.0)
    parser.add_argument("--itl-ms", type=float, default=20.0)
    parser.add_argument("--tokens", type=int, default=50)
    asked = parser.parse_args()
    Handler.ttft_s = asked.ttft_ms / 1e3
    Handler.itl_s = asked.itl_ms / 1e3
    Handler.tokens = asked.tokens
    with Server(("127.0.0.1", asked.port), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
