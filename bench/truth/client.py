"""loadgen as users run it, which also writes down each answer's stamps: `python -m bench.truth.client FILE ARGS...`.

Nothing is added to a read. When an answer is parsed, its stamps and its first token are kept; the whole of it would
cost the client fresh memory for every answer. When loadgen has ended, FILE gets the kernel's and the process's stamps
of the same reads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.truth.stamps import NUMBER
from loadgen.cli import main
from loadgen.load.httpraw import HttpRaw
from loadgen.load.pieces import Ints, Pieces

_BEGIN_BYTES = 4096
"""Of a body: its first token is there."""
_APART_BYTES = 16
"""By which the events of an answer's tokens differ in size at most: their texts and counts grow."""


class Kept(NamedTuple):
    """The stamps of an answer."""

    t_send_ns: int
    by_kernel: bool
    times: Ints
    """By loadgen."""
    pieces: Pieces
    """With the begin of the body alone."""


kept: list[Kept] = []
_decoded = HttpRaw._decoded


def keep(raw: HttpRaw) -> tuple[Ints, Pieces]:
    times, pieces = _decoded(raw)
    if raw.failure is None and raw.request.phase == "measured":
        begin = Pieces(pieces.body[:_BEGIN_BYTES], pieces.places)
        kept.append(Kept(raw.t_send_ns, raw.stamps == "kernel", times, begin))
    return times, pieces


def rows_of(answer: Kept) -> list[tuple[int, int, int, int, int]]:
    """Per token, and per event behind the last: number, token, sent, by the kernel (-1: not stamped by it), by the
    process. Each piece that is not empty is an event, or ValueError is raised."""
    sizes = np.diff(answer.pieces.places[:, 0], prepend=0)
    events = np.flatnonzero(sizes)
    begins = answer.pieces.some(0, int(events[3]))
    first = next(k for k, event in enumerate(events[:3]) if b" #" in begins[event])
    found = NUMBER.search(begins[events[first]])
    tokens = sizes[events[first:-3]]  # behind them: the last token, the usage, [DONE]
    if found is None or np.abs(tokens - tokens[0]).max(initial=0) > _APART_BYTES:
        raise ValueError("the server's events did not come one in each chunk")
    used, process = answer.times[events[first:]].tolist(), answer.pieces.places[events[first:], 1].tolist()
    return [
        (int(found[1]), token, answer.t_send_ns, by_kernel if answer.by_kernel else -1, by_process)
        for token, (by_kernel, by_process) in enumerate(zip(used, process, strict=True))
    ]


def write(path: Path) -> None:
    rows = [row for answer in kept for row in rows_of(answer)]
    np.save(path, np.array(rows, dtype=np.int64).reshape(-1, 5))


if __name__ == "__main__":
    HttpRaw._decoded = keep  # type: ignore[method-assign]
    file = Path(sys.argv.pop(1))
    try:
        main()
    finally:
        write(file)
