"""Over the running batch: every measured metric (in an open loop over its rates), SI and COR, with the crossovers that
are established; and each target against the reference: the paired advantage by every metric of a crossover, and equal
bits in different kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from loadgen.analysis.crossover.crossover import Crossover, placed
from loadgen.analysis.crossover.curve import METRICS
from loadgen.analysis.estimate import Estimate
from loadgen.analysis.run import Run, batch_of, held_in
from loadgen.analysis.runresult import PER_QUERY
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
from loadgen.words import batch, known, number

Estimates = Mapping[str, Sequence[tuple[float, int, Estimate]]]
"""Target -> (batch, B, estimate), by ascending batch."""


class Curve(msgspec.Struct, frozen=True):
    """A column of summary.csv as a figure; `unit` is for tips, `interval` says what is drawn around the means, and
    `paper` which figure of the paper (v2) it answers."""

    name: str
    column: str
    title: str
    unit: str
    interval: str
    paper: str = ""


PANEL = (3.9, 2.6)
"""Small enough that a phone shows a curve whole with text of 10 px."""
_REPEATS = "bands are 95% intervals over repeats"
_ITEMS = "bands are 95% intervals over items"
_BOTH = "bands are 95% intervals over repeats and items"
_DOTS = "small dots are the cells' own figures (cells.csv), which show the spread"
_OF_ENERGY = "the energy of Figure 2 (A)"
CURVES = (
    Curve("throughput", "tokens_per_s", "Output tokens per second", "tok/s", _REPEATS, "Figure 5 (A)"),
    Curve("energy", "energy_per_query_j", "Energy per query, J", "J/query", _REPEATS, _OF_ENERGY),
    Curve("energy-token", "energy_per_token_j", "Energy per output token, J", "J/token", _REPEATS),
    Curve("energy-correct", "energy_per_correct_j", "Energy per correct answer, J", "J/correct", _BOTH),
    Curve("accuracy", "accuracy", "Share of answers correct", "correct", _ITEMS, "Figure 5 (C)"),
    Curve("ttft", "ttft_ms_p50", "Time to first token, median, ms", "ms", _DOTS),
    Curve("tpot", "tpot_ms_p50", "Time per output token, median, ms", "ms", _DOTS),
    Curve("e2e", "e2e_ms_p50", "Request latency (E2E), median, ms", "ms", _DOTS),
    Curve("power", "power_w_mean", "Power, mean, W", "W", _DOTS),
)
_MARKS = "Dashed lines: established crossovers B* with their 95% intervals"


def draw_curves(run: Run, looks: Mapping[str, Look], folder: Path, only: str | None = None) -> Iterator[Figure]:
    """A figure for each column that was measured at a known batch, or at several rates of an open loop; `only`: the one
    of that name."""
    if run.arrival is not None and len(run.rates) < 2:
        return
    for curve in CURVES if only is None else [curve for curve in CURVES if curve.name == only]:
        rows = pd.concat([run.summary, run.cells]) if curve.column in run.cells else run.summary
        if (rows[curve.column].notna() & _x_of(run, rows).notna()).any():
            yield _draw(run, looks, folder, curve)


def _x_of(run: Run, rows: pd.DataFrame) -> pd.Series[float]:
    """The place of rows of `Run.summary` or `Run.cells` on the axis: their batch, in an open loop their rate."""
    if run.arrival is None:
        return batch_of(rows)
    return pd.Series([held_in(row) for row in rows.to_dict("records")], rows.index, dtype=float)


def _draw(run: Run, looks: Mapping[str, Look], folder: Path, curve: Curve) -> Figure:
    sheet = Sheet(looks, simulated=run.manifest.simulated, panel=PANEL)
    axes = sheet.axes[0]
    for target in looks:
        _line(sheet, axes, run, target, curve)
    invalid = [_draw_invalid(sheet, axes, run, target, curve.column) for target in looks]
    if run.arrival is None:
        batch_axis(axes, run)
    else:
        log_axis(axes, "x")
        axes.set_xlabel("requests per second, asked for")
    axes.set_ylabel(curve.title)
    (percent_axis if curve.column == "accuracy" else log_axis)(axes)
    marked = mark_crossovers(sheet, axes, run, curve.column)
    sheet.legend(looks, invalid=any(invalid))
    shared = ", which compare the items that both completed" if curve.column in PER_QUERY else ""
    over = "the rate of the arrivals" if run.arrival else over_batch(run)
    caption = [
        f"Over {over}, mean over the repeats in which it is valid; {curve.interval}.",
        f"{_MARKS} (analysis.json: crossovers){shared}." if marked else "",
        "Grey crosses: cells in which it is invalid, in no mean." if any(invalid) else "",
        f"Each point: {questions(run)}." if curve.column == "accuracy" else "",
        f"Corresponds to {curve.paper} of the paper." if curve.paper and run.arrival is None else "",
        f"Numbers: summary.csv, {curve.column}.",
    ]
    return sheet.save(
        folder, curve.name, "answer", curve.title, " ".join(filter(None, caption)),
        f"{curve.title} over the {'rate' if run.arrival else 'running batch'}, a curve for each of {', '.join(looks)}",
    )  # fmt: skip


def _line(sheet: Sheet, axes: Axes, run: Run, target: str, curve: Curve) -> None:
    column, low, high = curve.column, f"{curve.column}_lo", f"{curve.column}_hi"
    rows = run.summary[run.summary["target"] == target]
    rows = rows.assign(x=_x_of(run, rows)).dropna(subset=[column, "x"]).sort_values("x")
    if rows.empty:
        return
    sheet.line(axes, target, rows["x"], rows[column])
    bounded, graded = low in rows, column == "accuracy"
    repeats = {} if graded else rests_on(run, column)
    if bounded:
        sheet.band(axes, target, rows["x"], rows[low], rows[high])
    elif column in run.cells:
        cells = run.valid_cells(column)
        cells = cells[cells["target"] == target]
        sheet.line(
            axes, target, _x_of(run, cells), cells[column], linestyle="none", marker=".", markersize=4, alpha=0.6
        )
    shown_of = [column, low, high, "x", "concurrency", "arrival", "running_mean", "questions"]
    for row in rows.filter(shown_of).to_dict("records"):
        unit = f"% {curve.unit} of n = {row['questions']:.0f}" if graded else f" {curve.unit}"
        shown = estimate_of(row, column) if bounded else Estimate(value=row[column])
        tip = tip_of(shown, unit=unit, scale=100 if graded else 1, floor=None if graded else 0.0)
        where = f"{target} · {run.level(row['x'])}:"
        if run.arrival is None:
            where = place(target, row["concurrency"], row["x"], verified=known(row["running_mean"]))
        n = repeats.get((target, held_in(row)), "")
        sheet.point(axes, target, row["x"], row[column], f"{where} {tip}{n}")


def _draw_invalid(sheet: Sheet, axes: Axes, run: Run, target: str, column: str) -> bool:
    """Marks the target's cells that have the column and in which it is not valid; whether there are any."""
    if column not in run.cells:
        return False
    cells = run.invalid_cells(column)
    cells = cells[cells["target"] == target]
    cells = cells.assign(x=_x_of(run, cells))
    cells = cells[(cells["x"] > 0) & (cells[column] >= 0 if column == "accuracy" else cells[column] > 0)]
    for _, group in cells.groupby("concurrency" if run.arrival is None else "x"):
        where, repeats = run.level(held_in(group.to_dict("records")[0])), ", ".join(map(str, group["repeat"]))
        tip = f"{target} · {where}, repeat {repeats}: invalid, {'; '.join(dict.fromkeys(group['why']))}"
        sheet.invalid(axes, target, group["x"].tolist(), group[column].tolist(), tip)
    return not cells.empty


def mark_crossovers(sheet: Sheet, axes: Axes, run: Run, metric: str) -> bool:
    """Marks every established B* of the metric; whether there is any."""
    left, right = axes.get_xlim()
    stars = [
        (found, crossing)
        for found in run.analysis.crossovers
        if found.metric == metric and found.target in sheet.looks
        for crossing in found.crossings
    ]
    for row, (found, star) in enumerate(stars):
        ends = (left if star.lo is None else star.lo, right if star.hi is None else star.hi)
        b = star.b if placed(star) else None
        text = "B* not known" if b is None else f"B* {batch(b)}"
        sheet.mark(axes, found.target, b, ends, found.sentence, text=text, row=row)
    axes.set_xlim(left, right)
    return bool(stars)


def rests_on(run: Run, column: str, *, paired: bool = False) -> dict[tuple[str, float], str]:
    """By target and B (or rate), ", n = 3 repeats": those in which the figure is valid; `paired`: for the reference
    too. An accuracy has ", n = 40 questions"."""
    if column == "accuracy":
        rows = run.summary.dropna(subset=["questions"]).to_dict("records")
        return {(row["target"], held_in(row)): f", n = {row['questions']:.0f} questions" for row in rows}
    cells = run.valid_cells(column)
    cells = cells.dropna(subset=[column]) if column in cells else cells
    found: dict[tuple[str, float], set[int]] = {}
    for cell in cells.filter(["target", "concurrency", "arrival", "repeat"]).to_dict("records"):
        found.setdefault((cell["target"], held_in(cell)), set()).add(cell["repeat"])
    if paired:
        reference = run.manifest.config.reference
        found = {(target, held): n & found.get((reference, held), set()) for (target, held), n in found.items()}
    return {key: f", n = {len(n)} repeat{'s' if len(n) > 1 else ''}" for key, n in found.items() if n}


def batches_of(run: Run) -> dict[tuple[str, int], float]:
    """Where each target and B is on the axis, those that are known."""
    rows = run.summary.assign(batch=batch_of(run.summary)).dropna(subset=["batch"]).to_dict("records")
    return {(row["target"], row["concurrency"]): row["batch"] for row in rows}


def estimate_of(row: Mapping[Any, Any], column: str) -> Estimate:
    """A figure of a row of summary.csv with its interval, which may be nan."""
    return Estimate(value=row[column], lo=row[f"{column}_lo"], hi=row[f"{column}_hi"])


def summary_estimates(run: Run, column: str) -> dict[tuple[str, int], Estimate]:
    """A column of summary.csv by target and concurrency, where it was measured."""
    rows = run.summary[run.summary[column].notna()].to_dict("records")
    return {(row["target"], row["concurrency"]): estimate_of(row, column) for row in rows}


def draw_si(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """SI over the batch with its crossovers; None where no SI is known."""
    found = [(e.target, e.concurrency, e.si) for e in run.analysis.indices]
    caption = f"Sustainability index over {over_batch(run)}; 1 is the reference, bars are 95% intervals."
    return _draw_estimates(
        run, looks, folder, found, "SI", "si", "SI (reference = 1)", "Sustainability index (SI)", caption,
        "indices: si", {1.0: ""},
    )  # fmt: skip


def draw_cor(run: Run, looks: Mapping[str, Look], folder: Path) -> Figure | None:
    """COR over the running batch with the lines at 0 and 1; None where there is no pair to compare."""
    curves = run.analysis.cor_curves
    found = [(curve.target, p.concurrency, p.cor_tps) for curve in curves for p in curve.points]
    caption = (
        f"Slowdown in tokens/s against the reference at equal B, over {over_batch(run)}; bars are 95% "
        "intervals. Below 0 dissolved, 0 to 1 trap, above 1 casting-dominant. Corresponds to Figures 3 (B) and "
        "5 (B) of the paper."
    )
    return _draw_estimates(
        run, looks, folder, found, "COR", "cor", f"COR = TPS of {run.analysis.reference} / TPS − 1",
        "Slowdown against the reference (COR)", caption, "cor_curves",
        {0.0: "as fast as the reference", 1.0: "half as fast"},
    )  # fmt: skip


def _draw_estimates(
    run: Run, looks: Mapping[str, Look], folder: Path, found: Sequence[tuple[str, int, Estimate | None]],
    name: str, stem: str, label: str, title: str, caption: str, source: str, borders: Mapping[float, str],
) -> Figure | None:  # fmt: skip
    """A curve per target through `found` (target, B, estimate), with its crossovers and named lines across."""
    batch = batches_of(run)
    curves = {
        target: sorted(
            ((batch[t, b], b, e) for t, b, e in found if t == target and e is not None and (t, b) in batch),
            key=lambda point: point[0],
        )
        for target in looks
    }
    curves = {target: points for target, points in curves.items() if points}
    if not curves:
        return None
    sheet = Sheet(looks, simulated=run.manifest.simulated, panel=PANEL)
    axes = sheet.axes[0]
    for value, words in borders.items():
        border(axes, value, dashed=value > 0 and len(borders) > 1)
        axes.annotate(
            words, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
            ha="right", fontsize=8, gid=f"border-{value:g}",
        )  # fmt: skip
    n = rests_on(run, "si" if name == "SI" else "tokens_per_s", paired=True)
    draw_estimates(sheet, axes, run, curves, name, n, floor=-1.0 if name == "COR" else 0.0)
    batch_axis(axes, run)
    axes.set_ylabel(label)
    marked = mark_crossovers(sheet, axes, run, stem)
    sheet.legend(curves)
    return sheet.save(
        folder, stem, "answer", title, f"{caption} {_MARKS + '. ' if marked else ''}Numbers: analysis.json, {source}.",
        f"{name} over the running batch, a curve for each of {', '.join(curves)}, with lines at "
        f"{' and '.join(map(number, borders))}",
    )  # fmt: skip


def draw_estimates(
    sheet: Sheet, axes: Axes, run: Run, curves: Estimates, name: str, n: Mapping[tuple[str, float], str], *,
    floor: float | None = 0.0,
) -> None:  # fmt: skip
    """A curve per target with error bars where an estimate has an interval; shares in percent without a `floor`. `n`
    as `rests_on`."""
    for target, points in curves.items():
        sheet.line(axes, target, [x for x, _, _ in points], [e.value for _, _, e in points])
        for x, b, estimate in points:
            scale, unit = (1, "") if floor is not None else (100, "%")
            shown = tip_of(estimate, unit=unit, scale=scale, floor=floor)
            where = place(target, b, x, verified=target not in run.unverified)
            sheet.estimate(axes, target, x, estimate, f"{where} {name} {shown}{n.get((target, b), '')}")


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
    n = rests_on(run, metric, paired=True)
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
            tip += n.get((target, p.concurrency), "")
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
        bits = recipes[name].bits if name in recipes else None
        if bits is not None and target != run.analysis.reference:
            groups.setdefault(bits, []).append(str(target))
    return {
        bits: targets
        for bits, targets in groups.items()
        if len({recipes[precisions[target]].backend for target in targets}) > 1
    }


def draw_backends(run: Run, looks: Mapping[str, Look], folder: Path) -> list[Figure | None]:
    """A figure for each number of bits that several backends hold; None where nothing of them can be compared."""
    return [_draw_advantage(run, looks, folder, bits, targets) for bits, targets in sorted(equal_bits(run).items())]


def _draw_advantage(run: Run, looks: Mapping[str, Look], folder: Path, bits: int, targets: list[str]) -> Figure | None:
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
    columns = dict(zip(panels, ("accuracy", "tokens_per_s", "energy_per_query_j"), strict=True))
    panels = {label: shown for label, shown in panels.items() if any(shown.values())}
    if not panels:
        return None
    sheet = Sheet(looks, simulated=run.manifest.simulated, columns=len(panels), panel=(2.2, 2.2), gap=(0.6, 0.0))
    for axes, (label, shown) in zip(sheet.axes, panels.items(), strict=True):
        n = rests_on(run, columns[label], paired=label != "accuracy")
        draw_estimates(sheet, axes, run, shown, label, n, floor=None if label == "accuracy" else 0.0)
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
