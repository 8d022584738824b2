"""How far a client's stamps are from the server's own: the client's less the server's, token by token."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

NUMBER = re.compile(rb" #(\d{8})")
"""An answer's number, in its first token."""


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of all tokens, in ms, without sign."""

    median_ms: float
    p99_ms: float
    max_ms: float
    ttft_ms_mean: float
    """By these stamps."""


class StampErrors(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of one run's measured answers."""

    answers: int
    tokens: int
    ttft_ms_mean: float
    """The server's own: from the request read to the first token written."""
    request_ms_mean: float
    """From the client's stamp of the sending to the server's of the reading."""
    kernel: Error | None
    """None: not every answer was stamped by it."""
    process: Error
    joined_share: float
    """The tokens that came in one read with a later one: their stamp is an upper bound."""


def stamp_errors(of_server: Path, of_client: Path, tokens: int) -> StampErrors | None:
    """None where no answer is in both files."""
    answers = np.fromfile(of_server, dtype=np.int64).reshape(-1, tokens + 2)
    rows = np.load(of_client)
    place = np.full(int(max(answers[:, 0].max(initial=0), rows[:, 0].max(initial=0))) + 1, -1)
    place[answers[:, 0]] = np.arange(len(answers))
    rows = rows[place[rows[:, 0]] >= 0]
    if not len(rows):
        return None
    at = place[rows[:, 0]]
    token = rows[:, 1]
    truth = answers[at, 2 + token]
    first = token == 0
    sent, kernel, process = rows[:, 2], rows[:, 3], rows[:, 4]

    def error(stamps: NDArray[np.int64]) -> Error:
        off_ms = np.abs(stamps - truth) / 1e6
        return Error(
            median_ms=float(np.median(off_ms)),
            p99_ms=float(np.percentile(off_ms, 99)),
            max_ms=float(off_ms.max()),
            ttft_ms_mean=float((stamps - sent)[first].mean()) / 1e6,
        )

    used = kernel if (kernel >= 0).all() else process
    joined = (np.diff(rows[:, 0]) == 0) & (np.diff(used) == 0)
    return StampErrors(
        answers=int(first.sum()),
        tokens=len(rows),
        ttft_ms_mean=float((truth[first] - answers[at[first], 1]).mean()) / 1e6,
        request_ms_mean=float((answers[at[first], 1] - sent[first]).mean()) / 1e6,
        kernel=error(kernel) if (kernel >= 0).all() else None,
        process=error(process),
        joined_share=float(joined.sum()) / len(rows),
    )
