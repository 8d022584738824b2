"""Exchange: one request and its answer, read from the stream after its last byte arrived."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Literal, Protocol

import msgspec

Phase = Literal["warmup", "measured", "cooldown"]
"""`cooldown`: an open loop's traffic behind its window, while the window's last requests are answered."""
Status = Literal["ok", "connect", "timeout", "http", "broken", "malformed", "dropped"]
TokenSource = Literal["usage", "chunks", "spread"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a slot sends: a ready HTTP body and what it stands for."""

    item_id: str
    prompt_sha: str
    phase: Phase
    body: bytes
    max_tokens: int | None = None
    """The most tokens that the answer may have; None: not known."""
    t_scheduled_ns: int | None = None
    """When it is due; None: as soon as its slot is free."""


class Raw(Protocol):
    """A finished stream, not yet read: what a transport hands over."""

    request: Request
    slot: int
    t_send_ns: int
    t_end_ns: int
    http_status: int | None
    failure: tuple[Status, str] | None
    size_bytes: int
    """What it holds until it is read, about; 0: not known."""

    def events(self) -> tuple[list[int], list[bytes]]:
        """Server-sent events in order: arrival of each in ns, and data of each."""
        ...

    def error_body(self) -> bytes:
        """The body of an answer that is no event stream."""
        ...


class Exchange(msgspec.Struct, frozen=True, kw_only=True, tag="exchange"):
    """One row of requests.parquet. Times are CLOCK_MONOTONIC nanoseconds; None is 'not measured'."""

    slot: int | None
    """None: dropped, there was no free one."""
    phase: Phase
    item_id: str
    prompt_sha: str
    t_scheduled_ns: int | None = None
    """When an open loop should have sent it; None in a closed loop."""
    t_send_ns: int
    """Just before the request is written (or the connection opened, if there is none yet); of a dropped one, when it
    found no free slot."""
    t_first_ns: int | None = None
    """Arrival of the first event that brought a token."""
    t_end_ns: int
    """Arrival of the answer's last byte, or the moment it was given up."""
    token_times: tuple[tuple[int, int], ...] = ()
    """(arrival in ns, tokens) of each event that brought tokens."""
    token_source: TokenSource | None = None
    """`usage`: cumulative usage on every event; `chunks`: as many events as tokens, one each;
    `spread`: the total spread over the events, arrival times of single tokens unknown."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Of the prompt tokens, those that the server found in its prefix cache, by `usage.prompt_tokens_details`."""
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    """Of the output tokens, by the server's count; None where it gives none (it needs a reasoning parser)."""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    http_status: int | None = None
    status: Status = "ok"
    error: str | None = None
    retries: int = 0
    """How often it was sent again, because its kept connection was closed before the answer began."""
    notes: tuple[str, ...] = ()
    """What is odd about the answer and does not make it fail, a short sentence each."""
    text: str = ""
    reasoning: str = ""

    @property
    def t_due_ns(self) -> int:
        """Where its latency begins: when it was scheduled, else when it was sent."""
        return self.t_send_ns if self.t_scheduled_ns is None else self.t_scheduled_ns


_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class _UsageDetails(msgspec.Struct, gc=False):
    reasoning_tokens: _Count | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: _Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens: _Count | None = None
    completion_tokens_details: _UsageDetails | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct, gc=False):
    index: Literal[0] | None = 0
    """One answer was asked for."""
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    stop_reason: str | _Count | None = None


_NULL = msgspec.Raw(b"null")
_DONE = b"[DONE]"
_FIELDS = (b":", b"data", b"event", b"id", b"retry")
"""What a line of an event stream begins with."""
MOST_MESSAGE = 280
"""Characters of a server's message that are kept."""


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = _NULL


class _ErrorBody(msgspec.Struct):
    message: str | None = None
    error: msgspec.Raw = _NULL
    detail: msgspec.Raw = _NULL


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_error = msgspec.json.Decoder(_ErrorBody).decode


def read_exchange(raw: Raw) -> Exchange:
    """The Exchange of a finished stream; whatever is wrong with it ends in `status` and `error`, never in a raise."""
    failure = raw.failure
    if raw.http_status is not None and raw.http_status != 200:
        failure = failure or ("http", f"{raw.http_status}: {_message(raw.error_body())}")
        return _exchange(raw, failure=failure)
    return _read_stream(raw, failure)


def dropped(request: Request, t_ns: int, cap: int) -> Exchange:
    """The row of an arrival of an open loop that found `cap` requests in flight and was never sent."""
    return Exchange(
        slot=None,
        phase=request.phase,
        item_id=request.item_id,
        prompt_sha=request.prompt_sha,
        t_scheduled_ns=request.t_scheduled_ns,
        t_send_ns=t_ns,
        t_end_ns=t_ns,
        status="dropped",
        error=f"{cap} requests were in flight",
    )


def _read_stream(raw: Raw, failure: tuple[Status, str] | None) -> Exchange:
    times_ns, datas = raw.events()
    end = datas.index(_DONE) if _DONE in datas else len(datas)
    events, unreadable = _decode_events(datas[:end])
    texts: list[str] = []
    reasonings: list[str] = []
    counts: list[int] = []
    brought: list[bool] = []
    usage: _Usage | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    contradiction: str | None = None
    for event in events:
        if event.error is not _NULL and bytes(event.error) != b"null":
            failure = failure or ("http", f"in the stream: {_message(datas[len(counts)])}")
            break
        brought_text = False
        for choice in event.choices:
            delta = choice.delta
            text = choice.text if delta is None else delta.content
            reasoning = None if delta is None else delta.reasoning_content or delta.reasoning
            if text:
                brought_text = True
                texts.append(text)
            if reasoning:
                brought_text = True
                reasonings.append(reasoning)
            if finish_reason is not None:
                contradiction = contradiction or _after_finish(finish_reason, brought_text, choice.finish_reason)
            finish_reason = choice.finish_reason or finish_reason
            if choice.stop_reason is not None:
                stop_reason = choice.stop_reason
        used = event.usage
        usage = used or usage
        counted = used.completion_tokens if used is not None and event.choices else None
        counts.append(-1 if counted is None else counted)
        brought.append(brought_text)
    else:
        if unreadable is not None:
            failure = failure or ("malformed", f"{unreadable}: {datas[len(events)][:120]!r}")
        elif end == len(datas):
            failure = failure or (("broken", "the stream ended before [DONE]") if datas else _no_stream(raw))
    if any(data != _DONE for data in datas[end:]):
        contradiction = contradiction or "the stream goes on after [DONE]"
    total = usage.completion_tokens if usage else None
    contradiction = contradiction or _miscount(counts, total, raw.request.max_tokens)
    if failure is None and contradiction is not None:
        failure = ("malformed", contradiction)
    if failure is None and finish_reason is None:
        failure = ("malformed", "the stream has no finish_reason")
    token_times, source = _locate_tokens(times_ns, counts, brought, total)
    return _exchange(
        raw,
        failure=failure,
        token_times=token_times,
        token_source=source,
        usage=usage,
        finish_reason=finish_reason,
        stop_reason=stop_reason,
        text="".join(texts),
        reasoning="".join(reasonings),
    )


def _decode_events(datas: Sequence[bytes]) -> tuple[list[_Event], Exception | None]:
    """The events up to the first that cannot be read, and what is wrong with that one."""
    with contextlib.suppress(*_UNREADABLE):
        return list(map(_decode_event, datas)), None
    events = []
    for data in datas:
        try:
            events.append(_decode_event(data))
        except _UNREADABLE as error:
            return events, error
    return events, None


def _after_finish(finish_reason: str, brought_text: bool, again: str | None) -> str | None:
    """What contradicts a finish_reason that an earlier event, or an earlier choice, had."""
    if brought_text:
        return f"text after finish_reason {_quoted(finish_reason)}"
    if again not in (None, finish_reason):
        return f"finish_reason is {_quoted(finish_reason)} and then {_quoted(str(again))}"
    return None


def _no_stream(raw: Raw) -> tuple[Status, str]:
    """Status 200 and not one event: the body that came instead, or the first event cut short."""
    body = raw.error_body().strip()
    if not body or body.startswith(_FIELDS):
        return "broken", "the stream ended before [DONE]"
    return "malformed", f"no event stream: {_message(body)}"


def _miscount(counts: Sequence[int], total: int | None, most: int | None) -> str | None:
    """What cannot be in the usage that the events report (-1: nothing reported), if anything."""
    reported = [counted for counted in counts if counted >= 0]
    if reported != sorted(reported):
        before, after = next((a, b) for a, b in pairwise(reported) if b < a)
        return f"usage goes back from {before} to {after} tokens"
    if total is None:
        return None
    if reported and total < reported[-1]:
        return f"usage ends at {total} tokens after {reported[-1]} were reported"
    if most is not None and total > most:
        return f"usage reports {total} tokens, at most {most} were asked for"
    return None


def _locate_tokens(
    times_ns: Sequence[int], counts: Sequence[int], brought: Sequence[bool], total: int | None
) -> tuple[tuple[tuple[int, int], ...], TokenSource | None]:
    """When how many tokens arrived, by the best evidence the stream holds.

    Of each event: its arrival, the tokens counted by then (-1: not told), whether it brought text.
    """
    if any(counted >= 0 for counted in counts):
        tops = list(accumulate(counts, max, initial=0))
        located = [(t, top - before) for t, before, top in zip(times_ns, tops, tops[1:], strict=False) if top > before]
        if total is not None and total > tops[-1]:
            located.append((times_ns[len(counts) - 1], total - tops[-1]))
        return tuple(located), "usage"
    times = [t_ns for t_ns, brought_text in zip(times_ns, brought, strict=False) if brought_text]
    if total is None or not times:
        return (), None
    if total == len(times):
        return tuple((t_ns, 1) for t_ns in times), "chunks"
    bounds = [total * k // len(times) for k in range(len(times) + 1)]
    return tuple((t, b - a) for t, a, b in zip(times, bounds, bounds[1:], strict=False) if b > a), "spread"


def _exchange(
    raw: Raw,
    *,
    failure: tuple[Status, str] | None,
    token_times: tuple[tuple[int, int], ...] = (),
    token_source: TokenSource | None = None,
    usage: _Usage | None = None,
    finish_reason: str | None = None,
    stop_reason: str | int | None = None,
    text: str = "",
    reasoning: str = "",
) -> Exchange:
    details = usage.completion_tokens_details if usage else None
    prompt_details = usage.prompt_tokens_details if usage else None
    return Exchange(
        slot=raw.slot,
        phase=raw.request.phase,
        item_id=raw.request.item_id,
        prompt_sha=raw.request.prompt_sha,
        t_scheduled_ns=raw.request.t_scheduled_ns,
        t_send_ns=raw.t_send_ns,
        t_first_ns=token_times[0][0] if token_times else None,
        t_end_ns=raw.t_end_ns,
        token_times=token_times,
        token_source=token_source,
        prompt_tokens=usage.prompt_tokens if usage else None,
        cached_tokens=prompt_details.cached_tokens if prompt_details else None,
        output_tokens=usage.completion_tokens if usage else None,
        reasoning_tokens=details.reasoning_tokens if details else None,
        finish_reason=finish_reason,
        stop_reason=stop_reason,
        http_status=raw.http_status,
        status=failure[0] if failure else "ok",
        error=failure[1] if failure else None,
        text=text,
        reasoning=reasoning,
    )


def _message(body: bytes) -> str:
    """The server's own words: `error.message`, `message` or `detail` of a JSON body, else the body's beginning."""
    said = body[:MOST_MESSAGE].decode(errors="replace").strip()
    try:
        answer = _decode_error(body)
        nested = bytes(answer.error)
        if nested != b"null":
            try:
                answer = _decode_error(nested)
            except msgspec.ValidationError:
                said = str(msgspec.json.decode(nested))
        if answer.message:
            said = answer.message
        elif bytes(answer.detail) != b"null":
            said = bytes(answer.detail).decode(errors="replace")
    except _UNREADABLE:
        pass
    return " ".join(said[: 2 * MOST_MESSAGE].split())[:MOST_MESSAGE] or "no message"


def _quoted(text: str) -> str:
    return repr(text[:40])
