"""Distributions of TTFT, TPOT and E2E, target over target at each B; the requests that figures need."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from numpy.typing import NDArray

from loadgen.analysis.run import Run
from loadgen.folder import Folder
from loadgen.load.latency import e2e_s, inside, tpot_s, ttft_s
from loadgen.reports.figures.sheet import INVALID, Figure, Look, Sheet, log_axis, percent_axis, plain_line
from loadgen.words import known, number

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


def windows_of(run: Run) -> dict[Cell, tuple[float, float]]:
    """The window of each cell that has one: its edges in ns of the run's clock."""
    cells = run.cells.dropna(subset=["window_open_ns", "window_close_ns"]).to_dict("records")
    return {(c["target"], c["concurrency"], c["repeat"]): (c["window_open_ns"], c["window_close_ns"]) for c in cells}


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


_TITLES = {"ttft": "Time to first token", "tpot": "Time per output token", "e2e": "Request latency (E2E)"}
_QUANTILES = 200
_VERTICES = 3200
"""The most points of all lines of a figure together: this keeps its file small."""

Samples = dict[str, list[NDArray[np.float64]]]
"""By metric."""


class Latencies:
    """Latencies of a run, gathered cell by cell: of cells in which they are valid, and apart from them of others."""

    def __init__(self, run: Run) -> None:
        cells = run.valid_cells("ttft_ms_p50")
        self._valid = set(zip(cells["target"], cells["concurrency"], cells["repeat"], strict=True))
        self._windows = windows_of(run)
        self._of: dict[tuple[str, int, bool], Samples] = defaultdict(lambda: defaultdict(list))

    def add(self, cell: Cell, rows: pd.DataFrame) -> None:
        """The requests of one cell."""
        target, b, _ = cell
        window = self._windows.get(cell)
        for metric, values in latencies_ms(rows, window).items() if window else ():
            if values.size:
                self._of[target, b, cell in self._valid][metric].append(values)

    def of(self, target: str, concurrency: int, metric: str) -> tuple[NDArray[np.float64], bool] | None:
        """Pooled over the valid cells and True; where there are none, over the invalid ones and False."""
        for valid in (True, False):
            found = self._of.get((target, concurrency, valid), {}).get(metric)
            if found:
                return np.concatenate(found), valid
        return None

    def concurrencies(self, metric: str) -> list[int]:
        """Those with any request that has the metric."""
        return sorted({b for (_, b, _), samples in self._of.items() if metric in samples})


def draw_latency(run: Run, looks: Mapping[str, Look], folder: Path, latencies: Latencies) -> Iterator[Figure]:
    """A figure per metric, a panel per B."""
    for metric in _TITLES:
        if batches := latencies.concurrencies(metric):
            yield _draw(run, looks, folder, latencies, metric, batches)


def _draw(
    run: Run, looks: Mapping[str, Look], folder: Path, latencies: Latencies, metric: str, batches: list[int]
) -> Figure:
    columns = min(2, len(batches))
    rows = math.ceil(len(batches) / columns)
    shares = np.linspace(0.0, 1.0, max(20, min(_QUANTILES, _VERTICES // (len(batches) * len(looks)))))
    sheet = Sheet(
        looks, simulated=run.manifest.simulated, rows=rows, columns=columns,
        panel=(4.5 if columns == 1 else 2.6, 1.7), gap=(0.25, 0.62), left=0.62, sharey=True, sharex=True,
    )  # fmt: skip
    invalid = False
    for axes, b in zip(sheet.axes, batches, strict=False):
        for target in looks:
            found = latencies.of(target, b, metric)
            if found is not None:
                _line(sheet, axes, run, (target, b), metric, found, shares)
                invalid = invalid or not found[1]
        axes.set_title(run.level(b))
    for axes in sheet.axes[len(batches) :]:
        axes.set_visible(False)
    log_axis(sheet.axes[0], "x")
    percent_axis(sheet.axes[0])
    for axes in sheet.axes[max(0, len(batches) - columns) : len(batches)]:
        axes.set_xlabel(f"{metric.upper()}, ms")
        axes.tick_params(axis="x", labelbottom=True)
    extra = [plain_line("invalid cells only", dashed=True, colour=INVALID)] if invalid else []
    sheet.legend(looks, extra=extra)
    whose = "were due" if run.arrival else "had their first token" if metric == "ttft" else "ended"
    caption = (
        f"{_TITLES[metric]}: share of requests at or below each value, pooled over cells with valid latencies, of "
        f"measured and answered requests that {whose} within their cell's window; no intervals. "
        + ("Dashed grey: valid in no cell. " if invalid else "")
        + f"Numbers: requests.parquet; quantiles: summary.csv, {metric}_ms_p50 and p99."
    )
    return sheet.save(
        folder, f"{metric}-distribution", "latency", f"{_TITLES[metric]}, distribution", caption,
        f"Cumulative distribution of {metric.upper()} at {', '.join(map(run.level, batches))}, a line per target",
    )  # fmt: skip


def _line(
    sheet: Sheet, axes: Axes, run: Run, key: tuple[str, int], metric: str,
    found: tuple[NDArray[np.float64], bool], shares: NDArray[np.float64],
) -> None:  # fmt: skip
    values, valid = found
    target, b = key
    row = run.summary[(run.summary["target"] == target) & (run.summary["concurrency"] == b)].iloc[0]
    middle, tail = float(row[f"{metric}_ms_p50"]), float(row[f"{metric}_ms_p99"])
    tip = f"{target} · {run.level(b)}: {len(values):,} requests" + ("" if valid else " of cells with invalid latencies")
    if valid and known(middle):
        tip += f", median {number(middle)} ms, p99 {number(tail)} ms"
    style = {} if valid else {"color": INVALID, "linestyle": "--"}
    sheet.line(axes, target, np.quantile(values, shares), shares, tip, linewidth=1.5, **style)
