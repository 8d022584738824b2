"""Axes: scales and ticks that several figures share."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from loadgen.analysis.run import Run
from loadgen.report.figures.look import GRID, TEXT
from loadgen.serving.metrics import UNVERIFIED


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


def percent_axis(axes: Axes, which: str = "y", *, unit: str = "%") -> None:
    """Shares shown as percent, or in another `unit` of hundredths."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}{unit}".replace("-", "−")))


def border(axes: Axes, value: float, *, vertical: bool = False, dashed: bool = False) -> None:
    """A line across the panel where a verdict changes."""
    draw = axes.axvline if vertical else axes.axhline
    draw(value, color=TEXT if not dashed else GRID, linewidth=0.9, linestyle="--" if dashed else "-", zorder=1)


def plain_line(label: str, *, dashed: bool = False, colour: str = TEXT, width: float = 1.4) -> Line2D:
    """A legend entry that belongs to no target."""
    return Line2D([], [], color=colour, linestyle="--" if dashed else "-", linewidth=width, label=label)
