"""Precisions of equal bits and different kernels beside each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from loadgen.analysis.run import Run, batch_of
from loadgen.report.figures.axes import batch_axis, batch_title, border, log_axis, over_batch, percent_axis
from loadgen.report.figures.curves import draw_estimates
from loadgen.report.figures.figure import Figure
from loadgen.report.figures.look import Look
from loadgen.report.figures.sheet import Sheet
from loadgen.report.figures.words import asked, known
from loadgen.serving.recipe import load_recipes


def equal_bits(run: Run) -> dict[int, list[str]]:
    """Bits -> targets, the reference left out; only where at least two different backends hold so many bits.

    A precision without a recipe has no known bits and is in no group.
    """
    recipes = load_recipes()
    precisions = run.summary.drop_duplicates("target").set_index("target")["precision"]
    groups: dict[int, list[str]] = defaultdict(list)
    for target, name in precisions.items():
        if name in recipes and target != run.analysis["reference"]:
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
    entries = {(e["target"], e["concurrency"]): e for e in run.analysis["indices"] if e["target"] in targets}
    reference = run.analysis["reference"]
    panels = {
        "accuracy": {key: _accuracy(run, *key) for key in entries},
        f"tokens/s over {reference}'s": {key: e["e_si"]["eta"] for key, e in entries.items()},
        f"J/query over {reference}'s": {key: e["energy"] and e["energy"]["ratio"] for key, e in entries.items()},
    }
    panels = {label: values for label, values in panels.items() if any(values.values())}
    if not panels:
        return None
    sheet = Sheet(looks, simulated=run.manifest["simulated"], columns=len(panels), panel=(2.2, 2.2), gap=(0.6, 0.0))
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
