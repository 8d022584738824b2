"""Forests: a row per target and B, a column of values with intervals per figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from matplotlib.axes import Axes

from loadgen.analysis.run import Run
from loadgen.reports.figures.sheet import Figure, Look, Sheet, border, log_axis, percent_axis
from loadgen.reports.words import asked, known, quantity

Key = tuple[str, int]
"""Target and concurrency."""
_ROW_IN = 0.2
_LEAST_IN = 1.2


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One panel: estimates (mappings with value, lo and hi) by target and concurrency."""

    label: str
    values: Mapping[Key, Mapping[str, Any]]
    log: bool = False
    percent: bool = False
    borders: tuple[float, ...] = ()
    floor: float | None = 0.0
    """As `too_wide` takes it; None: its interval is not over repeats."""


def draw_by_precision(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """Throughput, energy, accuracy and COR by precision; None where nothing was measured."""
    columns = [
        Column(label="tokens/s", values=_summary(run, "tokens_per_s"), log=True),
        Column(label="J/query", values=_summary(run, "energy_per_query_j"), log=True),
        Column(label="accuracy", values=_summary(run, "accuracy"), percent=True, floor=None),
        Column(label="COR", values=_indices(run, "cor_tps"), borders=(0.0, 1.0), floor=-1.0),
    ]
    figures = "Figures 2 (A) and " + ("4 (a–c)" if run.manifest.dataset.name == "mathqa" else "3")
    of = f", {asked(run)}" if asked(run) else ""
    caption = (
        f"By precision, for each asked B; bars are 95% intervals (accuracy: over items{of}, else over repeats). COR "
        f"has its lines at 0 and 1. Corresponds to {figures} of the paper. Numbers: summary.csv; COR: analysis.json, "
        "indices."
    )
    return _draw(run, looks, folder, columns, "by-precision", "Speed, energy, accuracy and COR by precision", caption)


def draw_pillars(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """T_SI, E_SI, S_SI and SI of each target at each B; None where none is known."""
    columns = [
        Column(label="T_SI (accuracy)", values=_indices(run, "t_si"), borders=(1.0,), floor=None),
        Column(label="E_SI (speed, memory)", values=_indices(run, "e_si", "value"), borders=(1.0,)),
        Column(label="S_SI (energy)", values=_indices(run, "s_si"), borders=(1.0,)),
        Column(label="SI", values=_indices(run, "si"), borders=(1.0,)),
    ]
    also = " and 4 (d–f)" if run.manifest.dataset.name == "mathqa" else ""
    caption = (
        "The three pillars and SI against the reference (1), for each asked B; bars are 95% intervals; S_SI is clamped "
        f"at 1. Corresponds to Figure 2 (B){also} of the paper. Numbers: analysis.json, indices."
    )
    return _draw(run, looks, folder, columns, "pillars", "Trust, efficiency, sustainability and SI", caption)


def _draw(
    run: Run, looks: Mapping[str, Look], folder: Path, columns: Sequence[Column], name: str, title: str, caption: str
) -> Figure | None:
    columns = [column for column in columns if column.values]
    if not columns:
        return None
    known_keys = set().union(*(column.values for column in columns))
    batches = sorted({b for _, b in known_keys})
    keys = [(target, b) for b in batches for target in looks if (target, b) in known_keys]
    places = _places(keys)
    height = max(_LEAST_IN, _ROW_IN * (max(places.values()) + 1.2))
    sheet = Sheet(
        looks, simulated=run.manifest.simulated, columns=len(columns), panel=(1.75, height), gap=(0.22, 0.0),
        left=0.75, sharey=True,
    )  # fmt: skip
    for axes, column in zip(sheet.axes, columns, strict=True):
        _column(sheet, axes, column, places)
    first = sheet.axes[0]
    of_batch = {b: [places[key] for key in keys if key[1] == b] for b in batches}
    first.set_yticks([sum(at) / len(at) for at in of_batch.values()], [f"B = {b}" for b in of_batch])
    first.set_ylim(max(places.values()) + 0.8, -0.8)
    targets = [target for target in looks if any(key[0] == target for key in keys)]
    sheet.legend(targets)
    shown = ", ".join(column.label for column in columns)
    return sheet.save(
        folder, name, "paper", title, caption,
        f"{shown} for {', '.join(targets)} at B = {', '.join(map(str, batches))}",
    )  # fmt: skip


def _places(keys: Sequence[Key]) -> dict[Key, float]:
    """Rows from top to bottom, with a gap between batches."""
    places: dict[Key, float] = {}
    at = -1.0
    for place, key in enumerate(keys):
        at += 1.0 if place == 0 or keys[place - 1][1] == key[1] else 1.7
        places[key] = at
    return places


def _column(sheet: Sheet, axes: Axes, column: Column, places: Mapping[Key, float]) -> None:
    for value in column.borders:
        border(axes, value, vertical=True, dashed=value == column.borders[-1] and len(column.borders) > 1)
    for (target, b), y in places.items():
        estimate = column.values.get((target, b))
        if estimate is None:
            continue
        if known(estimate["lo"]) and known(estimate["hi"]):
            axes.hlines(
                y, estimate["lo"], estimate["hi"], color=sheet.looks[target].colour, linewidth=1.8, alpha=0.75,
                gid=sheet.series(target),
            )  # fmt: skip
        said = quantity(estimate, percent=column.percent, floor=column.floor)
        tip = f"{target} · B = {b}: {column.label} {said}"
        sheet.point(axes, target, estimate["value"], y, tip)
    if column.log:
        log_axis(axes, "x", most=4)
    if column.percent:
        percent_axis(axes, "x")
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(column.label)


def _summary(run: Run, name: str) -> dict[Key, dict[str, float]]:
    rows = run.summary[run.summary[name].notna()].to_dict("records")
    return {
        (row["target"], row["concurrency"]): {"value": row[name], "lo": row[f"{name}_lo"], "hi": row[f"{name}_hi"]}
        for row in rows
    }


def _indices(run: Run, *path: str) -> dict[Key, Any]:
    found = {}
    for entry in run.analysis_json["indices"]:
        estimate = entry
        for name in path:
            estimate = estimate[name]
        if estimate is not None:
            found[entry["target"], entry["concurrency"]] = estimate
    return found
