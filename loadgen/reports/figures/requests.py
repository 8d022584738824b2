"""What single requests show: distributions of TTFT, TPOT and E2E, target over target at each B; and over the time of
each cell, in s since its first request, the requests in flight, the running batch and power."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from loadgen.analysis.requests import CellTrace, Latencies, Trace
from loadgen.analysis.run import Run, held_in
from loadgen.reports.figures.sheet import INVALID, TEXT, Figure, Look, Sheet, log_axis, percent_axis, plain_line
from loadgen.reports.rows import invalid_of
from loadgen.words import known, number

_TITLES = {"ttft": "Time to first token", "tpot": "Time per output token", "e2e": "Request latency (E2E)"}
_QUANTILES = 200
_VERTICES = 3200
"""The most points of all lines of a figure together: this keeps its file small."""


def draw_latency(run: Run, looks: Mapping[str, Look], folder: Path, latencies: Latencies) -> Iterator[Figure]:
    """A figure per metric, a panel per B."""
    for metric in _TITLES:
        if batches := latencies.levels(metric):
            yield _draw_latency(run, looks, folder, latencies, metric, batches)


def _draw_latency(
    run: Run, looks: Mapping[str, Look], folder: Path, latencies: Latencies, metric: str, batches: list[float]
) -> Figure:
    columns = min(2, len(batches))
    rows = math.ceil(len(batches) / columns)
    shares = np.linspace(0.0, 1.0, max(20, min(_QUANTILES, _VERTICES // (len(batches) * len(looks)))))
    sheet = Sheet(
        looks, simulated=run.manifest.simulated, rows=rows, columns=columns,
        panel=(4.5 if columns == 1 else 2.6, 1.7), gap=(0.25, 0.62), left=0.62, sharey=True, sharex=True,
    )  # fmt: skip
    invalid = False
    summary = {(row["target"], held_in(row)): row for row in run.summary.to_dict("records")}
    for axes, b in zip(sheet.axes, batches, strict=False):
        for target in looks:
            found = latencies.of(target, b, metric)
            if found is not None:
                _line(sheet, axes, run.level(b), summary[target, b], metric, found, shares)
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
    sheet: Sheet, axes: Axes, level: str, row: Mapping[Any, Any], metric: str,
    found: tuple[NDArray[np.float64], bool], shares: NDArray[np.float64],
) -> None:  # fmt: skip
    values, valid = found
    target = row["target"]
    middle, tail = float(row[f"{metric}_ms_p50"]), float(row[f"{metric}_ms_p99"])
    tip = f"{target} · {level}: {len(values):,} requests" + ("" if valid else " of cells with invalid latencies")
    if valid and known(middle):
        tip += f", median {number(middle)} ms, p99 {number(tail)} ms"
    style = {} if valid else {"color": INVALID, "linestyle": "--"}
    read = f"{{y%}} of the requests: {metric.upper()} at most {{x}} ms"
    sheet.line(axes, target, np.quantile(values, shares), shares, tip, read, linewidth=1.5, **style)


_POWER = "#d55e00"
_FLIGHT = "#0072b2"
_RUNNING = "#00936b"


def draw_timelines(
    run: Run, looks: Mapping[str, Look], folder: Path, traces: Mapping[tuple[str, float, int], CellTrace]
) -> Iterator[Figure]:
    """A figure per target, a row per B and a column per repeat."""
    for target in looks:
        ours = {(b, repeat): trace for (name, b, repeat), trace in traces.items() if name == target}
        if ours:
            yield _draw_timeline(run, looks, folder, target, ours)


def _draw_timeline(
    run: Run, looks: Mapping[str, Look], folder: Path, target: str, traces: Mapping[tuple[float, int], CellTrace]
) -> Figure:
    batches, repeats = sorted({b for b, _ in traces}), sorted({r for _, r in traces})
    powered = any(trace.power is not None for trace in traces.values())
    cells = run.cells[run.cells["target"] == target].to_dict("records")
    doubts = {}
    for cell in cells:
        bad = invalid_of(cell)
        what = "" if "load" in bad else f" {', '.join(bad)}"
        doubts[held_in(cell), cell["repeat"]] = f":{what} invalid ×" if bad else ""
    sheet = Sheet(
        looks, simulated=run.manifest.simulated, rows=len(batches), columns=len(repeats), panel=(2.4, 0.95),
        gap=(0.62 if powered else 0.3, 0.42), left=0.62, right=0.66 if powered else 0.18, grid=False,
    )  # fmt: skip
    panels = iter(sheet.axes)
    for b in batches:
        for repeat in repeats:
            axes, trace = next(panels), traces.get((b, repeat))
            if trace is None:
                axes.set_visible(False)
                continue
            _panel(sheet, axes, trace, target, f"{run.level(b)}, repeat {repeat}", doubts[b, repeat])
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


def _panel(sheet: Sheet, axes: Axes, trace: CellTrace, target: str, title: str, doubt: str) -> None:
    where = f"{target} · {title}, {{x}} s: "
    if trace.window is not None:
        axes.axvspan(*trace.window, color=INVALID, alpha=0.18, linewidth=0, zorder=0)
    _step(sheet, axes, trace.in_flight, _FLIGHT, where + "{y} in flight")
    _step(sheet, axes, trace.running, _RUNNING, where + "{y} running")
    axes.set_ylim(0, 1.15 * max(axes.get_ylim()[1], 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    axes.set_title(title + doubt, fontsize=8.5, color=INVALID if doubt else TEXT, pad=3, y=1.0)  # y: not looked for
    axes.tick_params(labelsize=7.5)
    if trace.power is not None:
        watts = axes.twinx()
        watts.spines[["top", "left"]].set_visible(False)
        sheet.trace(watts, *trace.power, where + "{y} W", color=_POWER, linewidth=0.9)
        watts.set_ylim(0, 1.8 * max(trace.power[1].max(), 1.0))  # below the lines of the requests, not on them
        watts.yaxis.set_major_locator(MaxNLocator(2))
        watts.tick_params(labelsize=7.5)
    for spine in axes.spines.values():
        spine.set_linestyle("--" if doubt else "-")


def _step(sheet: Sheet, axes: Axes, trace: Trace | None, colour: str, read: str) -> None:
    if trace is not None:
        sheet.trace(axes, *trace, read, color=colour, linewidth=1.1)
