"""Requests: the few columns of requests.parquet that figures need, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loadgen.folder import Folder

COLUMNS = (
    "target", "concurrency", "repeat", "t_scheduled_ns", "t_send_ns", "t_first_ns", "t_last_ns", "t_end_ns",
    "in_window", "output_tokens",
)  # fmt: skip
Cell = tuple[str, int, int]
"""Target, concurrency, repeat."""


def read_cells(run_dir: Path) -> Iterator[tuple[Cell, pd.DataFrame]]:
    """The requests of each cell, warm-up and failed ones included, with `COLUMNS`; one cell in memory at a time."""
    for cell, pieces in groupby(_pieces(run_dir), key=lambda piece: piece[0]):
        yield cell, pd.concat([rows for _, rows in pieces])


def _pieces(run_dir: Path) -> Iterator[tuple[Cell, pd.DataFrame]]:
    with Folder(run_dir).open("requests.parquet") as opened, pq.ParquetFile(opened) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=list(COLUMNS)).to_pandas()
            for (target, concurrency, repeat), rows in table.groupby(["target", "concurrency", "repeat"], sort=False):
                yield (str(target), int(concurrency), int(repeat)), rows


def latencies_ms(rows: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """TTFT, TPOT and E2E of the window's requests that were answered; in an open loop from when they were due."""
    ended = rows[rows["in_window"] & rows["t_first_ns"].notna()]
    first, last, tokens = ended["t_first_ns"], ended["t_last_ns"], ended["output_tokens"]
    several = tokens > 1
    due = ended["t_scheduled_ns"].fillna(ended["t_send_ns"])
    return {
        "ttft": _ms(first - due),
        "tpot": _ms((last - first)[several] / (tokens[several] - 1)),
        "e2e": _ms(ended["t_end_ns"] - due),
    }


def _ms(values_ns: pd.Series[float]) -> NDArray[np.float64]:
    return np.asarray(values_ns, dtype=np.float64) / 1e6
