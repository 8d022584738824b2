"""The figures of the report, as SVG and PNG files and as what the page needs to show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import matplotlib

from loadgen.analysis.requests import TRACED, Latencies, Traces, read_cells
from loadgen.analysis.run import Run
from loadgen.folder import Folder
from loadgen.processgroup import forked, spare_processes
from loadgen.reports.figures.curves import draw_advantage, draw_backends, draw_cor, draw_curves, draw_si
from loadgen.reports.figures.forest import draw_by_precision, draw_depth, draw_pillars
from loadgen.reports.figures.pareto import draw_pareto
from loadgen.reports.figures.requests import draw_latency, draw_timelines
from loadgen.reports.figures.search import draw_search
from loadgen.reports.figures.sheet import STYLE, Figure, Look, looks_of

__all__ = ["Figure", "draw_figures"]


def draw_figures(run: Run) -> list[Figure]:
    """Writes `figures/*.svg` and `*.png` into the run directory, those that the data allow; in the page's order. Of an
    open loop there are none over the batch, which it does not hold, but over its rates.

    As many processes as there are cores share the drawing. They read what they need of requests.parquet, a cell at a
    time and without the tokens' own times.
    """
    folder = Folder(run.path).make("figures")
    looks = looks_of(run.summary["target"])
    given, traces = (run, looks, folder), Traces(run)
    over_b: list[Callable[[], Iterable[Figure | None]]] = [
        lambda: (draw_si(*given), draw_cor(*given), draw_advantage(*given)),
        lambda: (draw_by_precision(*given), draw_pillars(*given), *draw_backends(*given)),
    ]
    tasks: list[Callable[[], Iterable[Figure | None]]] = [
        lambda: draw_curves(*given),
        lambda: draw_pareto(*given),
        *(over_b if run.arrival is None else ()),
        lambda: (draw_search(*given),),
        lambda: (draw_depth(*given),),
        lambda: draw_latency(*given, _latencies(run)),
        *(partial(_timeline, run, target, look, folder, traces) for target, look in looks.items()),
    ]
    with matplotlib.rc_context(STYLE):
        drawn = list(forked([partial(_drawn, task) for task in tasks], spare_processes()))
    return [figure for figures in drawn for figure in figures]


def _latencies(run: Run) -> Latencies:
    latencies = Latencies(run)
    for cell, requests in read_cells(run.path, shape=run.shape):
        latencies.add(cell, requests)
    return latencies


def _timeline(run: Run, target: str, look: Look, folder: Path, traces: Traces) -> Iterator[Figure]:
    cells = read_cells(run.path, target, run.shape, TRACED)
    of_cells = {cell: traces.of(cell, requests) for cell, requests in cells}
    return draw_timelines(run, {target: look}, folder, of_cells)


def _drawn(task: Callable[[], Iterable[Figure | None]]) -> list[Figure]:
    return [figure for figure in task() if figure is not None]
