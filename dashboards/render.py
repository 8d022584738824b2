"""Draws the dashboards' panels from Prometheus's answers, with matplotlib: a rendering of the queries, not Grafana.

python dashboards/render.py http://127.0.0.1:9090 --minutes 5 --out docs/images/dashboards
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from boards.live import Prometheus, Series, Span, answer, interpolate, variables
from boards.panel import COLOURS, Json

FOLDER = Path(__file__).parent
UNITS = {
    "joule": "J", "watt": "W", "s": "s", "percentunit": "share", "hertz": "Hz", "bytes": "B", "celsius": "°C",
    "reqps": "requests/s", "none": "",
}  # fmt: skip
PALETTE = {
    "blue": "#1f60c4", "light-blue": "#8ab8ff", "orange": "#ff780a", "green": "#37872d", "purple": "#8f3bb8",
    "light-purple": "#ca95e5", "red": "#c4162a", "yellow": "#e0b400",
}  # fmt: skip
ROW_IN, COLUMN_IN, DPI = 0.34, 0.8, 60
SHOWN_ROWS, LEGEND = 9, 12
BANNER = "rendering of the queries, not Grafana"


def render(board: Json, prometheus: Prometheus, span: Span, path: Path) -> None:
    """Writes the picture of one dashboard over one span."""
    values = variables(board, prometheus, span)
    places = [panel["gridPos"] for panel in board["panels"]]
    rows = max(place["y"] + place["h"] for place in places)
    figure = plt.figure(figsize=(24 * COLUMN_IN, (rows + 2) * ROW_IN), layout="none")
    figure.suptitle(f"{board['title']}: {BANNER} · {values['stamp']}", y=1 - 0.6 / (rows + 2), fontsize=16, color="red")
    for panel in board["panels"]:
        place = panel["gridPos"]
        top = 1 - (place["y"] + 2 + place["h"]) / (rows + 2)
        left, width, height = place["x"] / 24, place["w"] / 24, place["h"] / (rows + 2)
        if panel["type"] == "row":
            figure.text(0.01, top + height / 3, panel["title"], fontsize=13, weight="bold")
            continue
        text = panel["type"] in ("stat", "table")
        inset = (0.005, 0.0, 0.99, 0.7) if text else (0.13 * 12 / place["w"] / 1.5, 0.12, 0.84, 0.72)
        box = (left + inset[0] * width, top + inset[1] * height, inset[2] * width, inset[3] * height)
        axes = figure.add_axes(box)
        axes.set_title(interpolate(panel["title"], values), fontsize=9, loc="left")
        found = [(target, answer(target, prometheus, values, span)) for target in panel["targets"]]
        DRAWN[panel["type"]](axes, panel, found, span)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


Found = Sequence[tuple[Json, list[Series]]]


def _lines(axes: Any, panel: Json, found: Found, span: Span) -> None:
    for target, answered in found:
        for series in answered:
            name = _legend(target, series)
            times_s, figures = zip(*((t - span.start_s, value) for t, value in series.points), strict=True)
            colour = PALETTE[COLOURS[name.split(" ")[0]]] if name.split(" ")[0] in COLOURS else None
            axes.plot(times_s, figures, ".-", markersize=2, linewidth=1, label=name, color=colour)
    _finish(axes, panel, "s")


def _curves(axes: Any, panel: Json, found: Found, span: Span) -> None:
    for target, answered in found:
        points = sorted((float(series.labels["concurrency"]), series.points[-1][1]) for series in answered)
        if points:
            name = target["refId"]
            axes.plot(*zip(*points, strict=True), "o-", label=name, color=PALETTE[COLOURS[name]])
    axes.set_xscale("log", base=2)
    _finish(axes, panel, "B")


def _finish(axes: Any, panel: Json, x: str) -> None:
    axes.set_ylabel(_unit(panel), fontsize=8)
    axes.annotate(x, (1, 0), xycoords="axes fraction", fontsize=8, xytext=(2, -8), textcoords="offset points")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if axes.lines:
        handles, names = axes.get_legend_handles_labels()
        more = [f"{names[-1]} (last of {len(names)})"] if len(names) > LEGEND else names[LEGEND - 1 : LEGEND]
        shown = [*handles[: LEGEND - 1], handles[-1]] if len(names) > LEGEND else handles
        axes.legend(shown, [*names[: LEGEND - 1], *more], fontsize=7, loc="upper left", framealpha=0.5, ncols=2)
    else:
        axes.text(0.5, 0.5, "no data", ha="center", transform=axes.transAxes)


def _stat(axes: Any, panel: Json, found: Found, span: Span) -> None:
    axes.axis("off")
    mappings = panel["fieldConfig"]["defaults"].get("mappings") or [{"options": {}}]
    said = []
    for target, answered in found:
        for series in answered[-4:]:
            name, last = _legend(target, series), series.points[-1][1]
            known = mappings[0]["options"].get(f"{last:g}")
            shown = known["text"] if known else f"{last:.4g} {_unit(panel)}"
            said.append(name if panel["options"]["textMode"] == "name" else f"{name}: {shown}")
    said = said[-3:] if panel["options"]["textMode"] == "name" else said
    axes.text(0.02, 0.95, "\n".join(said) or "no data", va="top", fontsize=9, transform=axes.transAxes)


def _table(axes: Any, panel: Json, found: Found, span: Span) -> None:
    axes.axis("off")
    hidden = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
    rows = [(dict(series.labels), series.points[-1][1]) for _, answered in found for series in answered]
    names = sorted({name for labels, _ in rows for name in labels} - hidden)
    cells = sorted([*(labels.get(name, "")[:32] for name in names), f"{value:.4g}"] for labels, value in rows)
    if not cells:
        axes.text(0.5, 0.5, "no data", ha="center")
        return
    drawn = axes.table(cells[:SHOWN_ROWS], colLabels=[*names, f"Value {_unit(panel)}"], loc="upper left")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)
    drawn.auto_set_column_width(range(len(names) + 1))


def _legend(target: Json, series: Series) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: series.labels.get(name[1], ""), target["legendFormat"]).strip()


def _unit(panel: Json) -> str:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    return UNITS.get(unit, unit.removeprefix("suffix:").strip())


DRAWN = {"timeseries": _lines, "xychart": _curves, "stat": _stat, "table": _table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus", metavar="URL")
    parser.add_argument("--minutes", type=float, default=15.0, help="the time range, up to --end")
    parser.add_argument("--end", type=float, default=None, help="Unix time in s; now by default")
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "docs" / "images" / "dashboards")
    options = parser.parse_args()
    end_s = time.time() if options.end is None else options.end
    span = Span(end_s - options.minutes * 60, end_s)
    options.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(FOLDER.glob("*.json")):
        board = json.loads(path.read_text(encoding="utf-8"))
        render(board, Prometheus(options.prometheus), span, options.out / f"{path.stem}.png")


if __name__ == "__main__":
    main()
