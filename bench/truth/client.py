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
"""By which an answer's tokens differ in size at most: texts and counts grow, and the last says why it is the last."""


class Kept(NamedTuple):
    """The stamps of an answer."""

    t_send_ns: int
    by_kernel: bool
    times: Ints
    """By loadgen."""
    pieces: Pieces
    """Of the body, only its beginning."""


kept: list[Kept] = []
_decoded = HttpRaw._decoded


def keep(raw: HttpRaw) -> tuple[Ints, Pieces]:
    times, pieces = _decoded(raw)
    if raw.failure is None and raw.request.phase == "measured":
        begin = Pieces(pieces.body[:_BEGIN_BYTES], pieces.places)
        kept.append(Kept(raw.t_send_ns, raw.stamps == "kernel", times, begin))
    return times, pieces


def rows_of(answer: Kept) -> list[tuple[int, int, int, int, int]]:
    """Per token: number, token, sent, by the kernel (-1: not stamped by it), by the process.

    Raises ValueError unless each piece that is not empty is an event of the truth server: after the tokens come the
    usage and [DONE].
    """
    sizes = np.diff(answer.pieces.places[:, 0], prepend=0)
    *events, _, _ = np.flatnonzero(sizes).tolist()
    begins = list(filter(None, answer.pieces.some(0, events[min(1, len(events) - 1)] + 1)))
    role = NUMBER.search(begins[0]) is None  # a chat begins with it
    tokens = events[role:]
    found = NUMBER.search(begins[role]) if tokens else None
    if found is None or np.ptp(sizes[tokens]) > _APART_BYTES:
        raise ValueError("the server's events did not come one in each chunk")
    by_kernel = answer.times[tokens].tolist() if answer.by_kernel else [-1] * len(tokens)
    by_process = answer.pieces.places[tokens, 1].tolist()
    number, sent_ns = int(found[1]), answer.t_send_ns
    return [(number, token, sent_ns, *stamps) for token, stamps in enumerate(zip(by_kernel, by_process, strict=True))]


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
