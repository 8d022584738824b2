"""loadgen as users run it, which also writes down each answer's stamps: `python -m bench.truth.client FILE ARGS...`.

Nothing is added to a read. When an answer ends, its stream is kept; when loadgen has ended, FILE gets the kernel's and
the process's stamps of the same reads.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from bench.truth.stamps import NUMBER
from loadgen.cli import main
from loadgen.load.clockreading import ClockReading
from loadgen.load.exchange import Status
from loadgen.load.httpraw import HttpRaw

ended: list[HttpRaw] = []
_end = HttpRaw.ended


def keep(raw: HttpRaw, t_ns: int, failure: tuple[Status, str] | None, clock: ClockReading | None = None) -> None:
    _end(raw, t_ns, failure, clock)
    if failure is None and raw.request.phase == "measured":
        ended.append(raw)


def write(path: Path) -> None:
    """Per answer and event with a token: number, token, sent, by the kernel (-1: not stamped by it), by the process."""
    rows = []
    for raw in ended:
        kernel, datas = raw.events()
        found = NUMBER.search(b"".join(datas[:3]))
        if found is None:
            continue
        by_kernel = raw.stamps == "kernel"
        raw.stamps = "process"
        process, _ = raw.events()
        with_text = [k for k, data in enumerate(datas) if b'"text":"' in data or b'"content":" ' in data]
        for token, k in enumerate(with_text):
            rows.append((int(found[1]), token, raw.t_send_ns, kernel[k] if by_kernel else -1, process[k]))
    np.save(path, np.array(rows, dtype=np.int64).reshape(-1, 5))


if __name__ == "__main__":
    HttpRaw.ended = keep  # type: ignore[method-assign]
    file = Path(sys.argv.pop(1))
    try:
        main()
    finally:
        write(file)
