"""Drawn: the data of a figure as its SVG shows them, read back along the labels of its axes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from loadgen.reports.figures import Figure

Point = tuple[float, float]
SVG = "{http://www.w3.org/2000/svg}"
_NUMBER = re.compile(r"-?[\d.]+(?:e-?\d+)?")
_INVALID = "#808080"


@dataclass(frozen=True)
class Scale:
    """From points of the page to what the axis says, by its labelled ticks."""

    slope: float
    offset: float
    log: bool

    def __call__(self, at: float) -> float:
        found = self.slope * at + self.offset
        return math.exp(found) if self.log else found

    def place(self, value: float) -> float:
        return ((math.log(value) if self.log else value) - self.offset) / self.slope


@dataclass
class Mark:
    """An artist with an id: where its markers are, its open lines and its filled outlines, in points of the page."""

    gid: str
    colour: str = ""
    markers: list[Point] = field(default_factory=list)
    lines: list[list[Point]] = field(default_factory=list)
    outlines: list[list[Point]] = field(default_factory=list)


@dataclass
class Panel:
    """`x` and `y` are None where the axis has no two labels in numbers."""

    texts: list[str]
    marks: list[Mark]
    x: Scale | None
    y: Scale | None
    ticks: tuple[tuple[float, ...], tuple[float, ...]]

    def of(self, kind: str) -> Iterator[Mark]:
        """Those of a target that are `pt` or `series`."""
        return (mark for mark in self.marks if mark.gid.startswith(f"{kind}-"))


def panels_of(figure: Figure) -> list[Panel]:
    """In the order drawn; those that share an axis have its labels once, and its scale all."""
    root = ElementTree.fromstring(figure.svg.read_text(encoding="utf-8"))
    drawn = [_panel(group) for group in root.iter(f"{SVG}g") if re.fullmatch(r"axes_\d+", group.get("id", ""))]
    for panel in drawn:
        panel.x = panel.x or next((other.x for other in drawn if other.x and other.ticks[0] == panel.ticks[0]), None)
        panel.y = panel.y or next((other.y for other in drawn if other.y and other.ticks[1] == panel.ticks[1]), None)
    return drawn


def _panel(group: Element) -> Panel:
    marks = [_mark(child) for child in group if not child.get("id", "").startswith("matplotlib.axis")]
    texts = [text.text or "" for text in group.iter(f"{SVG}text")]
    ticks = [_ticks(group, which) for which in "xy"]
    x, y = (_scale([(at, value) for at, value in found if value is not None]) for found in ticks)
    places = tuple(tuple(at for at, _ in found) for found in ticks)
    return Panel(texts, marks, x, y, (places[0], places[1]))


def _ticks(group: Element, which: str) -> list[tuple[float, float | None]]:
    found = []
    for tick in group.iter(f"{SVG}g"):
        if re.fullmatch(rf"{which}tick_\d+", tick.get("id", "")):
            label = next((text.text for text in tick.iter(f"{SVG}text")), None)
            found += [(float(use.get(which, "nan")), _value(label or "")) for use in tick.iter(f"{SVG}use")]
    return found


def _value(label: str) -> float | None:
    plain = label.replace("\N{MINUS SIGN}", "-").replace(",", "")
    number = plain.removesuffix("%").removesuffix(" pp")
    if not _NUMBER.fullmatch(number):
        return None
    return float(number) / (1 if number == plain else 100)


def _scale(ticks: Sequence[tuple[float, float]]) -> Scale | None:
    """Logarithmic where the ticks lie so; two of them tell it by being above 0."""
    if len(ticks) < 2:
        return None
    at, values = np.array(ticks).T
    fits = []
    for log in (False, True) if (values > 0).all() else (False,):
        shown = np.log(values) if log else values
        slope, offset = np.polyfit(at, shown, 1)
        off = np.abs((shown - offset) / slope - at).max()
        fits.append((off, Scale(float(slope), float(offset), log)))
    return fits[-1][1] if len(ticks) == 2 else min(fits, key=lambda fit: fit[0])[1]


def _mark(group: Element) -> Mark:
    mark = Mark(group.get("id", ""))
    definitions = {path for defs in group.iter(f"{SVG}defs") for path in defs.iter(f"{SVG}path")}
    for path in group.iter(f"{SVG}path"):
        text = path.get("d", "")
        found = _lines(text)
        if path in definitions and max(abs(x) for line in found for x, _ in line) < 10:
            continue
        (mark.outlines if "z" in text else mark.lines).extend(found)
    for use in group.iter(f"{SVG}use"):
        x, y = float(use.get("x", "nan")), float(use.get("y", "nan"))
        if x == 0:
            mark.outlines = [[(px, py + y) for px, py in line] for line in mark.outlines]
        else:
            mark.markers.append((x, y))
        mark.colour += use.get("style", "")
    for path in group.iter(f"{SVG}path"):
        mark.colour += path.get("style", "")
    return mark


def _lines(path: str) -> list[list[Point]]:
    """Vertices of each part of a path's description."""
    parts = [[float(number) for number in _NUMBER.findall(part)] for part in path.split("M") if part.strip()]
    return [list(zip(part[::2], part[1::2], strict=True)) for part in parts]


def invalid(mark: Mark) -> bool:
    """Drawn in the grey of invalid cells."""
    return _INVALID in mark.colour


def centre(outline: Sequence[Point]) -> Point:
    x, y = ([point[axis] for point in outline] for axis in (0, 1))
    return (min(x) + max(x)) / 2, (min(y) + max(y)) / 2


def is_bar(line: Sequence[Point]) -> bool:
    """Two ends beside each other or one above the other."""
    return len(line) == 2 and any(abs(line[0][axis] - line[1][axis]) < 0.02 for axis in (0, 1))
