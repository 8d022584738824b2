"""Exchange: one request and its answer, read from the stream after its last byte arrived."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import monotonic_ns
from typing import Any, Literal

import msgspec

from loadgen.bounds import Count, Nanoseconds
from loadgen.load.alike import Alike, decode_parts
from loadgen.load.sse import (
    DONE,
    NULL,
    Finish,
    Usage,
    complaint,
    found_message,
    is_error,
    output_of,
    server_message,
)
from loadgen.load.tokens import TokenSource, TokenTimes, count_tokens
from loadgen.secret import Mask

Phase = Literal["warmup", "measured", "cooldown"]
"""`cooldown`: an open loop's traffic behind its window, while the window's last requests are answered."""
Status = Literal["ok", "connect", "timeout", "http", "broken", "malformed", "dropped"]
StampSource = Literal["kernel", "process"]
"""Who stamped an answer's reads: the kernel, when their last byte arrived, or this process, when it read them."""
_FAILED_FINISH = ("abort", "aborted", "error", "cancel", "canceled", "cancelled", "failed", "timeout")
"""Reasons to finish with which a server says that it did not: vLLM and SGLang have the first, vLLM also `error`.
`content_filter` is not among them: it cuts an answer as a stop string does."""
NOTE_NO_DONE = "the stream has no [DONE]"
_NO_DONE = "the stream ended before [DONE]"
_FIELDS = (b":", b"data", b"event", b"id", b"retry", b"\xef\xbb\xbf")
"""What a line of an event stream begins with, or the stream itself (a byte order mark)."""
STOPPED = "given up: the run was stopped"
"""The error of a request in flight when its load was closed."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot sends: a ready HTTP body, and the item that it asks."""

    item_id: str
    prompt_sha: str
    phase: Phase
    body: bytes
    max_tokens: int | None = None
    """The most tokens that the answer may have; None: not known."""
    t_scheduled_ns: int | None = None
    """When it is due; None: as soon as its slot is free."""


class Raw(ABC):
    """A stream that a transport hands over when it has ended, not yet read. Made when its request is sent."""

    __slots__ = (
        *("failure", "http_status", "location", "request", "retries", "size_bytes", "slot"),
        *("stamps", "t_end_ns", "t_send_ns"),
    )

    def __init__(self, request: Request, slot: int) -> None:
        self.request = request
        self.slot = slot
        self.http_status: int | None = None
        self.failure: tuple[Status, str] | None = None
        self.location: str | None = None
        """Where a redirect points to."""
        self.retries = 0
        self.size_bytes = 0
        """What it holds until it is read, about; 0: not known."""
        self.stamps: StampSource = "process"
        self.t_end_ns = 0
        self.t_send_ns = monotonic_ns()

    @abstractmethod
    def events(self) -> tuple[list[int], list[bytes]]:
        """Server-sent events in order: arrival of each in ns, and data of each; none, and a `failure`, where the
        body's coding cannot be undone."""

    def parts(self) -> tuple[list[int], list[bytes | Alike]]:
        """As `events`; some that are alike may be one entry."""
        times_ns, datas = self.events()
        return times_ns, [*datas]

    @abstractmethod
    def error_body(self) -> bytes:
        """The body of an answer that is not an event stream."""


class Exchange(msgspec.Struct, frozen=True, kw_only=True, tag="exchange"):
    """One row of requests.parquet. Times are CLOCK_MONOTONIC nanoseconds; None is 'not measured'."""

    slot: Count | None
    """None: dropped, there was no free one."""
    phase: Phase
    item_id: str
    prompt_sha: str
    t_scheduled_ns: Nanoseconds | None = None
    """When an open loop should have sent it; None in a closed loop."""
    t_send_ns: Nanoseconds
    """Just before the request is written (or its connection opened); when a dropped one found no free slot."""
    t_first_ns: Nanoseconds | None = None
    """Arrival of the first event that brought a token."""
    t_end_ns: Nanoseconds
    """Arrival of the answer's last byte, or the moment it was given up."""
    stamps: StampSource = "process"
    token_times: TokenTimes = ()
    """(arrival in ns, tokens) of each event that brought tokens."""
    token_source: TokenSource | None = None
    """`usage`: running counts of usage, see `load.tokens`; `chunks`: as many events as tokens, one each;
    `spread`: the total spread over the events, arrival times of single tokens unknown."""
    prompt_tokens: Count | None = None
    cached_tokens: Count | None = None
    """Prompt tokens that the server found in its prefix cache, by `usage.prompt_tokens_details`."""
    output_tokens: Count | None = None
    reasoning_tokens: Count | None = None
    """Output tokens of the reasoning, by the server; None where it gives none (it needs a reasoning parser)."""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    http_status: Count | None = None
    status: Status = "ok"
    error: str | None = None
    retries: Count = 0
    """How often it was sent again, as its kept connection was closed before the answer began."""
    notes: tuple[str, ...] = ()
    """What is odd about the answer and does not make it fail, a short sentence each."""
    text: str = ""
    reasoning: str = ""

    @property
    def t_due_ns(self) -> int:
        """Where its latency begins: when it was scheduled, else when it was sent."""
        return self.t_send_ns if self.t_scheduled_ns is None else self.t_scheduled_ns


def shifted(exchange: Exchange, by_ns: int) -> Exchange:
    """The exchange with all its times later by so much."""
    if not by_ns:
        return exchange
    due_ns, first_ns = exchange.t_scheduled_ns, exchange.t_first_ns
    return msgspec.structs.replace(
        exchange,
        t_scheduled_ns=None if due_ns is None else due_ns + by_ns,
        t_send_ns=exchange.t_send_ns + by_ns,
        t_first_ns=None if first_ns is None else first_ns + by_ns,
        t_end_ns=exchange.t_end_ns + by_ns,
        token_times=tuple((t_ns + by_ns, tokens) for t_ns, tokens in exchange.token_times),
    )


def read_exchange(raw: Raw) -> Exchange:
    """The Exchange of a finished stream; whatever is wrong with it ends in `status` and `error`, never in a raise."""
    if raw.http_status is None or raw.http_status == 200:
        return _read_stream(raw)
    message = server_message(raw.error_body())
    if raw.location is not None and raw.http_status < 400:
        message = f"redirected to {raw.location[:200]}, and redirects are not followed: give the server's own URL"
    return _exchange(raw, raw.failure or ("http", f"{raw.http_status}: {message}"))


def dropped(request: Request, t_ns: int, cap: int) -> Exchange:
    """The row of an arrival of an open loop that found `cap` requests in flight and was never sent."""
    error = f"{cap} requests were in flight"
    return Exchange(**_asked(request), slot=None, t_send_ns=t_ns, t_end_ns=t_ns, status="dropped", error=error)


def _asked(request: Request) -> dict[str, Any]:
    """The fields that an Exchange has from its request."""
    return {
        "phase": request.phase,
        "item_id": request.item_id,
        "prompt_sha": request.prompt_sha,
        "t_scheduled_ns": request.t_scheduled_ns,
    }


def _exchange(raw: Raw, failure: tuple[Status, str] | None, **read: Any) -> Exchange:
    """`read`: what the stream's events come to."""
    status, error = failure or ("ok", None)
    return Exchange(
        **_asked(raw.request),
        **read,
        slot=raw.slot,
        t_send_ns=raw.t_send_ns,
        t_end_ns=raw.t_end_ns,
        stamps=raw.stamps,
        http_status=raw.http_status,
        status=status,
        error=error,
        retries=raw.retries,
    )


def _read_stream(raw: Raw) -> Exchange:
    times_ns, parts = raw.parts()
    end = _end_of(parts)
    events, unreadable = decode_parts(parts[:end])
    texts: list[str] = []
    reasonings: list[str] = []
    counts: list[int] = []
    brought: list[bool] = []
    usage: Usage | None = None
    total: int | None = None
    separate = False
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    contradiction: str | None = None
    message: str | None = None
    error: str | None = None
    text: Any
    for event, data in zip(events, parts, strict=False):
        if isinstance(event, Alike):
            (reasonings if event.is_reasoning else texts).append(event.text)
            if finish_reason is not None and any(event.brought):
                contradiction = contradiction or _after_finish(finish_reason, True, None)
            brought += event.brought
            usage = event.usage or usage
            last = -1 if event.usage is None else event.usage.completion_tokens
            if last is None or last < 0:
                counts += [-1] * len(event.brought)
            else:
                total, separate = last, False
                counts += range(last + 1 - len(event.brought), last + 1)
            continue
        assert isinstance(data, bytes)
        if event.error is not NULL and is_error(event.error):
            error = server_message(data)
            break
        brought_output = opens = False
        for choice in event.choices or ():
            delta = choice.delta
            if delta is None:
                text, reasoning = choice.text, None
            else:
                text, reasoning = delta.content, delta.reasoning_content or delta.reasoning
                if not text or text.__class__ is not str:
                    text, reasoning, brought_output = output_of(delta)
                    opens = delta.role is not None
            if text:
                brought_output = True
                texts.append(text)
            if reasoning:
                brought_output = True
                reasonings.append(reasoning)
            reason = choice.finish_reason
            if finish_reason is not None or reason is not None:
                if isinstance(reason, Finish):
                    message, reason = reason.message or message, reason.type
                if finish_reason is not None:
                    contradiction = contradiction or _after_finish(finish_reason, brought_output, reason)
                finish_reason = reason or finish_reason
            if choice.stop_reason is not None:
                stop_reason = choice.stop_reason
            if choice.error is not NULL and is_error(choice.error):
                error = error or server_message(bytes(choice.error))
        used = event.usage
        count = -1
        if used is not None:
            usage = used
            if used.completion_tokens is not None:
                total, separate = used.completion_tokens, not event.choices
                if not separate:
                    count = total if brought_output or not opens else 0
        elif not event.choices and message is None:
            message, is_one = complaint(data)
            error = message if is_one else None
        counts.append(count)
        brought.append(brought_output)
        if error is not None:
            break
    counted = count_tokens(times_ns, counts, brought, total, separate=separate, most=raw.request.max_tokens)
    failure, notes = raw.failure, [counted.note] if counted.note else []
    if error is not None and (failure is None or failure[0] == "broken"):
        failure = "http", f"in the stream: {error}"
    if failure is None and unreadable is not None:
        failure = "malformed", f"{unreadable}: {parts[len(events)][:120]!r}"
    if failure is None and finish_reason is not None and finish_reason.lower() in _FAILED_FINISH:
        why = f"the server ended the answer with finish_reason {_quoted(finish_reason)}"
        failure = "http", f"{why}: {message}" if message else why
    if failure is None and end == len(parts):
        if finish_reason is None or usage is None:
            failure = _cut_short(raw, parts, message)
        else:
            notes.append(NOTE_NO_DONE)
    if any(isinstance(part, Alike) or part.strip() not in (DONE, b"") for part in parts[end:]):
        contradiction = contradiction or "the stream continues after [DONE]"
    contradiction = contradiction or counted.contradiction
    if failure is None and contradiction is not None:
        failure = "malformed", contradiction
    if failure is None and finish_reason is None:
        failure = ("http", f"in the stream: {message}") if message else ("malformed", "the stream has no finish_reason")
    times = counted.times
    details, prompt = (usage.completion_tokens_details, usage.prompt_tokens_details) if usage else (None, None)
    return _exchange(
        raw,
        failure,
        t_first_ns=times[0][0] if times else None,
        token_times=times,
        token_source=counted.source,
        prompt_tokens=usage.prompt_tokens if usage else None,
        cached_tokens=prompt.cached_tokens if prompt else None,
        output_tokens=counted.total,
        reasoning_tokens=details.reasoning_tokens if details else None,
        finish_reason=finish_reason,
        stop_reason=stop_reason,
        notes=tuple(notes),
        text="".join(texts),
        reasoning="".join(reasonings),
    )


def _end_of(parts: Sequence[bytes | Alike]) -> int:
    """The place of [DONE], or of the end."""
    if parts and parts[-1] == DONE:
        return parts.index(DONE)
    dones = (k for k, part in enumerate(parts) if isinstance(part, bytes) and part.strip() == DONE)
    return next(dones, len(parts))


def _after_finish(finish_reason: str, brought_output: bool, again: str | None) -> str | None:
    """What contradicts a finish_reason that an earlier event, or an earlier choice, had."""
    if brought_output:
        return f"text after finish_reason {_quoted(finish_reason)}"
    if again and again != finish_reason:
        return f"finish_reason is {_quoted(finish_reason)} and then {_quoted(again)}"
    return None


def _cut_short(raw: Raw, parts: Sequence[bytes | Alike], message: str | None) -> tuple[Status, str]:
    """Why a stream of status 200 has no end: the server's words, the body that came instead, or simply cut."""
    if message:
        return "http", f"in the stream: {message}"
    body = raw.error_body().strip()
    if not parts and body and not body.startswith(_FIELDS):
        return "malformed", f"no event stream: {server_message(body)}"
    last = found_message(body.rpartition(b"\n")[2])
    return ("http", f"in the stream: {last}") if last else ("broken", _NO_DONE)


def _quoted(text: str) -> str:
    return repr(text[:40])


def concealed(exchange: Exchange, mask: Mask) -> Exchange:
    """The exchange with secrets masked: in its error by value and by form, in the answer by value alone."""
    changes: dict[str, str] = {}
    for field in ("text", "reasoning", "finish_reason", "stop_reason", "error"):
        value = getattr(exchange, field)
        if isinstance(value, str):
            masked = mask(value) if field == "error" else mask.values(value)
            if masked != value:
                changes[field] = masked
    return msgspec.structs.replace(exchange, **changes) if changes else exchange
