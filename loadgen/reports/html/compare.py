"""compare.html: one self-contained file.

The figures of compare.html, as SVG text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadgen._version import __version__
from loadgen.analysis.compare.comparison import RunComparison, size_words
from loadgen.analysis.compare.imported import ImportedPoint
from loadgen.analysis.compare.nstar import NStar
from loadgen.analysis.compare.row import CompareRow
from loadgen.folder import Folder
from loadgen.load.openloop import CLOSED
from loadgen.reports.compare import (
    BANNER,
    CLAIMED,
    COR_MEANS,
    IMPORTED,
    PUBLISHED,
    RUNS,
    TEXT,
    Rows,
    claim_lines,
    imported_rows,
    notes,
    published_rows,
    run_rows,
    told,
)
from loadgen.reports.html.markup import escaped
from loadgen.reports.words import stamped
from loadgen.secret import visible

_MARKERS = "osD^vPX*"
_FIRST_LINE = re.compile(r"\A.*?(?=<svg)", re.DOTALL)
_ID = re.compile(r'\bid="|url\(#|xlink:href="#')
"""SVG ids are global to a page."""


def cor_over_size(found: Sequence[NStar]) -> str | None:
    """COR over N, a line per stratum that has a curve; axes are log N and log(1 + COR). None without any."""
    curves = [one for one in found if one.points]
    if not curves:
        return None
    figure, axes = _axes(len(curves))
    for place, one in enumerate(curves):
        x = [point.parameters for point in one.points]
        y = [point.cor for point in one.points]
        errors = [[p.cor - p.cor_lo for p in one.points], [p.cor_hi - p.cor for p in one.points]]
        axes.errorbar(x, y, yerr=errors, marker=_MARKERS[place % 8], capsize=3, label=_plain(str(one.stratum)))
        for crossing in one.crossings:
            axes.axvline(crossing.n, linestyle=":", linewidth=1, color="#555555")
    axes.set_yscale("function", functions=(np.log1p, np.expm1))
    axes.axhline(0, color="#1c1c1c", linewidth=1)
    axes.set_xscale("log")
    sizes = sorted({point.parameters for one in curves for point in one.points})
    axes.set_xticks(sizes, [size_words(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("parameters of the model")
    axes.set_ylabel("COR (below 0: faster than the reference)")
    return _svg(figure, axes, "cor-", simulated=any(one.stratum.simulated for one in curves))


def speed_over_concurrency(rows: Sequence[CompareRow], imports: Sequence[ImportedPoint]) -> str | None:
    """Tokens/s over the asked concurrency: loadgen's targets, imported ones dashed; None without any. An open loop's
    are not among them: its concurrency is a limit."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row.tokens_per_s is not None and row.arrival == CLOSED:
            name = stamped(f"{row.run} · {row.target}", simulated=row.simulated)
            lines.setdefault(name, []).append((row.concurrency, row.tokens_per_s))
    dashed: dict[str, list[tuple[int, float]]] = {}
    for point in imports:
        if point.concurrency is not None:
            name = f"{point.tool} · {point.label}"
            dashed.setdefault(name, []).append((point.concurrency, point.tokens_per_s))
    if not lines and not dashed:
        return None
    figure, axes = _axes(len(lines) + len(dashed))
    for style, drawn in (("-", lines), ("--", dashed)):
        for place, (name, points) in enumerate(drawn.items()):
            axes.plot(*zip(*sorted(points), strict=True), style, marker=_MARKERS[place % 8], label=_plain(name))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("concurrency asked for")
    axes.set_ylabel("output tokens per second")
    return _svg(figure, axes, "speed-", simulated=any(row.simulated for row in rows))


def _plain(name: str) -> str:
    """A name as it is: `$` would begin a formula."""
    return visible(name).replace("$", r"\$")


def _axes(lines: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, 4.2 + 0.2 * lines), layout="constrained")
    axes = figure.subplots()
    axes.grid(True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure, axes: Axes, prefix: str, *, simulated: bool) -> str:
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.15))
    if simulated:
        axes.text(
            0.5, 0.5, "SIMULATED", transform=axes.transAxes, ha="center", va="center",
            rotation=25, fontsize=34, color="#b00020", alpha=0.16, weight="bold",
        )  # fmt: skip
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loadgen"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return _ID.sub(lambda found: found[0] + prefix, _FIRST_LINE.sub("", text.getvalue()))


_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap }
td.text, th.text { text-align: left } td.long { white-space: normal; min-width: 16rem }
.simulated { background: #b00020; color: #fff; padding: .6rem 1rem; font-weight: 600 }
figure { margin: 1rem 0; background: #fff; display: inline-block } svg { max-width: 100%; height: auto }
"""


def write_page(comparison: RunComparison, out: Path) -> Path:
    """Writes compare.html, one self-contained file, into the folder `out`; returns its path."""
    path = out / "compare.html"
    Folder(out).write(path.name, _page(comparison).encode())
    return path


def _page(comparison: RunComparison) -> str:
    title = "loadgen compare: " + ", ".join(dict.fromkeys(row.run for row in comparison.rows))
    stamp = "SIMULATED · " if comparison.simulated else ""
    banner = f'<p class="simulated">{BANNER}</p>' if comparison.simulated else ""
    figures = [cor_over_size(comparison.n_stars), speed_over_concurrency(comparison.rows, comparison.imports)]
    parts = [
        _list(told(comparison)),
        *(f"<figure>{svg}</figure>" for svg in figures if svg),
        "<h2>Runs</h2>" + _html_table(RUNS, run_rows(comparison.rows)),
        _section("The paper's claims over model size", _html_table(CLAIMED, claim_lines(comparison.claims))),
        _section("Published figures beside ours", _html_table(PUBLISHED, published_rows(comparison.published))),
        _published_n_star(comparison),
        _section("Imported from other tools", _html_table(IMPORTED, imported_rows(comparison.imports))),
        _list([f"{tool}: {how}" for tool, how in comparison.differences.items()]),
        _section("Notes", _list(notes(comparison))),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(stamp + title)}</title><style>{_STYLE}</style></head><body>
{banner}<h1>{escaped(stamp + title)}</h1>
<h2>N*, the model size at which COR is zero</h2>
<p>{escaped(COR_MEANS)}</p>
{"".join(parts)}
<p>N* is the zero of COR over log N where everything else is equal. Intervals are 95%. loadgen {__version__}</p>
</body></html>
"""


def _published_n_star(comparison: RunComparison) -> str:
    if not comparison.published_n_star:
        return ""
    ends = " to ".join(f"{figure.value:g}" for figure in comparison.published_n_star)
    first = comparison.published_n_star[0]
    where = f"{first.precision}, {first.dataset}, {first.gpu}"
    return f"<p>Published N*: {ends} {escaped(first.unit)} ({escaped(where)}; {escaped(first.source)}).</p>"


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _html_table(headings: Sequence[str], rows: Rows) -> str:
    if not rows:
        return ""
    places = [place for place in range(len(headings)) if any(row[place] for row in rows)]
    classes: Mapping[int, str] = {place: "text" if headings[place] in TEXT else "" for place in places}
    head = "".join(f'<th class="{classes[place]}">{escaped(headings[place])}</th>' for place in places)
    body = "".join(
        "<tr>" + "".join(
            f'<td class="{classes[place]}{" long" if len(row[place]) > 60 else ""}">{escaped(row[place])}</td>'
            for place in places
        ) + "</tr>"
        for row in rows
    )  # fmt: skip
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
