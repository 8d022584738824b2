"""vLLM-shaped streams for tests: events as the server writes them, and finished streams made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from loadgen.load.exchange import Request
from loadgen.load.httpraw import HttpRaw
from loadgen.load.sse import split_events

REQUEST = Request(item_id="sample-0000", prompt_sha="0" * 64, phase="measured", body=b"{}")
DONE = b"[DONE]"


def finished(reads: Sequence[tuple[int, bytes]], *, http_status: int | None = 200, failure: Any = None) -> HttpRaw:
    """A stream sent at 0 whose body came in these (arrival in ns, bytes) reads."""
    raw = HttpRaw(REQUEST, 3)
    raw.t_send_ns = 0
    for t_ns, data in reads:
        raw.keep(t_ns, data)
    raw.http_status = http_status
    raw.failure = failure
    raw.t_end_ns = reads[-1][0] if reads else 0
    return raw


def events_of(reads: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """(arrival in ns, data) of the events in these reads."""
    times, datas = split_events([t_ns for t_ns, _ in reads], [data for _, data in reads])
    return list(zip(times, datas, strict=True))


def one_read_per_event(*events: dict[str, Any] | bytes) -> list[tuple[int, bytes]]:
    """Event k (from 1) arrives at 10 k ns."""
    return [(10 * (k + 1), b"data: " + _encoded(event) + b"\n\n") for k, event in enumerate(events)]


def _encoded(event: dict[str, Any] | bytes) -> bytes:
    return event if isinstance(event, bytes) else json.dumps(event).encode()


def completion(text: str, so_far: int | None = None, *, finish: str | None = None) -> dict[str, Any]:
    """A /v1/completions event; `so_far`: its cumulative usage, if it carries one."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None}
    return _event("text_completion", [choice], so_far)


def chat(
    content: str | None = None, so_far: int | None = None, *, finish: str | None = None, **delta: Any
) -> dict[str, Any]:
    """A /v1/chat/completions event; `delta` are further fields of its delta."""
    choice = {"index": 0, "delta": {"content": content, **delta}, "finish_reason": finish, "stop_reason": None}
    return _event("chat.completion.chunk", [choice], so_far)


def usage(completion_tokens: int, prompt_tokens: int = 7) -> dict[str, Any]:
    """The last event that `include_usage` asks for."""
    return _event("text_completion", [], completion_tokens, prompt_tokens)


def _event(kind: str, choices: list[Any], tokens: int | None, prompt_tokens: int = 7) -> dict[str, Any]:
    event: dict[str, Any] = {"id": "cmpl-1", "object": kind, "created": 1, "model": "m", "choices": choices}
    if tokens is not None:
        event["usage"] = {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + tokens,
            "completion_tokens": tokens,
        }
    return event
