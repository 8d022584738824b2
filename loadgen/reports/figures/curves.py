"""Every measured metric over the running batch, with the crossovers that are established."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
from matplotlib.axes import Axes

from loadgen.analysis.answer import PER_QUERY
from loadgen.analysis.crossover.crossing import Crossing
from loadgen.analysis.crossover.crossover import placed
from loadgen.analysis.run import Run, batch_of
from loadgen.reports.figures.sheet import Figure, Look, Sheet, batch_axis, border, log_axis, over_batch, percent_axis
from loadgen.reports.words import asked, figure, interval, known, place, quantity


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """A column of summary.csv as a figure of its own."""

    name: str
    column: str
    title: str
    unit: str
    """Behind the figures in tips."""
    interval: str
    crossover: str | None = None
    """The metric of analysis.json's crossovers that is marked here."""
    paper: str = ""
    """Which figure of the paper (v2) it answers."""


_REPEATS = "bands are 95% intervals over repeats"
_ITEMS = "bands are 95% intervals over items"
_DOTS = "small dots are the cells' own figures (cells.csv), which show the spread"
CURVES = (
    Curve(name="throughput", column="tokens_per_s", title="Output tokens per second", unit="tok/s",
          interval=_REPEATS, crossover="tokens_per_s", paper="Figure 5 (A)"),
    Curve(name="energy", column="energy_per_query_j", title="Energy per query, J", unit="J/query",
          interval=_REPEATS, crossover="energy_per_query_j", paper="the energy of Figure 2 (A)"),
    Curve(name="energy-token", column="energy_per_token_j", title="Energy per output token, J", unit="J/token",
          interval=_REPEATS, crossover="energy_per_token_j"),
    Curve(name="energy-correct", column="energy_per_correct_j", title="Energy per correct answer, J", unit="J/correct",
          interval="bands are 95% intervals over repeats and items", crossover="energy_per_correct_j"),
    Curve(name="accuracy", column="accuracy", title="Share of answers correct", unit="correct", interval=_ITEMS,
          paper="Figure 5 (C)"),
    Curve(name="ttft", column="ttft_ms_p50", title="Time to first token, median, ms", unit="ms", interval=_DOTS),
    Curve(name="tpot", column="tpot_ms_p50", title="Time per output token, median, ms", unit="ms", interval=_DOTS),
    Curve(name="e2e", column="e2e_ms_p50", title="Request latency (E2E), median, ms", unit="ms", interval=_DOTS),
    Curve(name="power", column="power_w_mean", title="Power, mean, W", unit="W", interval=_DOTS),
)  # fmt: skip


def draw_curves(run: Run, looks: Mapping[str, Look], folder: Path) -> Iterator[Figure]:
    """A figure for each column that was measured at a known batch."""
    for curve in CURVES:
        rows = pd.concat([run.summary, run.cells]) if curve.column in run.cells else run.summary
        if (rows[curve.column].notna() & batch_of(rows).notna()).any():
            yield _draw(run, looks, folder, curve)


def _draw(run: Run, looks: Mapping[str, Look], folder: Path, curve: Curve) -> Figure:
    sheet = Sheet(looks, simulated=run.manifest.simulated)
    axes = sheet.axes[0]
    for target in looks:
        _line(sheet, axes, run, target, curve)
    bad = [draw_invalid(sheet, axes, run, target, curve.column) for target in looks]
    batch_axis(axes, run)
    axes.set_ylabel(curve.title)
    if curve.column == "accuracy":
        percent_axis(axes)
    else:
        log_axis(axes)
    marked = mark_crossovers(sheet, axes, run, curve.crossover)
    sheet.legend(looks, invalid=any(bad))
    said = [f"Over {over_batch(run)}, mean over the repeats in which it is valid; {curve.interval}."]
    if marked:
        shared = ", which compare the items that both completed" if curve.crossover in PER_QUERY else ""
        said.append(
            f"Dashed lines: established crossovers B* with their 95% intervals (analysis.json: crossovers){shared}."
        )
    if any(bad):
        said.append("Grey crosses: cells in which it is invalid, in no mean.")
    if curve.column == "accuracy":
        said.append(f"Each point: {asked(run)}.")
    if curve.paper:
        said.append(f"Corresponds to {curve.paper} of the paper.")
    said.append(f"Numbers: summary.csv, {curve.column}.")
    return sheet.save(
        folder, curve.name, "answer", curve.title, " ".join(said),
        f"{curve.title} over the running batch, a curve for each of {', '.join(looks)}",
    )  # fmt: skip


def _line(sheet: Sheet, axes: Axes, run: Run, target: str, curve: Curve) -> None:
    column, low, high = curve.column, f"{curve.column}_lo", f"{curve.column}_hi"
    rows = run.summary[run.summary["target"] == target]
    rows = rows.assign(batch=batch_of(rows))
    rows = rows[rows[column].notna() & rows["batch"].notna()].sort_values("batch")
    if rows.empty:
        return
    sheet.line(axes, target, rows["batch"], rows[column])
    bounded = low in rows
    if bounded:
        sheet.band(axes, target, rows["batch"], rows[low], rows[high])
    elif column in run.cells:
        cells = run.valid_cells(column)
        cells = cells[cells["target"] == target]
        sheet.line(axes, target, batch_of(cells), cells[column], linestyle="none", marker=".", markersize=4, alpha=0.6)
    for row in rows.to_dict("records"):
        scale = 100 if column == "accuracy" else 1
        floor = None if column == "accuracy" else 0.0
        ends = interval(scale * row[low], scale * row[high], floor=floor) if bounded else ""
        unit = f"% {curve.unit} of n = {row['questions']:.0f}" if column == "accuracy" else f" {curve.unit}"
        where = place(target, row["concurrency"], row["batch"], verified=known(row["running_mean"]))
        sheet.point(axes, target, row["batch"], row[column], f"{where} {figure(scale * row[column])}{unit}{ends}")


def draw_invalid(sheet: Sheet, axes: Axes, run: Run, target: str, column: str) -> bool:
    """Marks the target's cells that have the column and in which it is not valid; whether there are any."""
    if column not in run.cells:
        return False
    cells = run.invalid_cells(column)
    cells = cells[cells["target"] == target]
    cells = cells.assign(batch=batch_of(cells))
    cells = cells[(cells["batch"] > 0) & (cells[column] >= 0 if column == "accuracy" else cells[column] > 0)]
    for b, group in cells.groupby("concurrency"):
        why = "; ".join(dict.fromkeys(group["why"]))
        repeats = ", ".join(map(str, group["repeat"]))
        tip = f"{target} · B = {b}, repeat {repeats}: invalid, {why}"
        sheet.invalid(axes, target, group["batch"].tolist(), group[column].tolist(), tip)
    return not cells.empty


def mark_crossovers(sheet: Sheet, axes: Axes, run: Run, metric: str | None) -> bool:
    """Marks every established B* of the metric; whether there is any."""
    found = [c for c in run.analysis_json["crossovers"] if c["metric"] == metric and c["target"] in sheet.looks]
    left, right = axes.get_xlim()
    row = 0
    for crossover in found:
        for crossing in crossover["crossings"]:
            _mark(sheet, axes, crossover, crossing, (left, right), row)
            row += 1
    axes.set_xlim(left, right)
    return row > 0


def _mark(
    sheet: Sheet, axes: Axes, crossover: Mapping[str, Any], crossing: Mapping[str, Any], ends: tuple[float, float],
    row: int,
) -> None:  # fmt: skip
    low = crossing["lo"] if known(crossing["lo"]) else ends[0]
    high = crossing["hi"] if known(crossing["hi"]) else ends[1]
    b = crossing["b"] if placed(msgspec.convert(crossing, Crossing)) else None
    text = "B* not known" if b is None else f"B* {b:.3g}"
    sheet.mark(axes, crossover["target"], b, (low, high), crossover["sentence"], text=text, row=row)


def draw_si(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """SI over the batch with its crossovers; None where no SI is known."""
    entries = [entry for entry in run.analysis_json["indices"] if entry["si"] is not None]
    running = batch_of(run.summary.set_index(["target", "concurrency"]))
    entries = [e for e in entries if known(float(running.get((e["target"], e["concurrency"]), float("nan"))))]
    if not entries:
        return None
    shown = [target for target in looks if any(entry["target"] == target for entry in entries)]
    sheet = Sheet(looks, simulated=run.manifest.simulated)
    axes = sheet.axes[0]
    border(axes, 1.0)
    for target in shown:
        ours = [e for e in entries if e["target"] == target]
        points = [(float(running[target, e["concurrency"]]), e["concurrency"], e["si"]) for e in ours]
        draw_estimates(sheet, axes, target, points, "SI", verified=target not in run.unverified)
    batch_axis(axes, run)
    axes.set_ylabel("SI (reference = 1)")
    marked = mark_crossovers(sheet, axes, run, "si")
    sheet.legend(shown)
    caption = f"Sustainability index over {over_batch(run)}; 1 is the reference, bars are 95% intervals. "
    if marked:
        caption += "Dashed lines: established crossovers B* with their 95% intervals. "
    return sheet.save(
        folder, "si", "answer", "Sustainability index (SI)", caption + "Numbers: analysis.json, indices: si.",
        f"SI over the running batch, a curve for each of {', '.join(shown)}, with the reference's line at 1",
    )  # fmt: skip


def draw_estimates(
    sheet: Sheet, axes: Axes, target: str, points: list[tuple[float, int, Mapping[str, Any]]], name: str,
    *, percent: bool = False, verified: bool = True,
) -> None:  # fmt: skip
    """A curve through (x, B, estimate) with error bars where the estimate has an interval."""
    points = sorted(points, key=lambda point: point[0])
    look = sheet.looks[target]
    sheet.line(axes, target, [x for x, _, _ in points], [e["value"] for _, _, e in points])
    bounded = [(x, e) for x, _, e in points if known(e["lo"]) and known(e["hi"])]
    if bounded:
        axes.vlines(
            [x for x, _ in bounded], [e["lo"] for _, e in bounded], [e["hi"] for _, e in bounded],
            color=look.colour, linewidth=1.3, alpha=0.7, gid=sheet.series(target),
        )  # fmt: skip
    for x, b, estimate in points:
        floor = None if percent else -1.0 if name == "COR" else 0.0
        tip = f"{place(target, b, x, verified=verified)} {name} {quantity(estimate, percent=percent, floor=floor)}"
        sheet.point(axes, target, x, estimate["value"], tip)
