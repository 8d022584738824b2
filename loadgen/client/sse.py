"""Server-sent events out of a finished stream of reads (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_FIELD, _BETWEEN = b"data: ", b"\n\ndata: "


def split_events(reads: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Data of each complete event with the arrival time of the read that brought its last byte.

    `reads` are (arrival in ns, bytes) in order; how the bytes are divided over reads does not change the events.
    An event without a `data` field is skipped; a last event without its blank line never arrived.
    """
    stream = b"".join([data for _, data in reads])
    times = [t_ns for t_ns, _ in reads]
    read_ends = list(accumulate([len(data) for _, data in reads]))
    datas, ends = _plain_events(stream) or _events(stream)
    return [(times[bisect_left(read_ends, end)], data) for data, end in zip(datas, ends, strict=True)]


Events = tuple[list[bytes], list[int]]
"""Data of the events, and where in the stream each event ends."""


def _plain_events(stream: bytes) -> Events | None:
    """The events of a stream of `data: ...` lines and blank ones and nothing else, as vLLM sends it; else None."""
    if not (stream.startswith(_FIELD) and stream.endswith(b"\n\n")) or b"\r" in stream:
        return None
    datas = stream[len(_FIELD) : -2].split(_BETWEEN)
    if stream.count(b"\n") != 2 * len(datas):
        return None
    return datas, list(accumulate([len(_FIELD) + len(data) + 2 for data in datas]))


def _events(stream: bytes) -> Events:
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
    for line in _LINE_END.split(block):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None
