"""The figures of compare.html, as SVG text."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadgen.analysis.compare.imported import ImportedPoint
from loadgen.analysis.compare.nstar import NStar
from loadgen.analysis.compare.row import CompareRow
from loadgen.analysis.compare.words import size_words
from loadgen.client.arrivals import CLOSED
from loadgen.report.stamp import stamped
from loadgen.visible import visible

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
