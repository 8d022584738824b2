"""report.html of a grid: its tasks, and the way to the comparison and to the report of every run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from loadgen import __version__
from loadgen.folder import Folder
from loadgen.record.grid import RUNS, grid_runs, read_grid
from loadgen.record.pool import runs_in
from loadgen.reports.compare import BANNER
from loadgen.reports.grid import tasks_table
from loadgen.reports.html.compare import write_page
from loadgen.reports.html.markup import Html, element, join, table
from loadgen.reports.html.page import document
from loadgen.words import STAMP


def write_index(folder: Path, report: Callable[[Path], object]) -> Path:
    """Writes report.html of a grid, with the report of each of its runs and of each model over its GPUs; returns its
    path. `report` writes that of a run directory. Raises UsageError for a grid without a finished task."""
    from loadgen.analysis.compare.comparison import compare_runs, write_comparison

    pooled = {path.name: path for path in runs_in(folder) if path.parent.name != RUNS}
    runs = grid_runs(folder)
    for path in (*pooled.values(), *runs.values()):
        report(path)
    comparison = compare_runs([folder])
    write_comparison(comparison, folder)
    write_page(comparison, folder)
    record = read_grid(folder)
    parts = [
        element("header", element("h1", f"{STAMP + ' · ' if record.simulated else ''}loadgen grid: {record.name}")),
        element(
            "p", element("a", "Comparison of all models and precisions, and N*", href="compare.html"), class_="big"
        ),
        _links("Models, all GPUs of a kind together", pooled, folder),
        _links("Tasks, each on one GPU", runs, folder),
        element("h2", "What became of the tasks"),
        table(tasks_table(record).filled, label="Tasks"),
        element("footer", f"loadgen {__version__}"),
    ]
    title = f"loadgen grid: {record.name}"
    page = document(title, element("main", join(parts)), banner=BANNER if record.simulated else None)
    Folder(folder).write("report.html", page.encode())
    return folder / "report.html"


def _links(heading: str, runs: Mapping[str, Path], folder: Path) -> Html:
    if not runs:
        return Html("")
    links = (
        element("li", element("a", name, href=f"{path.relative_to(folder).as_posix()}/report.html"))
        for name, path in runs.items()
    )
    return join((element("h2", heading), element("ul", *links)))
