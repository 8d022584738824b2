"""Sheet: a figure while it is drawn."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from loadgen.folder import Folder
from loadgen.report.figures.figure import Figure, Section
from loadgen.report.figures.look import INVALID, STAMP, TEXT, Look

MOST_POINTS = 280
"""Points with an id of their own; further ones are drawn within their series, so that a page stays quick."""
PNG_DPI = 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.9, 0.18, 0.31, 0.58
_ENTRY, _LETTER, _LINE = 0.62, 0.085, 0.21
"""Inches of a legend entry without its text, of a letter, and of a line."""
_TITLE = 0.34
_COORDINATES = re.compile(r' (?:d|x|y|transform|points)="[^"]*"')
_DRAWN_IN, _SHOWN_IN = "'DejaVu Sans', sans-serif", "system-ui, sans-serif"
_DIGITS = re.compile(r"(\.\d\d)\d+")


class Sheet:
    """Panels of one size with a row for the legend above them; give it artists, then `save` it once."""

    def __init__(
        self,
        looks: Mapping[str, Look],
        *,
        simulated: bool,
        rows: int = 1,
        columns: int = 1,
        panel: tuple[float, float] = (4.5, 3.0),
        gap: tuple[float, float] = (0.78, 0.72),
        left: float = _LEFT,
        right: float = _RIGHT,
        **shared: Any,
    ) -> None:
        """`panel`: width and height in inches; `gap`: between columns, between rows;
        `left`, `right`: margins."""
        self.looks = looks
        self.tips: dict[str, str] = {}
        self._simulated = simulated
        self._used: Counter[str] = Counter()
        self._width = left + columns * panel[0] + (columns - 1) * gap[0] + right
        self._panels_height = rows * panel[1] + (rows - 1) * gap[1]
        self._canvas = Canvas()
        self.axes: list[Axes] = list(self._canvas.subplots(rows, columns, squeeze=False, **shared).flat)
        self._canvas.subplots_adjust(
            left=left / self._width,
            right=1 - right / self._width,
            wspace=gap[0] / panel[0],
            hspace=gap[1] / panel[1],
        )
        self._grow(legend_lines=1)
        for axes in self.axes:
            _calm(axes)

    def twin(self, axes: Axes) -> Axes:
        """A second y axis on the right."""
        other: Axes = axes.twinx()
        other.spines[["top", "left"]].set_visible(False)
        return other

    def series(self, target: str) -> str:
        """A new id for an artist of the target."""
        stem = f"series-{self.looks[target].slug}"
        self._used[stem] += 1
        return stem if self._used[stem] == 1 else f"{stem}--{self._used[stem]}"

    def point(self, axes: Axes, target: str, x: float, y: float, tip: str, **style: Any) -> None:
        """A marker of the target with its own id and tip."""
        look = self.looks[target]
        given: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 5.5, "zorder": 4}
        axes.plot([x], [y], linestyle="none", gid=self._tipped(target, tip), **(given | style))

    def invalid(self, axes: Axes, target: str, x: Sequence[float], y: Sequence[float], tip: str) -> None:
        """Hollow grey markers with a cross: invalid cells of the target, one id for all of them."""
        look, gid = self.looks[target], self._tipped(target, tip)
        axes.scatter(
            x, y, s=44, marker=look.marker, facecolors="none", edgecolors=INVALID, linewidths=1.1, zorder=3, gid=gid
        )
        axes.scatter(x, y, s=26, marker="x", color=INVALID, linewidths=1.0, zorder=3, gid=self.series(target))

    def line(self, axes: Axes, target: str, x: ArrayLike, y: ArrayLike, tip: str = "", **style: Any) -> None:
        """A line of the target; with a tip if there is one to give."""
        gid = self.series(target)
        if tip:
            self.tips[gid] = self._said(tip)
        axes.plot(x, y, gid=gid, **({"color": self.looks[target].colour} | style))

    def band(self, axes: Axes, target: str, x: ArrayLike, low: ArrayLike, high: ArrayLike) -> None:
        """An interval along a line."""
        axes.fill_between(
            x, low, high, color=self.looks[target].colour, alpha=0.18, linewidth=0, gid=self.series(target)
        )

    def mark(
        self, axes: Axes, target: str, x: float | None, ends: tuple[float, float], tip: str, *, text: str, row: int
    ) -> None:
        """A vertical line at x, if it is known, with its interval as a band; `text` beside its upper end, `row` lines
        further down."""
        colour = self.looks[target].colour
        gid = self._tipped(target, tip)
        span = gid if x is None else self.series(target)
        axes.axvspan(*ends, color=colour, alpha=0.13, linewidth=0, gid=span, zorder=0)
        if x is None:
            x = math.sqrt(math.prod(ends))
        else:
            axes.axvline(x, color=colour, linestyle="--", linewidth=1.3, gid=gid, zorder=2)
        at_the_right = axes.transAxes.inverted().transform(axes.transData.transform((x, 1)))[0] > 0.85
        axes.annotate(
            text, (x, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
            xytext=(-4 if at_the_right else 4, -10 - 12 * row), ha="right" if at_the_right else "left",
            color=colour, fontsize=9, gid=self.series(target), zorder=5,
        )  # fmt: skip

    def legend(self, targets: Iterable[str], *, invalid: bool = False, extra: Sequence[Line2D] = ()) -> None:
        """Above the panels: an entry per target, one for invalid cells where there are any, then `extra` lines."""
        handles = [_handle(self.looks[target]) for target in targets]
        if invalid:
            handles.append(
                Line2D([], [], color=INVALID, marker="x", linestyle="none", markersize=6, label="invalid cell")
            )
        handles += extra
        longest = max((len(str(handle.get_label())) for handle in handles), default=0)
        columns = max(1, min(len(handles), int(self._width / (_ENTRY + _LETTER * longest))))
        self._grow(legend_lines=math.ceil(len(handles) / columns))
        drawn = self._canvas.legend(
            handles=handles, loc="upper left", ncols=columns, handletextpad=0.5, columnspacing=1.4,
            bbox_to_anchor=(0.25 / self._width, 1 - 0.04 / self._height), borderaxespad=0,
        )  # fmt: skip
        for handle, text in zip(drawn.legend_handles, drawn.get_texts(), strict=True):
            slug = next((look.slug for look in self.looks.values() if look.target == text.get_text()), None)
            if slug is not None and handle is not None:
                handle.set_gid(f"legend-{slug}")
                text.set_gid(f"legend-{slug}--2")

    def save(self, folder: Path, name: str, section: Section, title: str, caption: str, alt: str) -> Figure:
        """Writes NAME.svg and NAME.png into the folder; the title is in the PNG only, as a page has its own."""
        if self._simulated:
            for axes in self.axes:
                if axes.get_visible():
                    _stamp(axes)
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        drawn = io.StringIO()
        self._canvas.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
        Folder(folder).write(svg.name, _rounded(drawn.getvalue()).encode())
        self._canvas.text(
            0.25 / self._width, 1 + 0.08 / self._height, self._said(title),
            fontsize=11, weight="bold", color=STAMP if self._simulated else TEXT, va="bottom",
        )  # fmt: skip
        page = Bbox.from_bounds(0, 0, self._width, self._height + _TITLE)
        with Folder(folder).replacing(png.name) as file:
            self._canvas.savefig(
                file, format="png", dpi=PNG_DPI, facecolor="white", bbox_inches=page, pil_kwargs={"compress_level": 3}
            )
        return Figure(
            name=name,
            section=section,
            title=title,
            caption=f"SIMULATED. {caption}" if self._simulated else caption,
            alt=f"SIMULATED. {alt}" if self._simulated else alt,
            svg=svg,
            png=png,
            tips=self.tips,
        )

    def _grow(self, legend_lines: int) -> None:
        """Makes room for the legend; panels keep their size."""
        self._height = _TOP + _LINE * legend_lines + self._panels_height + _BOTTOM
        self._canvas.set_size_inches(self._width, self._height)
        self._canvas.subplots_adjust(bottom=_BOTTOM / self._height, top=(_BOTTOM + self._panels_height) / self._height)

    def _tipped(self, target: str, tip: str) -> str:
        slug = self.looks[target].slug
        if len(self.tips) >= MOST_POINTS:
            return self.series(target)
        self._used[f"pt-{slug}"] += 1
        gid = f"pt-{slug}-{self._used[f'pt-{slug}']}"
        self.tips[gid] = self._said(tip)
        return gid

    def _said(self, words: str) -> str:
        return f"SIMULATED · {words}" if self._simulated else words


def _calm(axes: Axes) -> None:
    axes.grid(True, which="major", alpha=0.45)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _handle(look: Look) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, markersize=5.5, label=look.target)


def _stamp(axes: Axes) -> None:
    box = axes.get_window_extent()
    size = min(30.0, 0.075 * box.width, 0.25 * box.height)
    axes.text(
        0.5, 0.5, "SIMULATED", transform=axes.transAxes, ha="center", va="center", rotation=20, fontsize=size,
        color=STAMP, alpha=0.24, weight="bold", zorder=6,
    )  # fmt: skip


def _rounded(svg: str) -> str:
    """Coordinates with two decimals, a hundredth of a point; the reader's own sans-serif font."""
    return _COORDINATES.sub(lambda found: _DIGITS.sub(r"\1", found[0]), svg).replace(_DRAWN_IN, _SHOWN_IN)
