"""Sheet: a figure while it is drawn. Figure: a drawing on disk and its words. Look: how a target appears in all."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from loadgen.analysis.estimate import Estimate
from loadgen.analysis.run import Run
from loadgen.folder import Folder
from loadgen.serving.metrics import UNVERIFIED
from loadgen.words import MINUS, NOT_KNOWN, interval, known, number

Section = Literal["answer", "pareto", "search", "paper", "latency", "time"]


class Scale(msgspec.Struct, frozen=True):
    """An axis: its `kind` as matplotlib names it, the values at its two ends, and whether linear and logarithmic are
    both of use for what is drawn."""

    kind: str
    low: float
    high: float
    turns: bool


class Frame(msgspec.Struct, frozen=True):
    """A panel in the SVG: left, top, right and bottom in its units, and what stands along it."""

    edges: tuple[float, float, float, float]
    x: Scale
    y: Scale


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure, drawn twice: an SVG without background for a page, a PNG with title on white to send around.

    In the SVG, text and axes are #1c1c1c and grid lines #9a9a9a. Every artist of a target has the id
    `series-TARGET`, further ones `series-TARGET--2`, `--3` and so on; its points have `pt-TARGET-1` and so on; its
    legend entry `legend-TARGET`. TARGET is the target's name with every dot as `_`. Ids are unique within a figure.
    """

    name: str
    """Stem of both files."""
    section: Section
    title: str
    caption: str
    """What is drawn, which intervals, which figure of the paper it answers, where its numbers are."""
    alt: str
    svg: Path
    png: Path
    tips: dict[str, str]
    """Id of a point or a line -> its figures in words."""
    targets: dict[str, str]
    """Id -> the target that it belongs to."""
    frames: dict[str, Frame]
    """Id -> the panel."""
    reads: dict[str, str]
    """Id of a line that can be read off -> the words for a place on it, with {x}, {y} or, as percent, {y%}."""
    wide: bool
    """Too wide to be shown next to another figure."""


TEXT = "#1c1c1c"
"""Text and axes: the page puts its own colour in this one's place."""
GRID = "#9a9a9a"
"""Grid and border lines, mapped by the page too."""
INVALID = "#808080"
STAMP = "#cf2a45"
COLOURS = ("#0072b2", "#d55e00", "#00936b", "#bf5b93", "#9a7400", "#7a6ae0", "#1f8fa8", "#a4604a")
"""Each has a contrast of 3:1 to white and to #14171a."""
MARKERS = "osD^vPX*"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "loadgen",
    "text.parse_math": False,
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "path.simplify_threshold": 0.2,
}
"""What differs from matplotlib's own settings."""


class Look(msgspec.Struct, frozen=True):
    """Colour and marker of a target; `slug` is its name in ids."""

    target: str
    slug: str
    colour: str
    marker: str


def looks_of(targets: Iterable[str]) -> dict[str, Look]:
    """By target, in the given order; from the ninth on colours come again, with another marker."""
    looks: dict[str, Look] = {}
    for place, target in enumerate(dict.fromkeys(targets)):
        marker, slug = MARKERS[(place + place // len(COLOURS)) % len(MARKERS)], target.replace(".", "_")
        while any(look.slug == slug for look in looks.values()):
            slug += "_"
        looks[target] = Look(target, slug, COLOURS[place % len(COLOURS)], marker)
    return looks


MOST_POINTS = 280
"""Points with their own id; further ones are drawn within their series, so that a page stays quick."""
PNG_DPI = 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.9, 0.18, 0.31, 0.58
_ENTRY, _LETTER, _LINE = 0.62, 0.085, 0.21
"""Inches of a legend entry without its text, of a letter, and of a line."""
_TITLE = 0.34
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_HALF = 500 / 72
"""Widest figure that is shown next to another one, in inches."""
_COORDINATES = re.compile(r' (?:d|x|y|transform|points)="[^"]*"')
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
        grid: bool = True,
        **shared: Any,
    ) -> None:
        """`panel`: width and height in inches; `gap`: between columns, between rows; `left`, `right`: margins."""
        self.looks = looks
        self.tips: dict[str, str] = {}
        self.targets: dict[str, str] = {}
        self.reads: dict[str, str] = {}
        self._simulated = simulated
        self._used: Counter[str] = Counter()
        self._width = left + columns * panel[0] + (columns - 1) * gap[0] + right
        self._panels_height = rows * panel[1] + (rows - 1) * gap[1]
        self._canvas = Canvas()
        self.axes: list[Axes] = list(self._canvas.subplots(rows, columns, squeeze=False, **shared).flat)
        self._canvas.subplots_adjust(
            left=left / self._width, right=1 - right / self._width, wspace=gap[0] / panel[0], hspace=gap[1] / panel[1]
        )
        self._grow(legend_lines=1)
        for axes in self.axes:
            if grid:
                axes.grid(True, which="major", alpha=0.45)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)

    def series(self, target: str) -> str:
        """A new id for an artist of the target."""
        stem = f"series-{self.looks[target].slug}"
        self._used[stem] += 1
        return self._owned(stem if self._used[stem] == 1 else f"{stem}--{self._used[stem]}", target)

    def _owned(self, gid: str, target: str) -> str:
        self.targets[gid] = target
        return gid

    def point(self, axes: Axes, target: str, x: float, y: float, tip: str, **style: Any) -> None:
        """A marker of the target with its own id and tip."""
        look = self.looks[target]
        given: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 5.5, "zorder": 4}
        axes.plot([x], [y], linestyle="none", gid=self._tipped(target, tip), **(given | style))

    def estimate(
        self, axes: Axes, target: str, at: float, estimate: Estimate, tip: str, *, horizontal: bool = False
    ) -> None:
        """A point of the target at x = `at` (y if `horizontal`), with a bar where the estimate has an interval."""
        if known(estimate.lo) and known(estimate.hi):
            draw = axes.hlines if horizontal else axes.vlines
            draw(
                at,
                estimate.lo,
                estimate.hi,
                color=self.looks[target].colour,
                linewidth=1.5,
                alpha=0.75,
                gid=self.series(target),
            )
        self.point(axes, target, *((estimate.value, at) if horizontal else (at, estimate.value)), tip)

    def invalid(self, axes: Axes, target: str, x: Sequence[float], y: Sequence[float], tip: str) -> None:
        """Hollow grey markers with a cross: invalid cells of the target, one id for all of them."""
        ring: dict[str, Any] = {"marker": self.looks[target].marker, "markersize": 6.6, "markerfacecolor": "none"}
        cross = {"marker": "x", "markersize": 5.1}
        for gid, drawn in ((self._tipped(target, tip), ring), (self.series(target), cross)):
            axes.plot(x, y, linestyle="none", markeredgecolor=INVALID, markeredgewidth=1.1, zorder=3, gid=gid, **drawn)

    def line(
        self, axes: Axes, target: str, x: ArrayLike, y: ArrayLike, tip: str = "", read: str = "", **style: Any
    ) -> None:
        """A line of the target; with a tip if there is one to give, and `read` as `Figure.reads`."""
        gid = self.series(target)
        if tip:
            self.tips[gid] = self._stamped(tip)
        if read:
            self.reads[gid] = read
        axes.plot(x, y, gid=gid, **({"color": self.looks[target].colour} | style))

    def trace(self, axes: Axes, x: ArrayLike, y: ArrayLike, read: str, **style: Any) -> None:
        """A line that belongs to no target; `read` as `Figure.reads`."""
        self._used["trace"] += 1
        gid = f"trace-{self._used['trace']}"
        self.reads[gid] = self._stamped(read)
        axes.plot(x, y, gid=gid, **style)

    def band(self, axes: Axes, target: str, x: ArrayLike, low: ArrayLike, high: ArrayLike) -> None:
        """An interval along a line."""
        colour = self.looks[target].colour
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, gid=self.series(target))

    def mark(
        self, axes: Axes, target: str, x: float | None, ends: tuple[float, float], tip: str, *, text: str, row: int
    ) -> None:
        """A vertical line at x, if it is known, with its interval as a band; `text` next to its upper end, `row` lines
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

    def label(self, axes: Axes, target: str, x: float, y: float, text: str) -> None:
        """A text beside the target's latest point, at another corner than those of the targets next to it."""
        right, up = [(1, 1), (-1, -1), (1, -1), (-1, 1)][list(self.looks).index(target) % 4]
        slug = self.looks[target].slug
        gid = f"label-{slug}-{self._used[f'pt-{slug}']}"
        axes.annotate(
            text, (x, y), xytext=(4 * right, 4 * up), textcoords="offset points", fontsize=8, zorder=5,
            ha="left" if right > 0 else "right", va="bottom" if up > 0 else "top",
            color=self.looks[target].colour, gid=self._owned(gid, target),
        )  # fmt: skip

    def legend(self, targets: Iterable[str], *, invalid: bool = False, extra: Sequence[Line2D] = ()) -> None:
        """Above the panels: an entry per target, one for invalid cells where there are any, then `extra` lines."""
        looks = [self.looks[target] for target in targets]
        handles = [
            Line2D([], [], color=look.colour, marker=look.marker, markersize=5.5, label=look.target) for look in looks
        ]
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
        for look, handle, text in zip(looks, drawn.legend_handles, drawn.get_texts(), strict=False):
            if handle is not None:
                handle.set_gid(self._owned(f"legend-{look.slug}", look.target))
            text.set_gid(self._owned(f"legend-{look.slug}--2", look.target))

    def save(self, folder: Path, name: str, section: Section, title: str, caption: str, alt: str) -> Figure:
        """Writes NAME.svg and NAME.png into the folder; the title is in the PNG only, as a page has its own."""
        if self._simulated:
            for axes in self.axes:
                if axes.get_visible():
                    _stamp(axes)
        for axis in (axis for axes in self._canvas.axes for axis in (axes.xaxis, axes.yaxis)):
            if not axis.get_label_text():
                axis.set_label_coords(0, 0)  # its place is not looked for: a tenth of a figure of many panels
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        drawn = io.StringIO()
        self._canvas.savefig(drawn, format="svg", transparent=True, metadata=_NO_METADATA)
        # Coordinates with two decimals, a hundredth of a point.
        text = _COORDINATES.sub(lambda found: _DIGITS.sub(r"\1", found[0]), drawn.getvalue())
        Folder(folder).write(svg.name, text.replace("'DejaVu Sans', sans-serif", "system-ui, sans-serif").encode())
        self._canvas.text(
            0.25 / self._width, 1 + 0.08 / self._height, self._stamped(title),
            fontsize=11, weight="bold", color=STAMP if self._simulated else TEXT, va="bottom",
        )  # fmt: skip
        page = Bbox.from_bounds(0, 0, self._width, self._height + _TITLE)
        with Folder(folder).replacing(png.name) as file:
            self._canvas.savefig(
                file, format="png", dpi=PNG_DPI, facecolor="white", bbox_inches=page, pil_kwargs={"compress_level": 3}
            )
        stamp = "SIMULATED. " if self._simulated else ""
        return Figure(
            name=name, section=section, title=title, caption=stamp + caption, alt=stamp + alt, svg=svg, png=png,
            tips=self.tips, targets=self.targets, frames=self._frames(), reads=self.reads, wide=self._width > _HALF,
        )  # fmt: skip

    def _frames(self) -> dict[str, Frame]:
        """The panels that are drawn, by the ids that matplotlib gives them."""
        width, height = (72 * inches for inches in (self._width, self._height))
        drawn = [axes for axes in self._canvas.axes if axes.get_visible()]
        return {f"axes_{place}": _frame(axes, width, height) for place, axes in enumerate(drawn, 1)}

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
        self.tips[gid] = self._stamped(tip)
        return self._owned(gid, target)

    def _stamped(self, words: str) -> str:
        return f"SIMULATED · {words}" if self._simulated else words


def _frame(axes: Axes, width: float, height: float) -> Frame:
    """In a figure of this size, in points."""
    box, data = axes.get_position(), axes.dataLim
    edges = width * box.x0, height * (1 - box.y1), width * box.x1, height * (1 - box.y0)
    return Frame(
        (round(edges[0], 2), round(edges[1], 2), round(edges[2], 2), round(edges[3], 2)),
        _scale(axes.get_xscale(), axes.get_xlim(), data.x0, axes.xaxis.get_major_formatter()),
        _scale(axes.get_yscale(), axes.get_ylim(), data.y0, axes.yaxis.get_major_formatter()),
    )


def _scale(kind: str, ends: tuple[float, float], least: float, formatter: object) -> Scale:
    plain = kind == "linear" and not isinstance(formatter, (_Percent, FixedFormatter))
    return Scale(kind, float(ends[0]), float(ends[1]), turns=kind == "log" or (plain and min(*ends, least) > 0))


def _stamp(axes: Axes) -> None:
    box = axes.get_window_extent()
    size = min(30.0, 0.075 * box.width, 0.25 * box.height)
    axes.text(
        0.5, 0.5, "SIMULATED", transform=axes.transAxes, ha="center", va="center", rotation=20, fontsize=size,
        color=STAMP, alpha=0.24, weight="bold", zorder=6,
    )  # fmt: skip


def place(target: str, concurrency: int, batch: float, *, verified: bool = True) -> str:
    """ "awq · B = 16: running 15.9," or, where the server did not tell its batch, "in flight 16 (batch not
    verified),"."""
    what = f"running {number(batch)}" if verified else f"in flight {number(batch)} ({UNVERIFIED})"
    return f"{target} · B = {concurrency}: {what},"


def tip_of(estimate: Estimate, *, unit: str = "", scale: float = 1, floor: float | None = None) -> str:
    """The value times `scale` with its unit and interval, "40.9% (38.6 to 43.2)"; `floor` as `interval` takes it."""
    low, high = (None if end is None else scale * end for end in (estimate.lo, estimate.hi))
    ends = interval(low, high, floor=floor)
    if ends == NOT_KNOWN:
        ends = "interval not known: the repeats differ too much"
    return f"{number(scale * estimate.value)}{unit}{f' ({ends})' if ends else ''}"


def questions(run: Run) -> str:
    """The number of questions that accuracies rest on, "n = 20 to 300 questions"; empty without any."""
    counts = run.summary["questions"].dropna()
    if counts.empty:
        return ""
    return f"n = {' to '.join(dict.fromkeys(f'{int(count):,}' for count in (counts.min(), counts.max())))} questions"


def batch_title(run: Run) -> str:
    """What the axis of the batch is: measured on the servers, or requests in flight where a server did not tell."""
    if not run.unverified:
        return "running batch, measured on the server"
    if set(run.unverified) == set(run.summary["target"]):
        return f"requests in flight ({UNVERIFIED})"
    return f"running batch; of {', '.join(run.unverified)} requests in flight ({UNVERIFIED})"


def over_batch(run: Run) -> str:
    """The same in a sentence, behind "over"."""
    return "the measured running batch" if not run.unverified else f"the {batch_title(run)}"


def batch_axis(axes: Axes, run: Run | None = None) -> None:
    """x: the batch on a logarithmic scale with ticks at powers of 2; `run`: with its title."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if run is not None:
        axes.set_xlabel(batch_title(run))


def log_axis(axes: Axes, which: str = "y", *, most: int = 8) -> None:
    """A logarithmic axis with plain figures: at 1, 2 and 5 of each decade if those are at most `most`, else at 1.

    Linear where nothing drawn is above 0.
    """
    top = axes.dataLim.y1 if which == "y" else axes.dataLim.x1
    if math.isfinite(top) and top <= 0:
        return
    scale, axis = (axes.set_yscale, axes.yaxis) if which == "y" else (axes.set_xscale, axes.xaxis)
    scale("log")
    low, high = axes.get_ylim() if which == "y" else axes.get_xlim()
    decades = math.log10(high / low)
    if decades < 0.8:
        axis.set_major_locator(MaxNLocator(min(most, 5), steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if 3 * decades <= most else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


class _Percent(FuncFormatter):
    """Shares as hundredths of a unit."""


def percent_axis(axes: Axes, which: str = "y", *, unit: str = "%") -> None:
    """Shares shown as percent, or in another `unit` of hundredths."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(_Percent(lambda value, _: f"{100 * value:g}{unit}".replace("-", MINUS)))


def border(axes: Axes, value: float, *, vertical: bool = False, dashed: bool = False) -> None:
    """A line across the panel where a verdict changes."""
    draw = axes.axvline if vertical else axes.axhline
    draw(value, color=TEXT if not dashed else GRID, linewidth=0.9, linestyle="--" if dashed else "-", zorder=1)


def plain_line(label: str, *, dashed: bool = False, colour: str = TEXT, width: float = 1.4) -> Line2D:
    """A legend entry that belongs to no target."""
    return Line2D([], [], color=colour, linestyle="--" if dashed else "-", linewidth=width, label=label)
