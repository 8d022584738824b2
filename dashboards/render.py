"""Draws the dashboards' panels from Prometheus's answers, with matplotlib: a rendering of the queries, not Grafana.

python dashboards/render.py http://127.0.0.1:9090 --minutes 5 --out docs/images/dashboards

Layout, titles, units, mappings, thresholds and colours are those of the dashboards' JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from boards.live import Prometheus, Series, Span, answer, interpolate, variables
from boards.panel import COLOURS, Json
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator, NullLocator
from PIL import Image

FOLDER = Path(__file__).parent
WIDTH, ROW, GAP, HEAD, DPI = 1320, 34, 8, 52, 100
"""Pixels of the picture, of a grid row, between panels, and of the line above them."""
TEXT, FAINT, LINE, BACK = "#24292e", "#6e7781", "#d8dbdf", "#f4f5f5"
PALETTE = {
    "blue": "#1f60c4", "light-blue": "#8ab8ff", "orange": "#fa6400", "green": "#37872d", "purple": "#8f3bb8",
    "light-purple": "#ca95e5", "red": "#c4162a", "yellow": "#e0b400", "text": TEXT,
}  # fmt: skip
CLASSIC = ("#56a64b", "#e0b400", "#2f9fb5", "#ff780a", "#e02f44", "#3274d9", "#a352cc", "#705da0")
"""For series without a colour of their own."""
BANNER = "rendering of the queries, not Grafana"
SI = ((1e-9, "n"), (1e-6, "µ"), (1e-3, "m"), (1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"))
UNITS: dict[str, tuple[tuple[tuple[float, str], ...], str]] = {
    "joule": (SI, "J"), "watt": (SI, "W"), "hertz": (SI, "Hz"), "celsius": (SI[3:4], "°C"), "reqps": (SI[3:4], "req/s"),
    "s": (((1e-6, "µs"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h")), ""),
    "bytes": (((1.0, ""), (2.0**10, "Ki"), (2.0**20, "Mi"), (2.0**30, "Gi")), "B"),
    "percentunit": (((0.01, "%"),), ""), "none": (SI[3:4], ""),
}  # fmt: skip
"""By Grafana's name: factors with their prefixes, and the unit."""


def scale(unit: str, largest: float) -> tuple[float, str]:
    """The factor and the unit in which Grafana shows a figure of this size."""
    factors, name = UNITS.get(unit, (SI[3:4], unit.removeprefix("suffix:").strip()))
    factor, prefix = max((one for one in factors if one[0] <= abs(largest)), default=factors[0])
    if largest == 0:
        factor, prefix = min(factors, key=lambda one: abs(one[0] - 1))
    return factor, prefix + name


def shown(value: float, unit: str) -> str:
    """A figure with its unit, to three digits."""
    factor, name = scale(unit, value)
    text = f"{value / factor:.3g}" if abs(value / factor) < 1000 else f"{value / factor:.0f}"
    return f"{text}{'' if name == '%' else ' '}{name}".strip()


class Panel:
    """One panel of the picture; lengths are pixels, y goes down."""

    def __init__(self, figure: Figure, sheet: Axes, panel: Json, height: float) -> None:
        place = panel["gridPos"]
        column = (WIDTH - GAP) / 24
        self.left, self.top = GAP + place["x"] * column, HEAD + place["y"] * ROW
        self.width, self.height = place["w"] * column - GAP, place["h"] * ROW - GAP
        self.panel, self.unit = panel, panel["fieldConfig"]["defaults"]["unit"]
        self._figure, self._sheet, self._height = figure, sheet, height

    def card(self, title: str, colour: str = "white") -> None:
        """The panel's box with its title."""
        box = Rectangle((self.left, self.top), self.width, self.height, facecolor=colour, edgecolor=LINE, linewidth=0.8)
        self._sheet.add_patch(box)
        room = int((self.width - 16) / 8.2)
        title = title if len(title) <= room else f"{title[: room - 1]}…"
        self.text(10, 17, title, weight="bold", color=TEXT if colour == "white" else "white")

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        """Words from the panel's left upper corner."""
        given = {"fontsize": 9, "color": TEXT, "va": "center"} | style
        self._sheet.text(self.left + x, self.top + y, words, **given)

    def line(self, x: float, y: float, x_end: float, **style: Any) -> None:
        """A line across."""
        self._sheet.plot([self.left + x, self.left + x_end], [self.top + y] * 2, **style)

    def plot(self, right: float) -> Axes:
        """Axes in the panel, with this much room at their right."""
        left, top, bottom = 78, 34, 30
        box = (
            (self.left + left) / WIDTH, 1 - (self.top + self.height - bottom) / self._height,
            (self.width - left - right) / WIDTH, (self.height - top - bottom) / self._height,
        )  # fmt: skip
        axes = self._figure.add_axes(box)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(LINE)
        axes.tick_params(labelsize=8.5, length=0, colors=TEXT)
        axes.tick_params(axis="x", pad=7)
        axes.grid(color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        return axes

    def y_axis(self, axes: Axes) -> None:
        """Linear ticks, each with the unit."""
        defaults = self.panel["fieldConfig"]["defaults"]
        low, high = axes.dataLim.y0, axes.dataLim.y1
        low, high = defaults.get("min", min(low, high)), defaults.get("max", max(low, high))
        if high <= low:
            low, high = (0.0, 1.0) if high == 0 else (min(0.0, 2 * high), max(0.0, 2 * high))
        factor, name = scale(self.unit, max(abs(low), abs(high)))
        ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low / factor, high / factor)
        axes.set_ylim(factor * ticks[0], factor * ticks[-1])
        space = "" if name == "%" else " "
        axes.set_yticks(
            [factor * tick for tick in ticks], [f"{round(tick, 9):g}{space}{name}".strip() for tick in ticks]
        )

    def legend(self, entries: Sequence[tuple[str, str, str]], width: float) -> None:
        """Beside the data: colour, name and last figure of each series; those without room are counted."""
        left, room = self.width - width, int((self.height - 44) / 17)
        shown_entries = entries if len(entries) <= room else entries[: room - 1]
        for row, (colour, name, last) in enumerate(shown_entries):
            y = 42 + 17 * row
            self.line(left, y, left + 16, color=colour, linewidth=2.5)
            letters = int((width - 36 - 6.4 * len(last)) / 6.2)
            self.text(left + 22, y, name if len(name) <= letters else f"{name[: letters - 1]}…", fontsize=8.5)
            self.text(self.width - 12, y, last, fontsize=8.5, ha="right")
        if len(entries) > len(shown_entries):
            self.text(left + 22, 42 + 17 * (room - 1), f"and {len(entries) - len(shown_entries)} more", color=FAINT)


def render(board: Json, prometheus: Prometheus, span: Span, path: Path) -> None:
    """Writes the picture of one dashboard over one span."""
    values = variables(board, prometheus, span)
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    height = HEAD + rows * ROW + GAP
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor=BACK)
    sheet = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    sheet.axis("off")
    sheet.text(GAP + 2, HEAD / 2, board["title"], fontsize=14, weight="bold", color=TEXT, va="center")
    said = f"{BANNER} · {values['stamp']}"
    sheet.text(WIDTH - GAP, HEAD / 2, said, fontsize=11, weight="bold", color=PALETTE["red"], va="center", ha="right")
    for panel in board["panels"]:
        if panel["type"] == "row":
            at = HEAD + (panel["gridPos"]["y"] + 0.5) * ROW
            sheet.text(GAP + 2, at, f"⌄ {panel['title']}", fontsize=11, weight="bold", color=TEXT, va="center")
            continue
        drawn = Panel(figure, sheet, panel, height)
        title = interpolate(panel["title"], values)
        found = [(target, answer(target, prometheus, values, span)) for target in panel["targets"]]
        DRAWN[panel["type"]](drawn, title, found, span)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    Image.open(file).convert("RGB").quantize(96).save(path, optimize=True)


Found = Sequence[tuple[Json, list[Series]]]


def _lines(drawn: Panel, title: str, found: Found, span: Span) -> None:
    drawn.card(title)
    named = [(_legend(target, series), series) for target, answered in found for series in answered if series.finite]
    beside = min(0.42 * drawn.width, 70 + 6.3 * max((len(name) + 8 for name, _ in named), default=0))
    axes = drawn.plot(beside + 14)
    entries = []
    for place, (name, series) in enumerate(named):
        colour = _colour(name) or CLASSIC[place % len(CLASSIC)]
        times_s, figures = zip(*with_gaps(series, span), strict=True)
        axes.plot(times_s, figures, linewidth=1.3, color=colour)
        last = next(value for _, value in reversed(series.points) if math.isfinite(value))
        entries.append((colour, name, shown(last, drawn.unit)))
    axes.set_xlim(span.start_s, span.end_s)
    axes.xaxis.set_major_locator(
        MultipleLocator(_round_step(span.end_s - span.start_s, (drawn.width - beside - 92) / 78))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}"))
    if not named:
        axes.text(0.5, 0.5, "No data", ha="center", transform=axes.transAxes, color=FAINT)
        axes.set_yticks([])
        return
    drawn.y_axis(axes)
    drawn.text(drawn.width - 12, 17, "Last *", fontsize=8.5, color=FAINT, ha="right")
    drawn.legend(entries, beside)


def with_gaps(series: Series, span: Span) -> Iterator[tuple[float, float]]:
    """The points, and nan where some are missing: a line does not cross a gap."""
    before = math.inf
    for at, value in series.points:
        if at - before > 1.5 * span.step_s:
            yield before, math.nan
        yield at, value
        before = at


def _round_step(length_s: float, most: float) -> float:
    """Seconds between the ticks of a time axis, of which there are at most so many."""
    return next((step for step in (5, 10, 15, 30, 60, 120, 300, 600) if length_s / step <= most), length_s / 2)


def _curves(drawn: Panel, title: str, found: Found, span: Span) -> None:
    drawn.card(title)
    axes = drawn.plot(120)
    entries = []
    for target, answered in found:
        points = sorted((float(series.labels["concurrency"]), series.points[-1][1]) for series in answered)
        if points:
            name = target["refId"]
            colour = _colour(name) or TEXT
            axes.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=2, markersize=6, clip_on=False)
            entries.append((colour, name, ""))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.annotate("B", (1, 0), xycoords="axes fraction", fontsize=9, xytext=(8, -14), textcoords="offset points")
    drawn.y_axis(axes)
    drawn.legend(entries, 104)


def _stat(drawn: Panel, title: str, found: Found, span: Span) -> None:
    named = _stat_texts(drawn.panel, found)
    background = drawn.panel["options"]["colorMode"] == "background" and named
    drawn.card(title, named[0][2] if background else "white")
    shown_texts = named[:8] or [("", "No data", FAINT)]
    across = drawn.width / len(shown_texts) >= 84
    middle = 24 + (drawn.height - 24) / 2
    for place, (name, words, colour) in enumerate(shown_texts):
        x = drawn.width * (place + 0.5) / len(shown_texts) if across else drawn.width / 2
        y = middle if across else 40 + (drawn.height - 44) * (place + 0.3) / len(shown_texts)
        size = min(19.0, 1.05 * drawn.width / (len(shown_texts) if across else 1) / max(len(words), 1))
        named_too = len(shown_texts) > 1 and across
        words = words if across else f"{name}  {words}"
        drawn.text(
            x, y + (11 if named_too else 0), words, fontsize=size if across else 10, ha="center", weight="bold",
            color="white" if background else colour,
        )  # fmt: skip
        if named_too:
            drawn.text(x, y - 16, name, ha="center", fontsize=9, color="white" if background else FAINT)


def _stat_texts(panel: Json, found: Found) -> list[tuple[str, str, str]]:
    """Name, text and colour of each series of a stat."""
    defaults = panel["fieldConfig"]["defaults"]
    texts = []
    for target, answered in found:
        for series in answered:
            name, last = _legend(target, series), series.points[-1][1]
            said, colour = _mapped(defaults, last)
            texts.append((name, name if panel["options"]["textMode"] == "name" else said, colour))
    return texts[-1:] if panel["options"]["textMode"] == "name" else texts


def _mapped(defaults: Json, value: float) -> tuple[str, str]:
    """What stands for a figure, and its colour: by the value mappings, else by the thresholds."""
    for mapping in defaults.get("mappings", ()):
        if (known := mapping["options"].get(f"{value:g}")) is not None:
            return known["text"], PALETTE.get(known.get("color", "text"), TEXT)
    steps = defaults.get("thresholds", {}).get("steps", [{"value": None, "color": "text"}])
    reached = [step for step in steps if step["value"] is None or value >= step["value"]]
    return shown(value, defaults["unit"]), PALETTE.get(reached[-1]["color"], TEXT)


def _table(drawn: Panel, title: str, found: Found, span: Span) -> None:
    drawn.card(title)
    hidden = {override["matcher"]["options"] for override in drawn.panel["fieldConfig"]["overrides"]}
    series = [one for _, answered in found for one in answered]
    names = sorted({name for one in series for name in one.labels} - hidden)
    rows = sorted(
        (tuple(one.labels.get(name, "") for name in names), *_mapped(drawn.panel["fieldConfig"]["defaults"], value))
        for one in series
        for _, value in one.points[-1:]
    )
    if not rows:
        drawn.text(drawn.width / 2, drawn.height / 2, "No data", ha="center", color=FAINT)
        return
    longest = [max(len(name), *(len(labels[k]) for labels, *_ in rows)) for k, name in enumerate(names)]
    letters = [min(length, 20) + 2 for length in (*longest, max(len("Value"), *(len(said) for _, said, _ in rows)))]
    edges = [12 + (drawn.width - 24) * sum(letters[:k]) / sum(letters) for k in range(len(letters))]
    room = int((drawn.height - 62) / 22)
    for k, name in enumerate((*names, "Value")):
        drawn.text(edges[k], 40, name, fontsize=8.5, color=PALETTE["blue"])
    per_letter = (drawn.width - 24) / sum(letters)
    for row, (labels, said, colour) in enumerate(rows[:room]):
        y = 62 + 22 * row
        drawn.line(8, y - 11, drawn.width - 8, color=LINE, linewidth=0.6)
        for k, words in enumerate((*labels, said)):
            most = int(per_letter * letters[k] / 6.4) - 1
            words = words if len(words) <= most else f"{words[: most - 1]}…"
            drawn.text(edges[k], y, words, fontsize=8.5, color=colour if k == len(names) else TEXT)
    if len(rows) > room:
        drawn.text(drawn.width - 12, 17, f"{len(rows)} rows", fontsize=8.5, color=FAINT, ha="right")


def _legend(target: Json, series: Series) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: series.labels.get(name[1], ""), target["legendFormat"]).strip()


def _colour(name: str) -> str | None:
    """The colour of the precision that the name begins with; None if it begins with none."""
    return PALETTE.get(COLOURS.get(name.split(" ")[0], ""))


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
