"""compare.html: one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from loadgen import __version__
from loadgen.analysis.compare.comparison import RunComparison, size_words
from loadgen.analysis.compare.difference import Difference, RunDifference
from loadgen.analysis.compare.external import ImportedPoint
from loadgen.analysis.compare.nstar import NStar
from loadgen.analysis.compare.row import CompareRow
from loadgen.analysis.estimate import Estimate
from loadgen.folder import Folder
from loadgen.load.openloop import CLOSED
from loadgen.record.cell import level
from loadgen.reports.compare import (
    BANNER,
    CLAIMED,
    CONDITIONS,
    COR_MEANS,
    DIFFERENCES,
    GPU_MEANS,
    GPUS,
    IMPORTED,
    METRICS,
    PRECISIONS,
    PUBLISHED,
    RUNS,
    decided,
    findings,
    gpu_sentences,
    named_table,
    notes,
    pair_note,
    rests_on,
)
from loadgen.reports.figures.forest import Panel, draw_forest
from loadgen.reports.figures.sheet import STYLE, Figure, Sheet, batch_axis, border, log_axis, looks_of, tip_of
from loadgen.reports.html.markup import Html, element, gallery, items, join, table
from loadgen.reports.html.page import document, fold
from loadgen.reports.rows import table_of
from loadgen.words import STAMP, stamped, too_wide

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


def difference_forest(pair: RunDifference, folder: Path) -> Figure | None:
    """Two runs: a panel per metric with the second run over the first, a row per target and B. None without any."""
    panels = []
    for metric, label in METRICS.items():
        of = [one for one in pair.differences if one.metric == metric]
        share, what = metric == "accuracy", label.split(",")[0]
        panels.append(
            Panel(
                label=f"{what}, pp" if share else f"{what}, ratio", log=not share, borders=(0.0 if share else 1.0,),
                values={(one.target, one.held): _drawn(one) for one in of}, percent=share, unit=" pp",
                floor=None if share else 0.0,
                n={(one.target, one.held): f", n = {rests_on(one)}" for one in of},
            )
        )  # fmt: skip
    levels = {one.held: level(one.concurrency, one.arrival) for one in pair.differences}
    caption = (
        f"{pair.second} over {pair.first}, by target and B; to the right of the line {pair.second} is higher. Bars are "
        "95% intervals, left out where they are not known; accuracy: the difference in percentage points. "
        "Numbers: compare.json, pair."
    )
    return draw_forest(
        looks_of(one.target for one in pair.differences), folder, panels, "difference",
        f"{pair.second} against {pair.first}", caption, simulated=pair.simulated, section="answer", levels=levels,
    )  # fmt: skip


def _drawn(one: Difference) -> Estimate:
    """Without an interval that says only that the repeats differ: it would set the scale."""
    if one.metric != "accuracy" and too_wide(one.change.lo, one.change.hi):
        return Estimate(value=one.change.value)
    return one.change


def write_page(comparison: RunComparison, out: Path) -> Path:
    """Writes compare.html and figures/ into the folder `out`; returns the page's path."""
    folder, pair = Folder(out).make("figures"), comparison.pair
    with matplotlib.rc_context(STYLE):
        drawn = (
            difference_forest(pair, folder) if pair else None,
            cor_over_size(comparison.n_stars, folder),
            speed_over_concurrency(comparison.rows, comparison.imports, folder),
        )
    path = out / "compare.html"
    Folder(out).write(path.name, _page(comparison, [figure for figure in drawn if figure is not None]).encode())
    return path


def _page(comparison: RunComparison, figures: Sequence[Figure]) -> str:
    runs, pair = ", ".join(dict.fromkeys(row.run for row in comparison.rows)), comparison.pair
    tools = items(f"{tool}: {how}" for tool, how in comparison.differences.items())
    ours = [figure for figure in figures if figure.name == "difference"]
    n_star = (element("p", COR_MEANS), items(findings(comparison)), gallery(f for f in figures if f not in ours))
    contents = [
        ("sizes", "N*, the model size at which COR is zero", "COR over model size, speed over B", join(n_star)),
        ("gpus", "GPUs", "the precisions on each GPU, and the GPUs over each other", _gpus(comparison)),
        ("runs", "Runs", "every figure, by run, target and B",
         table(table_of(RUNS, comparison.rows).filled, label="Runs", grouped_by=("run",))),
        ("claims", "The paper's claims over model size", "a verdict and the evidence for each",
         table(table_of(CLAIMED, comparison.claims), label="Claims")),
        ("published", "Published figures compared with ours", "with the reasons why they may differ", join(
            (table(table_of(PUBLISHED, comparison.published).filled, label="Published"), _published_n_star(comparison))
        )),
        ("imported", "Imported from other tools", "as they define them", join(
            (table(table_of(IMPORTED, comparison.imports).filled, label="Imported"), tools)
        )),
        ("notes", "Notes", "", items(notes(comparison))),
    ]  # fmt: skip
    contents = [entry for entry in contents if entry[3]]
    title = f"{pair.second} against {pair.first}" if pair else runs
    links = [("difference", "The difference")] if pair else []
    links += [(name, heading) for name, heading, _, _ in contents]
    if pair is not None:
        first = element("section", _difference(pair, ours), id="difference")
    else:
        name, heading, _, content = contents.pop(0)
        first = element("section", element("h2", heading), content, id=name)
    text = f"N* is the zero of COR over log N where everything else is equal. Intervals are 95%. loadgen {__version__}"
    main = element(
        "main",
        element("header", element("h1", f"{f'{STAMP} · ' if comparison.simulated else ''}loadgen compare: {title}")),
        element(
            "nav", element("ol", *(element("li", element("a", head, href=f"#{name}")) for name, head in links)),
            aria_label="Contents",
        ),
        first,
        element("div", *(fold(*entry) for entry in contents), class_="folds"),
        element("footer", text),
    )  # fmt: skip
    return document(f"loadgen compare: {title}", main, banner=BANNER if comparison.simulated else None)


def _difference(pair: RunDifference, figures: Sequence[Figure]) -> Html:
    """What is decided, the figure and the table behind it; what differs between the runs, and what is not compared."""
    differs = table(named_table(CONDITIONS, pair.differs, pair), label="What differs between the runs")
    settings = join((element("h3", "What differs between the runs"), differs)) if pair.differs else element(
        "p", "The runs record no difference in model, hardware, servers and extent.", class_="small"
    )  # fmt: skip
    if pair.refusal is not None:
        return join((element("p", f"Not compared: {pair.refusal}.", class_="big"), settings))
    told = decided(pair)
    some = f"No difference is decided, of {len(pair.differences)} (target, B and metric)."
    head = items(told, class_="decided") if told else element("p", some, class_="big")
    made = named_table(DIFFERENCES, pair.differences, pair)
    missing = join((element("h3", "Not compared"), items(pair.missing))) if pair.missing else Html("")
    shown = table(made, label="Differences", simulated=pair.simulated, grouped_by=("target", "at"))
    note = element("p", pair_note(pair), class_="small")
    return join((head, gallery(figures), element("h3", "Every difference"), note, shown, settings, missing))


def _gpus(comparison: RunComparison) -> Html:
    factor = comparison.gpus
    if not factor.precisions and not factor.gpus:
        return Html("")
    return join((
        element("p", GPU_MEANS), items(gpu_sentences(factor)),
        table(table_of(PRECISIONS, factor.precisions).filled, label="Over the GPUs", grouped_by=("run", "target")),
        table(table_of(GPUS, factor.gpus).filled, label="GPUs over each other", grouped_by=("run",)),
    ))  # fmt: skip


def _published_n_star(comparison: RunComparison) -> Html:
    if not comparison.published_n_star:
        return Html("")
    first = comparison.published_n_star[0]
    ends = " to ".join(f"{figure.value:g}" for figure in comparison.published_n_star)
    where = f"{first.precision}, {first.dataset}, {first.gpu}; {first.source}"
    return element("p", f"Published N*: {ends} {first.unit} ({where}).")
