"""Requests: the few columns of requests.parquet that figures need, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loadgen.client.latency import e2e_s, inside, tpot_s, ttft_s
from loadgen.folder import Folder

COLUMNS = (
    "target", "concurrency", "repeat", "t_scheduled_ns", "t_send_ns", "t_first_ns", "t_last_ns", "t_end_ns",
    "phase", "status", "output_tokens",
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


def latencies_ms(rows: pd.DataFrame, window: tuple[float, float]) -> dict[str, NDArray[np.float64]]:
    """TTFT, TPOT and E2E in ms of measured requests that were answered, by the rule of summary.csv.

    Each counts where it happened: TTFT where the first token arrived, the others where the answer ended. In an open
    loop all count where the request was due.
    """
    answered = rows[(rows["phase"] == "measured") & (rows["status"] == "ok")]
    first, last, tokens = (_whole(answered[name]) for name in ("t_first_ns", "t_last_ns", "output_tokens"))
    scheduled, sent, end = (_whole(answered[name]) for name in ("t_scheduled_ns", "t_send_ns", "t_end_ns"))
    open_loop = scheduled >= 0
    due = np.where(open_loop, scheduled, sent)

    def counted(values_s: NDArray[np.float64], happened_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        at_ns = np.where(open_loop, due, happened_ns)
        return 1e3 * values_s[inside(at_ns, window) & ~np.isnan(values_s)]

    return {
        "ttft": counted(ttft_s(due, first), first),
        "tpot": counted(tpot_s(first, last, tokens), end),
        "e2e": counted(e2e_s(due, end), end),
    }


def _whole(column: pd.Series[float]) -> NDArray[np.int64]:
    """With -1 where there is none."""
    return np.asarray(column.astype("Int64").fillna(-1), dtype=np.int64)
