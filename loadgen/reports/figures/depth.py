"""Accuracy and loss by the number of reasoning steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from loadgen.analysis.run import Run
from loadgen.reports.figures.sheet import Figure, Look, Sheet, border, percent_axis
from loadgen.reports.words import interval, known

Value = tuple[str, int, float, float | None, float | None]
"""Steps, items, value, lo, hi."""
_UNITS = {"accuracy": "%", "difference": " pp", "relative loss": "%"}


def draw_depth(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """Accuracy, gap and relative loss by steps; None where the items' steps are not known."""
    tests = {t["target"]: t["curve"]["buckets"] for t in run.analysis_json["depth"] if t["measure"] == "steps"}
    tests = {target: buckets for target, buckets in tests.items() if buckets}
    if not tests:
        return None
    reference = run.analysis_json["reference"]
    steps = list(dict.fromkeys(bucket["steps"] for buckets in tests.values() for bucket in buckets))
    steps.sort(key=lambda name: int(name.rstrip("+").split("-")[0]))
    longest = max(tests.values(), key=len)
    sheet = Sheet(looks, simulated=run.manifest.simulated, columns=3, panel=(2.3, 2.4), gap=(0.62, 0.0))
    absolute, gap, loss = sheet.axes
    accuracies = {reference: _values(longest, "reference_accuracy")} | {
        target: _values(buckets, "accuracy") for target, buckets in tests.items()
    }
    _panel(sheet, absolute, "accuracy", accuracies, steps)
    border(gap, 0.0)
    _panel(sheet, gap, "difference", {t: _values(b, "difference") for t, b in tests.items()}, steps)
    border(loss, 0.0)
    _panel(sheet, loss, "relative loss", {t: _values(b, "relative_loss") for t, b in tests.items()}, steps)
    gap.set_xlabel("reasoning steps of the question")
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


def _values(buckets: Sequence[Mapping[str, Any]], name: str) -> list[Value]:
    return [
        (bucket["steps"], bucket["items"], bucket[name], bucket[f"{name}_lo"], bucket[f"{name}_hi"])
        for bucket in buckets
        if known(bucket[name])
    ]


def _panel(sheet: Sheet, axes: Axes, label: str, values: Mapping[str, Sequence[Value]], steps: Sequence[str]) -> None:
    """Targets side by side at each step bucket, never on top of each other."""
    width = 0.7 / max(len(values), 1)
    for at, (target, points) in enumerate(values.items()):
        shift = (at - (len(values) - 1) / 2) * width
        for name, items, value, low, high in points:
            x = steps.index(name) + shift
            if low is not None and high is not None:
                axes.vlines(
                    x, low, high, color=sheet.looks[target].colour, linewidth=1.5, alpha=0.75, gid=sheet.series(target)
                )
            ends = interval(100 * low, 100 * high) if low is not None and high is not None else ""
            tip = f"{target} · {name} steps, {items} items: {label} {100 * value:.3g}{_UNITS[label]}{ends}"
            sheet.point(axes, target, x, value, tip)
    axes.set_xticks(range(len(steps)), steps)
    axes.set_xlim(-0.6, len(steps) - 0.4)
    axes.grid(False, axis="x")
    axes.set_title(label)
    percent_axis(axes, unit=_UNITS[label])
