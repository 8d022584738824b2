"""Estimates with intervals side by side: forests, a row per target and B, and accuracy by the steps of a question."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from matplotlib.axes import Axes

from loadgen.analysis.estimate import Estimate
from loadgen.analysis.indices.study import TargetIndices
from loadgen.analysis.run import Run
from loadgen.analysis.trust.trends import DepthBucket
from loadgen.reports.figures.curves import rests_on, summary_estimates
from loadgen.reports.figures.sheet import (
    Figure,
    Look,
    Section,
    Sheet,
    border,
    log_axis,
    percent_axis,
    questions,
    tip_of,
)

Key = tuple[str, float]
"""Target and concurrency, or rate."""
_ROW_IN = 0.2
_LEAST_IN = 1.2
_MOST_COLUMNS = 4


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """Estimates by target and concurrency."""

    label: str
    values: Mapping[Key, Estimate]
    log: bool = False
    borders: tuple[float, ...] = ()
    floor: float | None = 0.0
    """As `interval` takes it; None: a share, whose interval is not over repeats."""
    percent: bool = False
    unit: str = "%"
    """Of shares in percent."""
    n: Mapping[Key, str] = {}
    """As `rests_on`."""


def draw_by_precision(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """Throughput, energy, accuracy and COR by precision; None where nothing was measured."""
    panels = [
        _measured(run, "tokens/s", "tokens_per_s", log=True),
        _measured(run, "J/query", "energy_per_query_j", log=True),
        _measured(run, "accuracy", "accuracy", percent=True, floor=None),
        Panel(
            label="COR", values=_indices(run, lambda entry: entry.cor_tps), borders=(0.0, 1.0), floor=-1.0,
            n=rests_on(run, "tokens_per_s", paired=True),
        ),
    ]  # fmt: skip
    figures = "Figures 2 (A) and " + ("4 (a–c)" if run.manifest.dataset.name == "mathqa" else "3")
    of = f", {questions(run)}" if questions(run) else ""
    caption = (
        f"By precision, for each asked B; bars are 95% intervals (accuracy: over items{of}, else over repeats). COR "
        f"has its lines at 0 and 1. Corresponds to {figures} of the paper. Numbers: summary.csv; COR: analysis.json, "
        "indices."
    )
    title = "Speed, energy, accuracy and COR by precision"
    return draw_forest(looks, folder, panels, "by-precision", title, caption, simulated=run.manifest.simulated)


def _measured(run: Run, label: str, column: str, **shown: Any) -> Panel:
    values: dict[Key, Estimate] = {(target, b): e for (target, b), e in summary_estimates(run, column).items()}
    return Panel(label=label, values=values, n=rests_on(run, column), **shown)


def draw_pillars(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """T_SI, E_SI, S_SI and SI of each target at each B; None where none is known."""
    panels = [
        Panel(
            label="T_SI (accuracy)", values=_indices(run, lambda entry: entry.t_si), borders=(1.0,), floor=None,
            n={(t.target, t.concurrency): f", n = {t.items} questions" for t in run.analysis.trust if t.items},
        ),
        Panel(
            label="E_SI (speed, memory)", values=_indices(run, lambda entry: entry.e_si.value), borders=(1.0,),
            n=rests_on(run, "tokens_per_s", paired=True),
        ),
        Panel(
            label="S_SI (energy)", values=_indices(run, lambda entry: entry.s_si), borders=(1.0,),
            n=rests_on(run, "energy_per_query_j", paired=True),
        ),
        Panel(
            label="SI", values=_indices(run, lambda entry: entry.si), borders=(1.0,),
            n=rests_on(run, "si", paired=True),
        ),
    ]  # fmt: skip
    also = " and 4 (d–f)" if run.manifest.dataset.name == "mathqa" else ""
    caption = (
        "The three pillars and SI against the reference (1), for each asked B; bars are 95% intervals; S_SI is clamped "
        f"at 1. Corresponds to Figure 2 (B){also} of the paper. Numbers: analysis.json, indices."
    )
    title = "Trust, efficiency, sustainability and SI"
    return draw_forest(looks, folder, panels, "pillars", title, caption, simulated=run.manifest.simulated)


def draw_forest(
    looks: Mapping[str, Look], folder: Path, panels: Sequence[Panel], name: str, title: str, caption: str, *,
    simulated: bool, section: Section = "paper", levels: Mapping[float, str] | None = None,
) -> Figure | None:  # fmt: skip
    """A panel per metric, up to four side by side (of more, three), with a row per target and B; `levels`: what each B
    is called. None where no panel has a value."""
    panels = [panel for panel in panels if panel.values]
    if not panels:
        return None
    present = set().union(*(panel.values for panel in panels))
    batches = sorted({b for _, b in present})
    called = levels or {b: f"B = {b:g}" for b in batches}
    places: dict[Key, float] = {}
    for band, b in enumerate(batches):  # from top to bottom, with a gap between batches
        for target in looks:
            if (target, b) in present:
                places[target, b] = len(places) + 0.7 * band
    height = max(_LEAST_IN, _ROW_IN * (max(places.values()) + 1.2))
    columns = len(panels) if len(panels) <= _MOST_COLUMNS else _MOST_COLUMNS - 1
    sheet = Sheet(
        looks, simulated=simulated, rows=math.ceil(len(panels) / columns), columns=columns, panel=(1.75, height),
        gap=(0.22, 0.62), left=max(0.75, 0.2 + 0.085 * max(map(len, called.values()))), sharey=True,
    )  # fmt: skip
    for axes, panel in zip(sheet.axes, panels, strict=False):
        _forest(sheet, axes, panel, places, called)
    for axes in sheet.axes[len(panels) :]:
        axes.set_visible(False)
    of_batch = {b: [y for (_, at), y in places.items() if at == b] for b in batches}
    sheet.axes[0].set_yticks([sum(ys) / len(ys) for ys in of_batch.values()], [called[b] for b in batches])
    sheet.axes[0].set_ylim(max(places.values()) + 0.8, -0.8)
    targets = [target for target in looks if any(target == of for of, _ in places)]
    sheet.legend(targets)
    shown = ", ".join(panel.label for panel in panels)
    alt = f"{shown} for {', '.join(targets)} at {', '.join(called[b] for b in batches)}"
    return sheet.save(folder, name, section, title, caption, alt)


def _forest(sheet: Sheet, axes: Axes, panel: Panel, places: Mapping[Key, float], called: Mapping[float, str]) -> None:
    for value in panel.borders:
        border(axes, value, vertical=True, dashed=value == panel.borders[-1] and len(panel.borders) > 1)
    for (target, b), y in places.items():
        if (estimate := panel.values.get((target, b))) is not None:
            scale, unit = (100, panel.unit) if panel.percent else (1, "")
            tip = f"{target} · {called[b]}: {panel.label} {tip_of(estimate, unit=unit, scale=scale, floor=panel.floor)}"
            sheet.estimate(axes, target, y, estimate, tip + panel.n.get((target, b), ""), horizontal=True)
    if panel.log:
        log_axis(axes, "x", most=4)
    if panel.percent:
        percent_axis(axes, "x", unit=panel.unit if panel.unit == "%" else "")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(panel.label)


def _indices(run: Run, figure: Callable[[TargetIndices], Estimate | None]) -> dict[Key, Estimate]:
    found = {(entry.target, entry.concurrency): figure(entry) for entry in run.analysis.indices}
    return {key: estimate for key, estimate in found.items() if estimate is not None}


def draw_depth(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """Accuracy, gap and relative loss by steps; None where the items' steps are not known."""
    tests = {t.target: t.curve.buckets for t in run.analysis.depth if t.measure == "steps"}
    tests = {target: buckets for target, buckets in tests.items() if buckets}
    if not tests:
        return None
    reference = run.analysis.reference
    steps = sorted({bucket.steps for buckets in tests.values() for bucket in buckets})
    longest = max(tests.values(), key=len)
    sheet = Sheet(looks, simulated=run.manifest.simulated, columns=3, panel=(2.3, 2.4), gap=(0.62, 0.0))
    accuracies = {reference: _values(longest, "reference_accuracy")}
    accuracies |= {target: _values(buckets, "accuracy") for target, buckets in tests.items()}
    _by_steps(sheet, sheet.axes[0], "accuracy", accuracies, steps)
    for axes, name, unit in zip(sheet.axes[1:], ("difference", "relative_loss"), (" pp", "%"), strict=True):
        border(axes, 0.0)
        values = {target: _values(buckets, name) for target, buckets in tests.items()}
        _by_steps(sheet, axes, name.replace("_", " "), values, steps, unit)
    sheet.axes[1].set_xlabel("reasoning steps of the question")
    sheet.legend(accuracies)
    caption = (
        f"Accuracy by reasoning steps, its difference from {reference} on the same items, and the loss relative to "
        f"{reference}'s accuracy; bars are 95% intervals over items. Corresponds to Figure 7 of the paper. "
        "Numbers: analysis.json, depth."
    )
    return sheet.save(
        folder, "depth", "paper", "Accuracy by the number of reasoning steps", caption,
        f"Accuracy, gap and relative loss of {', '.join(tests)} for questions of {', '.join(steps)} steps",
    )  # fmt: skip


Value = tuple[str, int, Estimate]
"""Steps, items and estimate."""


def _values(buckets: Sequence[DepthBucket], name: str) -> list[Value]:
    found = [(bucket, *(getattr(bucket, name + end) for end in ("", "_lo", "_hi"))) for bucket in buckets]
    return [(b.steps, b.items, Estimate(value=value, lo=lo, hi=hi)) for b, value, lo, hi in found if value is not None]


def _by_steps(
    sheet: Sheet, axes: Axes, label: str, values: Mapping[str, Sequence[Value]], steps: Sequence[str], unit: str = "%"
) -> None:
    """Targets side by side at each step bucket, never on top of each other."""
    width = 0.7 / max(len(values), 1)
    for at, (target, points) in enumerate(values.items()):
        shift = (at - (len(values) - 1) / 2) * width
        for name, items, estimate in points:
            tip = f"{target} · {name} steps, {items} items: {label} {tip_of(estimate, unit=unit, scale=100)}"
            sheet.estimate(axes, target, steps.index(name) + shift, estimate, tip)
    axes.set_xticks(range(len(steps)), list(steps))
    axes.set_xlim(-0.6, len(steps) - 0.4)
    axes.grid(False, axis="x")
    axes.set_title(label)
    percent_axis(axes, unit=unit)
