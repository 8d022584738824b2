"""Each target against the reference: COR, and the paired advantage by every metric of a crossover.

Precisions of equal bits and different kernels beside each other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from loadgen.analysis.crossover.curve import METRICS
from loadgen.analysis.run import Run, batch_of
from loadgen.reports.figures.curves import draw_estimates, mark_crossovers
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
)
from loadgen.reports.words import asked, figure, interval, known, place
from loadgen.serving.recipe import load_recipes

_PANELS = {
    "tokens_per_s": "tokens/s",
    "energy_per_token_j": "energy per token",
    "energy_per_query_j": "energy per query",
    "energy_hli_per_query_j": "energy per query by the HLI bound",
    "energy_per_correct_j": "energy per correct answer",
    "si": "SI",
}


def draw_cor(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """COR over the running batch with the lines at 0 and 1; None where there is no pair to compare."""
    batch = batch_of(run.summary.set_index(["target", "concurrency"]))
    curves = {
        curve["target"]: [
            (float(batch[curve["target"], p["concurrency"]]), p["concurrency"], p["cor_tps"])
            for p in curve["points"]
            if known(float(batch.get((curve["target"], p["concurrency"]), math.nan)))
        ]
        for curve in run.analysis_json["cor_curves"]
    }
    curves = {target: points for target, points in curves.items() if points}
    if not curves:
        return None
    sheet = Sheet(looks, simulated=run.manifest.simulated)
    axes = sheet.axes[0]
    for value, words in ((0.0, "as fast as the reference"), (1.0, "half as fast")):
        border(axes, value, dashed=value > 0)
        axes.annotate(
            words, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
            ha="right", fontsize=8,
        )  # fmt: skip
    for target, points in curves.items():
        draw_estimates(sheet, axes, target, points, "COR", verified=target not in run.unverified)
    batch_axis(axes, run)
    axes.set_ylabel(f"COR = TPS of {run.analysis_json['reference']} / TPS − 1")
    sheet.legend(curves)
    caption = (
        f"Slowdown in tokens/s against the reference at equal B, over {over_batch(run)}; bars are 95% "
        "intervals. Below 0 dissolved, 0 to 1 trap, above 1 casting-dominant. Corresponds to Figures 3 (B) and "
        "5 (B) of the paper. Numbers: analysis.json, cor_curves."
    )
    return sheet.save(
        folder, "cor", "answer", "Slowdown against the reference (COR)", caption,
        f"COR over the running batch, a curve for each of {', '.join(curves)}, with lines at 0 and 1",
    )  # fmt: skip


def draw_advantage(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """How many times better each target is than the reference, a panel per metric; None without any comparison."""
    comparisons = run.analysis_json["crossovers"]
    found = {metric: [c for c in comparisons if c["metric"] == metric and c["points"]] for metric in METRICS}
    shown = {metric: crossovers for metric, crossovers in found.items() if crossovers}
    if not shown:
        return None
    columns = min(2, len(shown))
    rows = math.ceil(len(shown) / columns)
    sheet = Sheet(
        looks, simulated=run.manifest.simulated, rows=rows, columns=columns, panel=(2.9, 2.1), gap=(0.78, 0.5)
    )
    for axes, (metric, crossovers) in zip(sheet.axes, shown.items(), strict=False):
        _panel(sheet, axes, run, metric, crossovers)
    for axes in sheet.axes[len(shown) :]:
        axes.set_visible(False)
    for axes in sheet.axes[max(0, len(shown) - columns) : len(shown)]:
        axes.set_xlabel(batch_title(run))
    compared = dict.fromkeys(c["target"] for crossovers in shown.values() for c in crossovers)
    sheet.legend(compared)
    caption = (
        "How many times better than the reference, repeat by repeat at equal B: above 1 the target wins. Bands are "
        "95% intervals of each point alone; dashed lines are established crossovers B* with theirs. "
        "Numbers: analysis.json, crossovers: points (exp of log_advantage)."
    )
    return sheet.save(
        folder, "advantage", "answer", f"Advantage over {run.analysis_json['reference']}", caption,
        f"Ratio to the reference over the running batch for {', '.join(_PANELS[metric] for metric in shown)}",
    )  # fmt: skip


def _panel(sheet: Sheet, axes: Axes, run: Run, metric: str, crossovers: Sequence[Mapping[str, Any]]) -> None:
    border(axes, 1.0)
    for crossover in crossovers:
        target, points = crossover["target"], crossover["points"]
        batches = [p["batch"] for p in points]
        sheet.line(axes, target, batches, [math.exp(p["log_advantage"]) for p in points])
        if all(known(p["lo"]) and known(p["hi"]) for p in points):
            low, high = ([math.exp(p[end]) for p in points] for end in ("lo", "hi"))
            sheet.band(axes, target, batches, low, high)
        for p in points:
            ends = [math.exp(p[end]) if known(p[end]) else None for end in ("lo", "hi")]
            times = figure(math.exp(p["log_advantage"]))
            where = place(target, p["concurrency"], p["batch"], verified=crossover.get("batch_verified", True))
            tip = f"{where} {_PANELS[metric]} {times} times better"
            tip += f"{interval(*ends, floor=0.0)}, {p['sign']}"
            sheet.point(axes, target, p["batch"], math.exp(p["log_advantage"]), tip, markersize=4.5)
    batch_axis(axes)
    log_axis(axes)
    axes.set_title(_PANELS[metric])
    axes.set_ylabel("times better")
    mark_crossovers(sheet, axes, run, metric)


def equal_bits(run: Run) -> dict[int, list[str]]:
    """Bits -> targets, the reference left out; only where at least two different backends hold so many bits.

    A precision without a recipe has no known bits and is in no group.
    """
    recipes = load_recipes()
    precisions = run.summary.drop_duplicates("target").set_index("target")["precision"]
    groups: dict[int, list[str]] = defaultdict(list)
    for target, name in precisions.items():
        if name in recipes and target != run.analysis_json["reference"]:
            groups[recipes[name].bits].append(str(target))
    return {
        bits: targets
        for bits, targets in groups.items()
        if len({recipes[precisions[target]].backend for target in targets}) > 1
    }


def draw_backends(run: Run, looks: Mapping[str, Look], folder: Path) -> list[Figure | None]:
    """A figure for each number of bits that several backends hold; None where nothing of them can be compared."""
    return [_draw(run, looks, folder, bits, targets) for bits, targets in sorted(equal_bits(run).items())]


def _draw(run: Run, looks: Mapping[str, Look], folder: Path, bits: int, targets: list[str]) -> Figure | None:
    running = batch_of(run.summary.set_index(["target", "concurrency"]))
    entries = {(e["target"], e["concurrency"]): e for e in run.analysis_json["indices"] if e["target"] in targets}
    reference = run.analysis_json["reference"]
    panels = {
        "accuracy": {key: _accuracy(run, *key) for key in entries},
        f"tokens/s over {reference}'s": {key: e["e_si"]["eta"] for key, e in entries.items()},
        f"J/query over {reference}'s": {key: e["energy"] and e["energy"]["ratio"] for key, e in entries.items()},
    }
    panels = {label: values for label, values in panels.items() if any(values.values())}
    if not panels:
        return None
    sheet = Sheet(looks, simulated=run.manifest.simulated, columns=len(panels), panel=(2.2, 2.2), gap=(0.6, 0.0))
    for axes, (label, values) in zip(sheet.axes, panels.items(), strict=True):
        for target in targets:
            points = [
                (float(running[key]), key[1], estimate)
                for key, estimate in values.items()
                if key[0] == target and estimate is not None and known(float(running[key]))
            ]
            verified = target not in run.unverified
            draw_estimates(sheet, axes, target, points, label, percent=label == "accuracy", verified=verified)
        batch_axis(axes)
        axes.set_title(label)
        if label == "accuracy":
            percent_axis(axes)
        else:
            border(axes, 1.0)
            log_axis(axes)
    sheet.axes[len(panels) // 2].set_xlabel(batch_title(run))
    sheet.legend(targets)
    of = f" ({asked(run)})" if "accuracy" in panels else ""
    caption = (
        f"Targets of {bits} bits with different kernels: accuracy{of}, and tokens/s and joules per query as a ratio to "
        f"{reference}, over {over_batch(run)}; bars are 95% intervals. Corresponds to Figure 6 of the "
        "paper. Numbers: summary.csv, accuracy; analysis.json, indices: e_si: eta and energy: ratio."
    )
    return sheet.save(
        folder, f"backends-{bits}-bit", "paper", f"Equal bits, different kernels: {bits} bits", caption,
        f"Accuracy, speed and energy over the running batch for {', '.join(targets)}",
    )  # fmt: skip


def _accuracy(run: Run, target: str, concurrency: int) -> dict[str, float] | None:
    rows = run.summary[(run.summary["target"] == target) & (run.summary["concurrency"] == concurrency)]
    row = rows.iloc[0]
    if not known(float(row["accuracy"])):
        return None
    return {"value": row["accuracy"], "lo": row["accuracy_lo"], "hi": row["accuracy_hi"]}
