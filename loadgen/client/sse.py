"""Server-sent events out of a finished stream of reads (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_FIELD, _BETWEEN = b"data: ", b"\n\ndata: "
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_KEEP_ALIVES = (b"ping", b"keepalive", b"keep-alive", b"heartbeat")
"""Types of events whose data is no part of the answer, unless it is JSON."""
_AROUND = len(_FIELD) + 2
"""Bytes of a plain event beside its data."""


def split_events(
    read_t_ns: Sequence[int], reads: Sequence[bytes], *, ended: bool = False
) -> tuple[list[int], list[bytes]]:
    """Of each complete event the arrival (ns) of the read that brought its last byte, and its data.

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
