"""Each target against the reference: the paired advantage by every metric of a crossover, and equal bits in different
kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.crossover.curve import METRICS
from loadgen.analysis.estimate import Estimate
from loadgen.analysis.run import Run
from loadgen.reports.figures.curves import Estimates, batches_of, draw_estimates, mark_crossovers, summary_estimates
from loadgen.reports.figures.sheet import (
    Figure,
    Look,
    Sheet,
    batch_axis,
    batch_title,
    border,
    log_axis,
    over_batch,
    percent_axis,
    place,
    questions,
    tip_of,
)
from loadgen.serving.recipe import load_recipes

_PANELS = {
    "tokens_per_s": "tokens/s",
    "energy_per_token_j": "energy per token",
    "energy_per_query_j": "energy per query",
    "energy_hli_per_query_j": "energy per query by the HLI bound",
    "energy_per_correct_j": "energy per correct answer",
    "si": "SI",
}


def draw_advantage(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """How many times better each target is than the reference, a panel per metric; None without any comparison."""
    found = {metric: [c for c in run.analysis.crossovers if c.metric == metric and c.points] for metric in METRICS}
    shown = {metric: crossovers for metric, crossovers in found.items() if crossovers}
    if not shown:
        return None
    columns = min(2, len(shown))
    sheet = Sheet(
        looks, simulated=run.manifest.simulated, rows=math.ceil(len(shown) / columns), columns=columns,
        panel=(2.9, 2.1), gap=(0.78, 0.5),
    )  # fmt: skip
    for axes, (metric, crossovers) in zip(sheet.axes, shown.items(), strict=False):
        _panel(sheet, axes, run, metric, crossovers)
    for axes in sheet.axes[len(shown) :]:
        axes.set_visible(False)
    for axes in sheet.axes[max(0, len(shown) - columns) : len(shown)]:
        axes.set_xlabel(batch_title(run))
    sheet.legend(dict.fromkeys(c.target for crossovers in shown.values() for c in crossovers))
    caption = (
        "How many times better than the reference, repeat by repeat at equal B: above 1 the target wins. Bands are "
        "95% intervals of each point alone; dashed lines are established crossovers B* with theirs. "
        "Numbers: analysis.json, crossovers: points (exp of log_advantage)."
    )
    return sheet.save(
        folder, "advantage", "answer", f"Advantage over {run.analysis.reference}", caption,
        f"Ratio to the reference over the running batch for {', '.join(_PANELS[metric] for metric in shown)}",
    )  # fmt: skip


def _panel(sheet: Sheet, axes: Axes, run: Run, metric: str, crossovers: Sequence[Crossover]) -> None:
    border(axes, 1.0)
    for crossover in crossovers:
        target, verified = crossover.target, crossover.batch_verified
        batches = [p.batch for p in crossover.points]
        sheet.line(axes, target, batches, [math.exp(p.log_advantage) for p in crossover.points])
        bounds = [(p.lo, p.hi) for p in crossover.points if p.lo is not None and p.hi is not None]
        if len(bounds) == len(batches):
            sheet.band(axes, target, batches, *np.exp(bounds).T)
        for p in crossover.points:
            low, high = (None if end is None else math.exp(end) for end in (p.lo, p.hi))
            times = Estimate(value=math.exp(p.log_advantage), lo=low, hi=high)
            where = place(target, p.concurrency, p.batch, verified=verified)
            tip = f"{where} {_PANELS[metric]} {tip_of(times, unit=' times better', floor=0.0)}, {p.sign}"
            sheet.point(axes, target, p.batch, times.value, tip)
    batch_axis(axes)
    log_axis(axes)
    axes.set_title(_PANELS[metric])
    axes.set_ylabel("times better")
    mark_crossovers(sheet, axes, run, metric)


def equal_bits(run: Run) -> dict[int, list[str]]:
    """Bits -> targets, without the reference; only where at least two different backends hold so many bits.

    A precision without a recipe has no known bits and is in no group.
    """
    recipes = load_recipes()
    precisions = run.summary.drop_duplicates("target").set_index("target")["precision"]
    groups: dict[int, list[str]] = {}
    for target, name in precisions.items():
        if name in recipes and target != run.analysis.reference:
            groups.setdefault(recipes[name].bits, []).append(str(target))
    return {
        bits: targets
        for bits, targets in groups.items()
        if len({recipes[precisions[target]].backend for target in targets}) > 1
    }


def draw_backends(run: Run, looks: Mapping[str, Look], folder: Path) -> list[Figure | None]:
    """A figure for each number of bits that several backends hold; None where nothing of them can be compared."""
    return [_draw(run, looks, folder, bits, targets) for bits, targets in sorted(equal_bits(run).items())]


def _draw(run: Run, looks: Mapping[str, Look], folder: Path, bits: int, targets: list[str]) -> Figure | None:
    batch, reference = batches_of(run), run.analysis.reference
    entries = {(e.target, e.concurrency): e for e in run.analysis.indices if e.target in targets}

    def curves(found: Mapping[tuple[str, int], Estimate | None]) -> Estimates:
        return {
            target: sorted(
                ((batch[key], key[1], e) for key, e in found.items() if key[0] == target and e and key in batch),
                key=lambda point: point[0],
            )
            for target in targets
        }

    panels = {
        "accuracy": curves(summary_estimates(run, "accuracy")),
        f"tokens/s over {reference}'s": curves({key: e.e_si.eta for key, e in entries.items()}),
        f"J/query over {reference}'s": curves({k: e.energy.ratio if e.energy else None for k, e in entries.items()}),
    }
    panels = {label: shown for label, shown in panels.items() if any(shown.values())}
    if not panels:
        return None
    sheet = Sheet(looks, simulated=run.manifest.simulated, columns=len(panels), panel=(2.2, 2.2), gap=(0.6, 0.0))
    for axes, (label, shown) in zip(sheet.axes, panels.items(), strict=True):
        draw_estimates(sheet, axes, run, shown, label, floor=None if label == "accuracy" else 0.0)
        batch_axis(axes)
        axes.set_title(label)
        if label == "accuracy":
            percent_axis(axes)
        else:
            border(axes, 1.0)
            log_axis(axes)
    sheet.axes[len(panels) // 2].set_xlabel(batch_title(run))
    sheet.legend(targets)
    of = f" ({questions(run)})" if "accuracy" in panels else ""
    caption = (
        f"Targets of {bits} bits with different kernels: accuracy{of}, and tokens/s and joules per query as a ratio to "
        f"{reference}, over {over_batch(run)}; bars are 95% intervals. Corresponds to Figure 6 of the "
        "paper. Numbers: summary.csv, accuracy; analysis.json, indices: e_si: eta and energy: ratio."
    )
    return sheet.save(
        folder, f"backends-{bits}-bit", "paper", f"Equal bits, different kernels: {bits} bits", caption,
        f"Accuracy, speed and energy over the running batch for {', '.join(targets)}",
    )  # fmt: skip
