"""Curves over the measured running batch, one file per figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

FIGURES = {
    "throughput": ("tokens_per_s", "output tokens per second"),
    "ttft": ("ttft_ms_p50", "time to first token, median, ms"),
    "tpot": ("tpot_ms_p50", "time per output token, median, ms"),
    "e2e": ("e2e_ms_p50", "request latency (E2E), median, ms"),
    "energy": ("energy_per_query_j", "energy per query, J"),
    "power": ("power_w_mean", "power, mean, W"),
    "accuracy": ("accuracy", "share of answers correct"),
}
_COLOURS = ("#0b62a4", "#d1495b", "#2e8b57", "#b8860b", "#6a4c93", "#008b8b", "#8b4513", "#555555")
_MARKERS = "osD^vPX*"


def draw_figures(run_dir: Path, summary: pd.DataFrame) -> dict[str, Path]:
    """Writes `figures/*.svg` for every column that was measured; returns name -> path."""
    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    drawn = {}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loadgen", "font.size": 10}):
        for name, (column, label) in FIGURES.items():
            if not (summary[column].notna() & summary["running_mean"].notna()).any():
                continue
            path = folder / f"{name}.svg"
            _curves(summary, column, label).savefig(path, format="svg", metadata={"Date": None})
            drawn[name] = path
    return drawn


def _curves(summary: pd.DataFrame, column: str, label: str) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for place, (target, rows) in enumerate(summary.groupby("target", sort=False)):
        rows = rows[rows[column].notna() & rows["running_mean"].notna()].sort_values("running_mean")
        colour, marker = _COLOURS[place % 8], _MARKERS[place % 8]
        axes.plot(
            rows["running_mean"], rows[column], label=str(target), markersize=5, linewidth=1.6,
            color=colour, marker=marker,
        )  # fmt: skip
        if f"{column}_lo" in rows:
            axes.fill_between(
                rows["running_mean"], rows[f"{column}_lo"], rows[f"{column}_hi"], color=colour, alpha=0.15
            )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("running batch, measured on the server")
    axes.set_ylabel(label)
    axes.xaxis.set_major_formatter("{x:g}")
    if column != "accuracy":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    if summary["simulated"].any():
        axes.text(
            0.5, 0.5, "SIMULATED", transform=axes.transAxes, ha="center", va="center",
            rotation=25, fontsize=34, color="#b00020", alpha=0.16, weight="bold",
        )  # fmt: skip
    return figure
