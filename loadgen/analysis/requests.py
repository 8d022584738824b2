"""The requests of each cell from requests.parquet: their latencies, and what happened over the cell's time.

Latencies: those of a run by target and concurrency. CellTrace: requests in flight, running batch and power of one cell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loadgen.analysis.run import Run, held_in, of_shape
from loadgen.analysis.tables import read_table
from loadgen.folder import Folder
from loadgen.load.latency import e2e_s, inside, tpot_s, ttft_s
from loadgen.record.cell import held_of

COLUMNS = (
    "target", "concurrency", "arrival", "repeat", "t_scheduled_ns", "t_send_ns", "t_first_ns", "t_last_ns", "t_end_ns",
    "phase", "status", "output_tokens",
)  # fmt: skip


CELL = ("target", "concurrency", "arrival", "repeat")
_TEXTS = ["target", "arrival", "phase", "status"]
"""Columns of few different texts, which are read as numbers of these."""
Cell = tuple[str, float, int]
"""Target, B or the rate of an open loop, repeat."""


def read_cells(
    run_dir: Path, of: str | None = None, shape: str | None = None, columns: Sequence[str] = COLUMNS
) -> Iterator[tuple[Cell, pd.DataFrame]]:
    """The requests of each cell, or each of one target's, warm-up and failed ones included; one cell in memory at a
    time. `shape`: that of a run with several, `Run.shape`."""
    for cell, pieces in groupby(_pieces(run_dir, of, shape, columns), key=lambda piece: piece[0]):
        if of in (None, cell[0]):
            yield cell, pd.concat([rows for _, rows in pieces])


def _pieces(
    run_dir: Path, of: str | None, shape: str | None, columns: Sequence[str]
) -> Iterator[tuple[Cell, pd.DataFrame]]:
    """Those of others than the target `of` are skipped where the file says whose they are."""
    read = [*CELL, *(name for name in columns if name not in CELL), *(["shape"] if shape else [])]
    with Folder(run_dir).open("requests.parquet") as opened, pq.ParquetFile(opened, read_dictionary=_TEXTS) as file:
        for group in range(file.num_row_groups):
            known = file.metadata.row_group(group).column(0).statistics
            if of is not None and known is not None and known.has_min_max and not known.min <= of <= known.max:
                continue
            table: Any = of_shape(file.read_row_group(group, columns=read).to_pandas(), shape)
            for (target, b, arrival, repeat), rows in table.groupby(
                list(CELL), sort=False, dropna=False, observed=True
            ):
                yield (str(target), held_of(int(b), arrival), int(repeat)), rows


def windows_of(run: Run) -> dict[Cell, tuple[float, float]]:
    """The window of each cell that has one: its edges in ns of the run's clock."""
    cells = run.cells.dropna(subset=["window_open_ns", "window_close_ns"]).to_dict("records")
    return {(c["target"], held_in(c), c["repeat"]): (c["window_open_ns"], c["window_close_ns"]) for c in cells}


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
    whole = column if column.dtype == np.int64 else column.astype("Int64").fillna(-1)
    return np.asarray(whole, dtype=np.int64)


Samples = dict[str, list[NDArray[np.float64]]]
"""By metric."""


class Latencies:
    """Latencies of a run, gathered cell by cell: of cells in which they are valid, and apart from them of others."""

    def __init__(self, run: Run) -> None:
        cells = run.valid_cells("ttft_ms_p50")
        self._valid = {(c["target"], held_in(c), c["repeat"]) for c in cells.to_dict("records")}
        self._windows = windows_of(run)
        self._of: dict[tuple[str, float, bool], Samples] = defaultdict(lambda: defaultdict(list))

    def add(self, cell: Cell, rows: pd.DataFrame) -> None:
        """The requests of one cell."""
        target, b, _ = cell
        window = self._windows.get(cell)
        for metric, values in latencies_ms(rows, window).items() if window else ():
            if values.size:
                self._of[target, b, cell in self._valid][metric].append(values)

    def of(self, target: str, held: float, metric: str) -> tuple[NDArray[np.float64], bool] | None:
        """Pooled over the valid cells and True; where there are none, over the invalid ones and False."""
        for valid in (True, False):
            found = self._of.get((target, held, valid), {}).get(metric)
            if found:
                return np.concatenate(found), valid
        return None

    def levels(self, metric: str) -> list[float]:
        """Those with any request that has the metric."""
        return sorted({b for (_, b, _), samples in self._of.items() if metric in samples})


Floats = NDArray[np.float64]


TRACED = ("t_send_ns", "t_end_ns")
"""What of the requests `Traces.of` reads."""
Trace = tuple[Floats, Floats]
"""Times and values."""


_MOST = 150


class CellTrace(msgspec.Struct, frozen=True, kw_only=True):
    """A cell's traces, thinned for drawing; None: not measured. In flight and power (W, summed over GPUs) are means
    over a 150th of its time."""

    in_flight: Trace | None
    running: Trace | None
    power: Trace | None
    window: tuple[float, float] | None


class Traces:
    """Makes the trace of a cell from its requests and from the run's samples of server and power."""

    def __init__(self, run: Run) -> None:
        columns = [*CELL, *(["shape"] if run.shape else []), "t_ns", "running"]
        server = read_table(run.path, "server.parquet", columns=columns, read_dictionary=["target"])
        server = of_shape(server, run.shape).dropna(subset="running")
        groups: dict[Any, pd.DataFrame] = dict(iter(server.groupby(list(CELL), observed=True, dropna=False)))
        self._server = {(name, held_of(b, rate), repeat): rows for (name, b, rate, repeat), rows in groups.items()}
        columns = ["target", "repeat", "session", "gpu_uuid", "t_ns", "counter_j", "power_instant_w", "power_average_w"]
        power = read_table(run.path, "power.parquet", columns=columns, read_dictionary=["target", "gpu_uuid"])
        self._power = dict(iter(power.groupby(["target", "repeat", "session"], observed=True)))
        cells = run.cells.to_dict("records")
        self._sessions = {(c["target"], held_in(c), c["repeat"]): c["session"] for c in cells}
        self._windows = windows_of(run)
        self._most = max(20, min(_MOST, 8000 // max(1, 3 * len(run.cells) // run.cells["target"].nunique())))

    def of(self, cell: Cell, requests: pd.DataFrame) -> CellTrace:
        """`requests`: all of the cell's, warm-up included."""
        target, _, repeat = cell
        sends, ends = requests["t_send_ns"].to_numpy(), requests["t_end_ns"].to_numpy()
        start = int(sends.min())
        edges = np.linspace(0.0, (int(ends.max()) - start) / 1e9, self._most + 1)
        server, power = self._server.get(cell), self._power.get((target, repeat, self._sessions[cell]))
        window = self._windows.get(cell)
        return CellTrace(
            in_flight=_in_flight(_seconds(sends, start), _seconds(ends, start), edges),
            running=None if server is None else self._running(server, start),
            power=None if power is None else _power(power, start, edges),
            window=None if window is None else ((window[0] - start) / 1e9, (window[1] - start) / 1e9),
        )

    def _running(self, rows: pd.DataFrame, start: int) -> Trace | None:
        rows = rows[rows["t_ns"] >= start]
        if rows.empty:
            return None
        kept = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, self._most).round().astype(int))]
        return _seconds(kept["t_ns"].to_numpy(), start), kept["running"].to_numpy(dtype=np.float64)


def _in_flight(sends: Floats, ends: Floats, edges: Floats) -> Trace | None:
    """Mean requests in flight between neighbouring edges; None for a cell without any duration."""
    if edges[-1] <= 0:
        return None
    areas = np.diff(_waited(sends, edges) - _waited(ends, edges))
    return _middle(edges), areas / np.diff(edges)


def _waited(stamps: Floats, at: Floats) -> Floats:
    """Sum over the stamps of the time since each of them, at each of the times."""
    stamps = np.sort(stamps)
    before = np.searchsorted(stamps, at)
    waited: Floats = before * at - np.concatenate([[0.0], np.cumsum(stamps)])[before]
    return waited


def _power(rows: pd.DataFrame, start: int, edges: Floats) -> Trace | None:
    """Mean W between neighbouring edges, GPUs summed; None where a GPU gives neither power nor energy."""
    total = np.zeros(len(edges) - 1)
    for _, gpu in rows.groupby("gpu_uuid", observed=True):
        watts = _watts(gpu.sort_values("t_ns"), start, edges)
        if watts is None:
            return None
        total += watts
    there = ~np.isnan(total)
    return (_middle(edges)[there], total[there]) if there.any() else None


def _watts(rows: pd.DataFrame, start: int, edges: Floats) -> Floats | None:
    """By the instantaneous power, else by the counter's rise, else by the driver's average."""
    for column in ("power_instant_w", "counter_j", "power_average_w"):
        known = rows[rows[column].notna()]
        if len(known) < 2:
            continue
        t, values = _seconds(known["t_ns"].to_numpy(), start), known[column].to_numpy(dtype=np.float64)
        if column == "counter_j":
            joules = np.interp(edges, t, values, left=np.nan, right=np.nan)
            by_energy: Floats = np.diff(joules) / np.diff(edges)
            return by_energy
        inside = slice(*np.searchsorted(t, edges[[0, -1]]))
        which = np.digitize(t[inside], edges) - 1
        counts = np.bincount(which, minlength=len(edges) - 1)
        sums = np.bincount(which, weights=values[inside], minlength=len(edges) - 1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return None


def _middle(edges: Floats) -> Floats:
    middle: Floats = (edges[:-1] + edges[1:]) / 2
    return middle


def _seconds(t_ns: NDArray[np.int64], start: int) -> Floats:
    return (t_ns - start) / 1e9
