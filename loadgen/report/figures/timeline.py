"""Timelines: requests in flight, running batch and power over the time of each cell."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from loadgen.analysis.run import Run
from loadgen.report.figures.axes import plain_line
from loadgen.report.figures.figure import Figure
from loadgen.report.figures.look import INVALID, TEXT, Look
from loadgen.report.figures.sheet import Sheet
from loadgen.report.figures.trace import CellTrace, Trace
from loadgen.report.validity import cell_valid

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
    doubts = {(cell["concurrency"], cell["repeat"]): _doubt(cell) for cell in cells}
    sheet = Sheet(
        looks, simulated=run.manifest["simulated"], rows=len(batches), columns=len(repeats), panel=(2.4, 0.95),
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


def _doubt(cell: Mapping[Hashable, Any]) -> str:
    """Behind the title of a cell that is not valid in everything."""
    said = {"yes": "", "no": ": invalid ×"}
    valid = cell_valid(cell)
    return said.get(valid, f": {valid.removeprefix('except ')} invalid ×")


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
        watts = sheet.twin(axes)
        watts.plot(*trace.power, color=_POWER, linewidth=0.9)
        watts.set_ylim(0, 1.8 * max(trace.power[1].max(), 1.0))  # below the lines of the requests, not on them
        watts.yaxis.set_major_locator(MaxNLocator(2))
        watts.tick_params(labelsize=7.5)
    for spine in axes.spines.values():
        spine.set_linestyle("--" if doubt else "-")


def _step(axes: Axes, trace: Trace | None, colour: str) -> None:
    if trace is not None:
        axes.plot(*trace, color=colour, linewidth=1.1)
