"""Server-sent events out of a finished stream of reads (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_FIELD, _BETWEEN = b"data: ", b"\n\ndata: "
_AROUND = len(_FIELD) + 2
"""Bytes of a plain event beside its data."""


def split_events(read_t_ns: Sequence[int], reads: Sequence[bytes]) -> tuple[list[int], list[bytes]]:
    """Of each complete event the arrival (ns) of the read that brought its last byte, and its data.

    `reads` are in order, with the arrival of each; how the bytes are divided over them does not change the events.
    An event without a `data` field is skipped; a last event without its blank line never arrived.
    """
    stream = b"".join(reads)
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
    return [read_t_ns[bisect_left(read_ends, end)] for end in ends], datas


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
    for line in _LINE_END.split(block):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None
