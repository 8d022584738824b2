"""Events of an OpenAI-compatible stream: their JSON, and what output is in it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from loadgen.bounds import Count
from loadgen.client.servermessage import UNREADABLE, found_message

NULL = msgspec.Raw(b"null")
"""What an `error` member is where there is none: this very object."""
_NOTHING = (b"null", b"false", b'""', b"{}", b"[]", b"0")
DONE = b"[DONE]"


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: Count | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: Count | None = None


class Usage(msgspec.Struct, gc=False):
    """Token counts."""

    prompt_tokens: Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens: Count | None = None
    completion_tokens_details: _CompletionDetails | None = None


class Delta(msgspec.Struct, gc=False):
    """What a chat's event adds. Servers have several names for reasoning; a text may come as a list of parts."""

    role: str | None = None
    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: Any = None
    refusal: str | None = None
    tool_calls: Any = None
    function_call: Any = None


class Finish(msgspec.Struct, gc=False):
    """SGLang's own API has an object here."""

    type: str | None = None
    message: str | None = None


class Choice(msgspec.Struct, gc=False):
    """The one answer that was asked for."""

    index: Literal[0] | None = 0
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | Finish | None = None
    stop_reason: str | Count | None = None
    error: msgspec.Raw = NULL


class Event(msgspec.Struct, gc=False):
    """Data of one server-sent event."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = NULL


class _Marked(msgspec.Struct, gc=False):
    object: Any = None


_decode_event = msgspec.json.Decoder(Event).decode
_decode_marked = msgspec.json.Decoder(_Marked).decode
_EMPTY = Event()
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""Characters that JSON wants escaped inside a text, and that some servers send as they are."""


def decode_events(datas: Sequence[bytes]) -> tuple[list[Event], Exception | None]:
    """The events up to the first that cannot be read, and what is wrong with that one. Empty data is an empty event."""
    with contextlib.suppress(*UNREADABLE):
        return list(map(_decode_event, datas)), None
    events = []
    for data in datas:
        try:
            escaped = _CONTROL.sub(lambda found: b"\\u%04x" % found[0][0], data)
            events.append(_decode_event(escaped) if data.strip() not in (b"", b"null") else _EMPTY)
        except UNREADABLE as error:
            return events, error
    return events, None


def is_error(error: msgspec.Raw) -> bool:
    """An `error` member says something."""
    return bytes(error).strip() not in _NOTHING


def complaint(data: bytes) -> tuple[str | None, bool]:
    """What an event without choices and usage says, if it says something; and whether it calls itself an error."""
    said = found_message(data)
    try:
        return said, said is not None and _decode_marked(data).object == "error"
    except UNREADABLE:
        return said, False


def output_of(delta: Delta) -> tuple[str, str, bool]:
    """(text, reasoning, whether a tool is called) of any delta."""
    text, thought = _parts(delta.content)
    reasoning = delta.reasoning_content or delta.reasoning or "".join(_parts(delta.thinking))
    called = delta.tool_calls is not None or delta.function_call is not None
    return text or delta.refusal or "", reasoning + thought, called and _calls_tool(delta)


def _parts(content: Any) -> tuple[str, str]:
    """(text, reasoning) of a text or a list of parts, `{"type": "text", "text": ...}` or Mistral's `"thinking"`."""
    if isinstance(content, str):
        return content, ""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            for name, where in (("text", texts), ("refusal", texts), ("thinking", thoughts), ("reasoning", thoughts)):
                if part.get(name):
                    where.append("".join(_parts(part[name])))
    return "".join(texts), "".join(thoughts)


def _calls_tool(delta: Delta) -> bool:
    """The event brings part of a call: a name, or some of its arguments."""
    calls = delta.tool_calls if isinstance(delta.tool_calls, list) else [delta.tool_calls]
    functions = [delta.function_call, *(_function_of(call) for call in calls)]
    return any(
        isinstance(function, dict) and bool(function.get("name") or function.get("arguments") or function.get("input"))
        for function in functions
    )


def _function_of(call: Any) -> Any:
    return (call.get("function") or call.get("custom")) if isinstance(call, dict) else None
