"""Timelines: requests in flight, running batch and power over the time of each cell, in s since its first request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from loadgen.analysis.run import Run
from loadgen.analysis.tables import read_table
from loadgen.reports.figures.latency import Cell, windows_of
from loadgen.reports.figures.sheet import INVALID, TEXT, Figure, Look, Sheet, plain_line
from loadgen.reports.rows import invalid_of

Floats = NDArray[np.float64]
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
        columns = ["target", "concurrency", "repeat", "t_ns", "running"]
        server = read_table(run.path, "server.parquet", columns=columns, read_dictionary=["target"])
        server = server.dropna(subset="running")
        self._server = dict(iter(server.groupby(["target", "concurrency", "repeat"], observed=True)))
        columns = ["target", "repeat", "session", "gpu_uuid", "t_ns", "counter_j", "power_instant_w", "power_average_w"]
        power = read_table(run.path, "power.parquet", columns=columns, read_dictionary=["target", "gpu_uuid"])
        self._power = dict(iter(power.groupby(["target", "repeat", "session"], observed=True)))
        cells = run.cells[["target", "concurrency", "repeat", "session"]].itertuples(index=False, name=None)
        self._sessions = {(target, b, repeat): session for target, b, repeat, session in cells}
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


_POWER = "#d55e00"
_FLIGHT = "#0072b2"
_RUNNING = "#00936b"


def draw_timelines(
    run: Run, looks: Mapping[str, Look], folder: Path, traces: Mapping[tuple[str, int, int], CellTrace]
) -> Iterator[Figure]:
    """A figure per target, a row per B and a column per repeat."""
    for target in looks:
        ours = {(b, repeat): trace for (name, b, repeat), trace in traces.items() if name == target}
        if ours:
            yield _draw(run, looks, folder, target, ours)


def _draw(
    run: Run, looks: Mapping[str, Look], folder: Path, target: str, traces: Mapping[tuple[int, int], CellTrace]
) -> Figure:
    batches, repeats = sorted({b for b, _ in traces}), sorted({r for _, r in traces})
    powered = any(trace.power is not None for trace in traces.values())
    cells = run.cells[run.cells["target"] == target].to_dict("records")
    doubts = {}
    for cell in cells:
        bad = invalid_of(cell)
        what = "" if "load" in bad else f" {', '.join(bad)}"
        doubts[cell["concurrency"], cell["repeat"]] = f":{what} invalid ×" if bad else ""
    sheet = Sheet(
        looks, simulated=run.manifest.simulated, rows=len(batches), columns=len(repeats), panel=(2.4, 0.95),
        gap=(0.62 if powered else 0.3, 0.42), left=0.62, right=0.66 if powered else 0.18,
    )  # fmt: skip
    panels = iter(sheet.axes)
    for b in batches:
        for repeat in repeats:
            axes, trace = next(panels), traces.get((b, repeat))
            if trace is None:
                axes.set_visible(False)
                continue
            _panel(sheet, axes, trace, f"{run.level(b)}, repeat {repeat}", doubts[b, repeat])
    for axes in sheet.axes[-len(repeats) :]:
        axes.set_xlabel("s since the cell's first request")
    entries = [plain_line("in flight", colour=_FLIGHT), plain_line("running", colour=_RUNNING)]
    entries += [plain_line("power, W (right)", colour=_POWER)] if powered else []
    windows = any(trace.window is not None for trace in traces.values())
    entries += [plain_line("window", colour=INVALID, width=6)] if windows else []
    sheet.legend([], extra=entries)
    caption = (
        f"{target}: requests in flight at the client, running batch on the server"
        + (" and power of its GPUs" if powered else "")
        + " over the time of each cell"
        + ("; the measured window is shaded." if windows else ".")
        + " In flight and power are means over short stretches, at most 150 a cell. "
        + f"Numbers: requests.parquet, server.parquet{', power.parquet' if powered else ''}."
    )
    return sheet.save(
        folder, f"time-{looks[target].slug}", "time", f"{target} over time", caption,
        f"Time lines of {target} at {', '.join(map(run.level, batches))}, a column per repeat",
    )  # fmt: skip


def _panel(sheet: Sheet, axes: Axes, trace: CellTrace, title: str, doubt: str) -> None:
    if trace.window is not None:
        axes.axvspan(*trace.window, color=INVALID, alpha=0.18, linewidth=0, zorder=0)
    _step(axes, trace.in_flight, _FLIGHT)
    _step(axes, trace.running, _RUNNING)
    axes.set_ylim(0, 1.15 * max(axes.get_ylim()[1], 1.0))
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    axes.set_title(title + doubt, fontsize=8.5, color=INVALID if doubt else TEXT, pad=3)
    axes.tick_params(labelsize=7.5)
    if trace.power is not None:
        watts = axes.twinx()
        watts.spines[["top", "left"]].set_visible(False)
        watts.plot(*trace.power, color=_POWER, linewidth=0.9)
        watts.set_ylim(0, 1.8 * max(trace.power[1].max(), 1.0))  # below the lines of the requests, not on them
        watts.yaxis.set_major_locator(MaxNLocator(2))
        watts.tick_params(labelsize=7.5)
    for spine in axes.spines.values():
        spine.set_linestyle("--" if doubt else "-")


def _step(axes: Axes, trace: Trace | None, colour: str) -> None:
    if trace is not None:
        axes.plot(*trace, color=colour, linewidth=1.1)
