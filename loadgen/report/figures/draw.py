"""All figures of a run."""

from __future__ import annotations

import matplotlib

from loadgen.analysis.run import Run
from loadgen.report.figures.against import draw_advantage, draw_cor
from loadgen.report.figures.backends import draw_backends
from loadgen.report.figures.curves import draw_curves, draw_si
from loadgen.report.figures.depth import draw_depth
from loadgen.report.figures.figure import Figure
from loadgen.report.figures.forest import draw_by_precision, draw_pillars
from loadgen.report.figures.latency import Latencies, draw_latency
from loadgen.report.figures.look import STYLE, looks_of
from loadgen.report.figures.requests import read_cells
from loadgen.report.figures.timeline import draw_timelines
from loadgen.report.figures.trace import Traces


def draw_figures(run: Run) -> list[Figure]:
    """Writes `figures/*.svg` and `*.png` into the run directory, those that the data allow; in the page's order.

    requests.parquet is read once, a cell at a time and without the tokens' own times.
    """
    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    looks = looks_of(run.summary["target"])
    latencies, traces, of_cells = Latencies(run), Traces(run), {}
    for cell, requests in read_cells(run.path):
        latencies.add(cell, requests)
        of_cells[cell] = traces.of(cell, requests)
    with matplotlib.rc_context(STYLE):
        drawn = [
            *draw_curves(run, looks, folder),
            draw_si(run, looks, folder),
            draw_cor(run, looks, folder),
            draw_advantage(run, looks, folder),
            draw_by_precision(run, looks, folder),
            draw_pillars(run, looks, folder),
            *draw_backends(run, looks, folder),
            draw_depth(run, looks, folder),
            *draw_latency(run, looks, folder, latencies),
            *draw_timelines(run, looks, folder, of_cells),
        ]
    return [figure for figure in drawn if figure is not None]
