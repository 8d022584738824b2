"""compare.html: one self-contained file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from loadgen import __version__
from loadgen.analysis.compare.comparison import RunComparison, size_words
from loadgen.analysis.compare.external import ImportedPoint
from loadgen.analysis.compare.nstar import NStar
from loadgen.analysis.compare.row import CompareRow
from loadgen.analysis.estimate import Estimate
from loadgen.folder import Folder
from loadgen.load.openloop import CLOSED
from loadgen.reports.compare import BANNER, CLAIMED, COR_MEANS, IMPORTED, PUBLISHED, RUNS, findings, notes
from loadgen.reports.figures.sheet import STYLE, Figure, Sheet, batch_axis, border, log_axis, looks_of, tip_of
from loadgen.reports.html.markup import Html, element, gallery, items, join, table
from loadgen.reports.html.page import document
from loadgen.reports.rows import table_of
from loadgen.words import STAMP, stamped

Points = Sequence[tuple[float, float]]


def cor_over_size(found: Sequence[NStar], folder: Path) -> Figure | None:
    """COR over N, a line per stratum that has a curve; axes are log N and log(1 + COR). None without any."""
    curves = {str(one.stratum): one for one in found if one.points}
    if not curves:
        return None
    sheet = Sheet(looks_of(curves), simulated=any(one.stratum.simulated for one in curves.values()), panel=(9.0, 3.6))
    axes = sheet.axes[0]
    for name, one in curves.items():
        sheet.line(axes, name, [point.parameters for point in one.points], [point.cor for point in one.points])
        for point in one.points:
            cor = Estimate(value=point.cor, lo=point.cor_lo, hi=point.cor_hi)
            tip = f"{name} · {size_words(point.parameters)}: COR {tip_of(cor, floor=-1.0)}"
            sheet.estimate(axes, name, point.parameters, cor, tip)
        for crossing in one.crossings:
            axes.axvline(crossing.n, linestyle=":", linewidth=1, color=sheet.looks[name].colour)
    axes.set_yscale("function", functions=(np.log1p, np.expm1))
    border(axes, 0.0)
    axes.set_xscale("log")
    sizes = sorted({point.parameters for one in curves.values() for point in one.points})
    axes.set_xticks(sizes, [size_words(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("parameters of the model")
    axes.set_ylabel("COR (below 0: faster than the reference)")
    sheet.legend(curves)
    caption = "A line per stratum; bars are 95% intervals, dotted lines established N*. Numbers: compare.json, n_stars."
    return sheet.save(folder, "cor-over-size", "answer", "COR over model size", caption, "COR over model size")


def speed_over_concurrency(rows: Sequence[CompareRow], imports: Sequence[ImportedPoint], folder: Path) -> Figure | None:
    """Tokens/s over the asked concurrency: loadgen's targets, imported ones dashed; None without any. Open loops are
    not among them: their concurrency is a limit."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.tokens_per_s is not None and row.arrival == CLOSED:
            name = stamped(f"{row.run} · {row.target}", simulated=row.simulated)
            lines.setdefault(name, []).append((row.concurrency, row.tokens_per_s))
    dashed: dict[str, list[tuple[float, float]]] = {}
    for point in imports:
        if point.concurrency is not None:
            dashed.setdefault(f"{point.tool} · {point.label}", []).append((point.concurrency, point.tokens_per_s))
    if not lines and not dashed:
        return None
    sheet = Sheet(looks_of((*lines, *dashed)), simulated=any(row.simulated for row in rows), panel=(9.0, 3.6))
    axes = sheet.axes[0]
    for style, drawn in (("-", lines), ("--", dashed)):
        for name, points in drawn.items():
            sheet.line(axes, name, *np.array(sorted(points)).T, linestyle=style)
            for b, tokens_per_s in points:
                shown = tip_of(Estimate(value=tokens_per_s), unit=" tok/s")
                sheet.point(axes, name, b, tokens_per_s, f"{name} · B = {b:g}: {shown}")
    batch_axis(axes)
    log_axis(axes)
    axes.set_xlabel("concurrency asked for")
    axes.set_ylabel("output tokens per second")
    sheet.legend((*lines, *dashed))
    caption = "Output tokens per second; other tools' results are dashed. Numbers: compare.csv and imports.csv."
    return sheet.save(folder, "speed", "answer", "Speed over concurrency", caption, "Tokens/s over the concurrency")


def write_page(comparison: RunComparison, out: Path) -> Path:
    """Writes compare.html and figures/ into the folder `out`; returns the page's path."""
    folder = Folder(out).make("figures")
    with matplotlib.rc_context(STYLE):
        drawn = (
            cor_over_size(comparison.n_stars, folder),
            speed_over_concurrency(comparison.rows, comparison.imports, folder),
        )
    path = out / "compare.html"
    Folder(out).write(path.name, _page(comparison, [figure for figure in drawn if figure is not None]).encode())
    return path


def _page(comparison: RunComparison, figures: Sequence[Figure]) -> str:
    runs = ", ".join(dict.fromkeys(row.run for row in comparison.rows))
    differences = items(f"{tool}: {how}" for tool, how in comparison.differences.items())
    sections: Mapping[str, Html] = {
        "N*, the model size at which COR is zero": join(
            (element("p", COR_MEANS), items(findings(comparison)), gallery(figures))
        ),
        "Runs": table(table_of(RUNS, comparison.rows).filled, label="Runs", grouped_by=("run",)),
        "The paper's claims over model size": table(table_of(CLAIMED, comparison.claims), label="Claims"),
        "Published figures compared with ours": join(
            (table(table_of(PUBLISHED, comparison.published).filled, label="Published"), _published_n_star(comparison))
        ),
        "Imported from other tools": join(
            (table(table_of(IMPORTED, comparison.imports).filled, label="Imported"), differences)
        ),
        "Notes": items(notes(comparison)),
    }
    text = f"N* is the zero of COR over log N where everything else is equal. Intervals are 95%. loadgen {__version__}"
    main = element(
        "main",
        element("header", element("h1", f"{f'{STAMP} · ' if comparison.simulated else ''}loadgen compare: {runs}")),
        *(element("section", element("h2", title), content) for title, content in sections.items() if content),
        element("footer", text),
    )
    return document(f"loadgen compare: {runs}", main, banner=BANNER if comparison.simulated else None)


def _published_n_star(comparison: RunComparison) -> Html:
    if not comparison.published_n_star:
        return Html("")
    first = comparison.published_n_star[0]
    ends = " to ".join(f"{figure.value:g}" for figure in comparison.published_n_star)
    where = f"{first.precision}, {first.dataset}, {first.gpu}; {first.source}"
    return element("p", f"Published N*: {ends} {first.unit} ({where}).")
