"""The Pareto figures: what a target at each B gives a single user, against what it gives a GPU and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen.analysis.estimate import Estimate
from loadgen.analysis.pareto import ParetoPoint, ParetoRank
from loadgen.analysis.run import Run
from loadgen.reports.figures.curves import PANEL
from loadgen.reports.figures.sheet import GRID, Figure, Look, Sheet, log_axis, plain_line, tip_of
from loadgen.words import known, too_wide

PER_USER = "output tokens/s per user (1 / median TPOT)"
_HOW = (
    "Points are labelled with B and joined in its order; bars are 95% intervals over repeats, if known. The grey line "
    "is the frontier by the means: no other point is at least as good in both and better in one. Hollow points are "
    "worse: another point is better in both, and the intervals do not overlap. Other points that are not on the line "
    "are not decided: the intervals overlap, or a single repeat has none. Only valid cells."
)
_Mark = tuple[ParetoPoint, Estimate, ParetoRank]
"""A point, its place on the y axis, and its rank by both axes."""


class _Side(msgspec.Struct, frozen=True, kw_only=True):
    """A figure: what is on its y axis."""

    name: str
    title: str
    label: str
    unit: str
    better: str
    source: str
    marks: Sequence[_Mark]


def draw_pareto(run: Run, looks: Mapping[str, Look], folder: Path, only: str | None = None) -> Iterator[Figure]:
    """Throughput and energy over the speed of a user, those that were measured; `only`: the one of that name."""
    points = [point for point in run.analysis.pareto if point.target in looks]
    per = "GPU" if any(point.gpus for point in points) else "server"
    sides = (
        _Side(
            name="pareto", title=f"Tokens/s per user and per {per}", label=f"output tokens/s per {per}",
            unit=f" tok/s per {per}", better="up and to the right", source="tokens_per_s_per_gpu",
            marks=[(point, point.tokens_per_s_per_gpu, point.throughput) for point in points],
        ),
        _Side(
            name="pareto-energy", title="Tokens/s per user and J/token", label="J per output token",
            unit=" J/token", better="down and to the right", source="energy_per_token_j",
            marks=[(p, p.energy_per_token_j, p.energy) for p in points if p.energy_per_token_j and p.energy],
        ),
    )  # fmt: skip
    for side in sides:
        if len(side.marks) > 1 and only in (None, side.name):
            yield _draw(run, looks, folder, side)


def _draw(run: Run, looks: Mapping[str, Look], folder: Path, side: _Side) -> Figure:
    sheet = Sheet(looks, simulated=run.manifest.simulated, panel=PANEL)
    axes = sheet.axes[0]
    targets = list(dict.fromkeys(point.target for point, _, _ in side.marks))
    best = sorted(_place(mark) for mark in side.marks if mark[2].status == "frontier")
    axes.plot(*zip(*best, strict=True), color=GRID, linewidth=5, alpha=0.5, zorder=1, gid="frontier")
    for target in targets:
        ours = sorted((mark for mark in side.marks if mark[0].target == target), key=lambda mark: mark[0].concurrency)
        x, y = zip(*map(_place, ours), strict=True)
        sheet.line(axes, target, x, y, linewidth=1.1)
        for mark in ours:
            _mark(sheet, side.unit, mark)
    log_axis(axes, "x")
    log_axis(axes)
    axes.set_xlabel(PER_USER)
    axes.set_ylabel(side.label)
    sheet.legend(targets, extra=(plain_line("frontier", colour=GRID, width=4),))
    missing = [target for target in looks if target not in targets]
    caption = [
        f"Better is {side.better}. {_HOW}",
        f"Not drawn, as a figure is missing or not valid: {', '.join(missing)}." if missing else "",
        f"Numbers: analysis.json, pareto: tokens_per_s_per_user and {side.source}.",
    ]
    return sheet.save(
        folder, side.name, "pareto", side.title, " ".join(filter(None, caption)),
        f"{side.label} over {PER_USER} for {', '.join(targets)}, with the frontier",
    )  # fmt: skip


def _mark(sheet: Sheet, unit: str, mark: _Mark) -> None:
    """A point with its bars and its label."""
    (point, other, rank), (x, y), axes = mark, _place(mark), sheet.axes[0]
    user, target = point.tokens_per_s_per_user, point.target
    bars: dict[str, Any] = {"color": sheet.looks[target].colour, "linewidth": 1.2, "alpha": 0.7}
    if known(user.lo) and known(user.hi) and not too_wide(user.lo, user.hi):
        axes.hlines(y, user.lo, user.hi, gid=sheet.series(target), **bars)
    if known(other.lo) and known(other.hi) and not too_wide(other.lo, other.hi):
        axes.vlines(x, other.lo, other.hi, gid=sheet.series(target), **bars)
    shown = f"{tip_of(user, unit=' tok/s per user', floor=0.0)}, {tip_of(other, unit=unit, floor=0.0)}"
    said = {
        "frontier": "on the frontier",
        "undecided": f"not decided: {rank.better} is better by the means",
        "worse": f"worse than {rank.better}",
    }[rank.status]
    hollow = {"markerfacecolor": "none"} if rank.status == "worse" else {}
    sheet.point(axes, target, x, y, f"{target} · B = {point.concurrency}: {shown}; {said}", **hollow)
    sheet.label(axes, target, x, y, str(point.concurrency))


def _place(mark: _Mark) -> tuple[float, float]:
    return mark[0].tokens_per_s_per_user.value, mark[1].value
