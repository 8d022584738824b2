"""A search for B* as it went: what each step measured, and what was known after it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from loadgen.analysis.run import Run
from loadgen.reports.figures.sheet import Figure, Look, Sheet, log_axis
from loadgen.search.story import Chapter
from loadgen.words import batch, number, span

_ROW_IN, _LEAST_IN = 0.19, 1.6
_COLUMNS = 3


def draw_search(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """A panel per target and metric; None where no search was told."""
    story = run.analysis.search
    if story is None or not story.chapters:
        return None
    panels = [(answer.target, answer.metric) for answer in story.answers if answer.target in looks]
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    height = max(_LEAST_IN, _ROW_IN * len(story.chapters))
    sheet = Sheet(
        looks, simulated=run.manifest.simulated, rows=rows, columns=columns, panel=(2.6, height), gap=(0.3, 0.75),
        sharey=True,
    )  # fmt: skip
    for axes, (target, metric) in zip(sheet.axes, panels, strict=False):
        for chapter in story.chapters:
            _draw_step(sheet, axes, chapter, target, metric, better_above=metric in ("tokens_per_s", "si"))
        axes.set_title(f"{target}: {metric}", fontsize=8.5)
        log_axis(axes, "x", most=5)
        axes.set_xlim(story.range[0] * 0.85, story.range[1] * 1.18)
        axes.set_ylim(len(story.chapters) + 0.6, 0.4)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.set_xlabel("B, measured running batch")
    for axes in sheet.axes[len(panels) :]:
        axes.set_visible(False)
    for axes in sheet.axes[::columns]:
        axes.set_ylabel("step")
    sheet.legend(dict.fromkeys(target for target, _ in panels))
    caption = (
        "The search, step by step from top to bottom. Filled: the target was better than "
        f"{run.analysis.reference} there; hollow: worse. Bar: the 95% interval of B* after the step, once there is "
        "one. Steps that only locate B* are in no interval. Numbers: analysis.json, search."
    )
    alt = f"Batches measured and intervals known after each of {len(story.chapters)} steps"
    return sheet.save(folder, "search", "search", "How B* was found", caption, alt)


def _draw_step(sheet: Sheet, axes: Axes, chapter: Chapter, target: str, metric: str, *, better_above: bool) -> None:
    for known in chapter.known:
        if (known.target, known.metric) == (target, metric) and known.lo is not None and known.hi is not None:
            tip = f"{target} · after step {chapter.repeat}: B* = {batch(known.b)}, 95% CI "
            tip += span(batch(known.lo), batch(known.hi))
            ends = [known.lo, known.hi]
            sheet.line(axes, target, ends, [chapter.repeat] * 2, tip, linewidth=5, alpha=0.35)
    for mark in chapter.marks:
        if (mark.target, mark.metric) == (target, metric) and mark.ratio is not None:
            better = (mark.ratio > 1) == better_above
            tip = f"{target} · step {chapter.repeat} ({chapter.phase}), B = {mark.concurrency}: {metric} "
            tip += f"{number(mark.ratio, 3)} times the reference's"
            hollow = {} if better else {"markerfacecolor": "none"}
            sheet.point(axes, target, mark.batch, chapter.repeat, tip, **hollow)
