"""SSE: server-sent events out of a finished stream of reads, the JSON of an OpenAI-compatible stream in them, and the
server's own words about an error. Sources: WHATWG HTML, section 9.2; content codings, RFC 9110, section 8.4.1.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import msgspec

from loadgen.bounds import Count, shown_bytes

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_FIELD, _BETWEEN = b"data: ", b"\n\ndata: "
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_KEEP_ALIVES = (b"ping", b"keepalive", b"keep-alive", b"heartbeat")
"""Types of events whose data does not belong to the answer, unless it is JSON."""
_AROUND = len(_FIELD) + 2
"""Bytes of a plain event around its data."""


def split_events(
    read_t_ns: Sequence[int], reads: Sequence[bytes], *, ended: bool = False
) -> tuple[list[int], list[bytes]]:
    """The arrival (ns) of the read that brought each complete event's last byte, and each event's data.

    `reads` are in order, with the arrival of each; how the bytes are divided over them does not change the events.
    An event without a `data` field is skipped, and so is a byte order mark in front of a line. A last event without its
    blank line never arrived; of a stream that `ended` properly it did if its data is `[DONE]` or a whole JSON object.
    """
    stream = b"".join(reads)
    if ended and not stream.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
        stream = _completed(stream)
    lengths = list(map(len, reads))
    datas = _plain_events(stream)
    if datas is None:
        datas, ends = _events(stream)
    else:
        of_events = [len(data) + _AROUND for data in datas]
        alone = len(reads) - 1
        if of_events[:alone] == lengths[:alone]:  # a read per event, as a rule; the last read may bring several
            last = read_t_ns[alone]
            return [*read_t_ns[:alone], *[last] * (len(datas) - alone)], datas
        ends = list(accumulate(of_events))
    read_ends = list(accumulate(lengths))
    return [read_t_ns[bisect_left(read_ends, min(end, read_ends[-1]))] for end in ends], datas


def _completed(stream: bytes) -> bytes:
    """With the blank line that its last event lacks, if that one is whole."""
    *_, last = _BLANK_LINE.split(stream)
    data = (_data_of(last) or b"").strip()
    whole = data == b"[DONE]" or (data.startswith(b"{") and data.endswith(b"}"))
    return stream + (b"\n" if stream.endswith(b"\n") else b"\n\n") if whole else stream


def _plain_events(stream: bytes) -> list[bytes] | None:
    """Data of the events of a stream of nothing but `data: ...` and blank lines, as vLLM sends it; else None."""
    if not (stream.startswith(_FIELD) and stream.endswith(b"\n\n")) or b"\r" in stream:
        return None
    datas = stream[len(_FIELD) : -2].split(_BETWEEN)
    return datas if stream.count(b"\n") == 2 * len(datas) else None


def _events(stream: bytes) -> tuple[list[bytes], list[int]]:
    """Data of the events, and where in the stream each event ends."""
    datas: list[bytes] = []
    ends: list[int] = []
    start = 0
    for blank in _BLANK_LINE.finditer(stream):
        data = _data_of(stream[start : blank.start()])
        start = blank.end()
        if data is not None:
            datas.append(data)
            ends.append(start)
    return datas, ends


def _data_of(block: bytes) -> bytes | None:
    lines = []
    event = b""
    for line in _LINE_END.split(block):
        name, _, value = line.removeprefix(_BYTE_ORDER_MARK).partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
        elif name == b"event":
            event = value.strip().lower()
    if not lines or (event in _KEEP_ALIVES and not lines[0].lstrip().startswith(b"{")):
        return None
    return b"\n".join(lines)


GZIP_MAGIC = b"\x1f\x8b\x08"


def undone(coding: str, reads: Sequence[bytes], most_bytes: int) -> list[bytes]:
    """The bytes that each read completed, so that an event keeps the arrival of its last byte.

    `gzip` and `deflate` are read, the latter with zlib's frame or without (RFC 9110 allows the first, servers send
    both). Raises ValueError, with a sentence, for other codings, for data that is not of that coding, and for more
    than `most_bytes`.
    """
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"the answer is encoded as {coding[:40]!r}, which loadgen did not ask for and does not read")
    bits = window_bits(coding, b"".join(reads))
    decoder = zlib.decompressobj(bits)
    left, decoded = most_bytes, []
    try:
        for read in reads:
            came, rest = b"", read
            while rest and left >= 0:
                if decoder.eof:  # a gzip body may have several members
                    decoder = zlib.decompressobj(bits)
                came += decoder.decompress(rest, left + 1 - len(came))
                rest = decoder.unused_data
            left -= len(came)
            if left < 0:
                raise ValueError(f"the answer is longer than {shown_bytes(most_bytes)}")
            decoded.append(came)
    except zlib.error as error:
        raise ValueError(f"the answer says that it is encoded as {coding}, and cannot be decoded: {error}") from None
    return decoded


def window_bits(coding: str, body: bytes) -> int:
    """zlib's `wbits` for a body: raw, or with a frame. A zlib frame has method 8, and its first two bytes are a
    multiple of 31 (RFC 1950, section 2.2)."""
    is_zlib = len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return -zlib.MAX_WBITS if coding == "deflate" and not is_zlib else zlib.MAX_WBITS | 32


MOST_MESSAGE = 280
"""Characters of a server's message that are kept."""
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding JSON raises."""
_WORDS = ("message", "error", "detail", "details", "errors", "msg", "error_message", "error_description", "title")
"""Members of a JSON object that hold the message, the more specific first."""
_DEEPEST = 6
_MOST_ITEMS = 8
"""Items of a list of errors that are read."""


def server_message(body: bytes) -> str:
    """The message in a JSON body, however deep, else the body's beginning; "no message" for an empty one."""
    message = found_message(body) or body[:MOST_MESSAGE].decode(errors="replace")
    return " ".join(message[: 2 * MOST_MESSAGE].split())[:MOST_MESSAGE] or "no message"


def found_message(body: bytes) -> str | None:
    """The message in a JSON body; None if it is not JSON or holds none.

    OpenAI's and vLLM's shape is `{"error": {"message": ...}}`; `{"object": "error", "message": ...}`,
    `{"error": "...", "error_type": ...}` (TGI) and `{"detail": ...}`, a text or FastAPI's list, are others. Gateways
    put any of them as JSON text inside another.
    """
    try:
        return _words(msgspec.json.decode(body), _DEEPEST)
    except UNREADABLE:
        return None


def _words(value: Any, deepest: int) -> str | None:
    if not deepest:
        return None
    if isinstance(value, str):
        return _unwrapped(value, deepest).strip() or None
    if isinstance(value, list):
        return "; ".join(words for item in value[:_MOST_ITEMS] if (words := _words(item, deepest - 1))) or None
    if not isinstance(value, dict):
        return None
    found = next((words for name in _WORDS if (words := _words(value.get(name), deepest - 1))), None)
    place = value.get("loc")
    if found is not None and isinstance(place, list):  # FastAPI: where in the request
        return f"{'.'.join(str(part) for part in place)}: {found}"
    return found


def _unwrapped(text: str, deepest: int) -> str:
    """The message of JSON inside a text; the text itself where there is none."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _words(msgspec.json.decode(text), deepest - 1) or text
        except UNREADABLE:
            pass
    return text


NULL = msgspec.Raw(b"null")
"""The default of an `error` member, compared by identity."""
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
    """What a chat's event adds. Servers name reasoning differently; a text may come as a list of parts."""

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


decode_event = msgspec.json.Decoder(Event).decode
_decode_marked = msgspec.json.Decoder(_Marked).decode
_EMPTY = Event()
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""Characters that JSON wants escaped inside a text, and that some servers send as they are."""


def decode_events(datas: Sequence[bytes]) -> tuple[list[Event], Exception | None]:
    """The events up to the first that cannot be read, and what is wrong with that one. Empty data is an empty event."""
    with contextlib.suppress(*UNREADABLE):
        return list(map(decode_event, datas)), None
    events = []
    for data in datas:
        try:
            escaped = _CONTROL.sub(lambda found: b"\\u%04x" % found[0][0], data)
            events.append(decode_event(escaped) if data.strip() not in (b"", b"null") else _EMPTY)
        except UNREADABLE as error:
            try:
                data.decode()
            except UnicodeDecodeError as python_error:  # msgspec's words depend on its version
                return events, python_error
            return events, error
    return events, None


def is_error(error: msgspec.Raw) -> bool:
    """An `error` member says something."""
    return bytes(error).strip() not in _NOTHING


def complaint(data: bytes) -> tuple[str | None, bool]:
    """The message of an event without choices and usage, if it has one; and whether it calls itself an error."""
    message = found_message(data)
    try:
        return message, message is not None and _decode_marked(data).object == "error"
    except UNREADABLE:
        return message, False


def output_of(delta: Delta) -> tuple[str, str, bool]:
    """The delta's text, its reasoning, and whether it calls a tool."""
    text, thought = _parts(delta.content)
    reasoning = delta.reasoning_content or delta.reasoning or "".join(_parts(delta.thinking))
    called = delta.tool_calls is not None or delta.function_call is not None
    return text or delta.refusal or "", reasoning + thought, called and _calls_tool(delta)


def _parts(content: Any) -> tuple[str, str]:
    """Text and reasoning in a text or in a list of parts: `{"type": "text", "text": ...}`, Mistral's `"thinking"`."""
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
    named = [call.get("function") or call.get("custom") for call in calls if isinstance(call, dict)]
    functions = [function for function in (delta.function_call, *named) if isinstance(function, dict)]
    return any(function.get(field) for function in functions for field in ("name", "arguments", "input"))
