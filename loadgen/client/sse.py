"""Server-sent events out of a finished stream of reads (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LINE_END = re.compile(rb"\r\n|\n|\r")


def split_events(reads: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Data of each complete event with the arrival time of the read that brought its last byte.

    `reads` are (arrival in ns, bytes) in order; how the bytes are divided over reads does not change the events.
    An event without a `data` field is skipped; a last event without its blank line never arrived.
    """
    stream = b"".join([data for _, data in reads])
    ends = list(accumulate(len(data) for _, data in reads))
    events: list[tuple[int, bytes]] = []
    read = 0
    start = 0
    for blank in _BLANK_LINE.finditer(stream):
        block, start = stream[start : blank.start()], blank.end()
        while ends[read] < blank.end():
            read += 1
        data = _data_of(block)
        if data is not None:
            events.append((reads[read][0], data))
    return events


def _data_of(block: bytes) -> bytes | None:
    if block.startswith(b"data: ") and b"\n" not in block and b"\r" not in block:
        return block[6:]
    lines = []
    for line in _LINE_END.split(block):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None
