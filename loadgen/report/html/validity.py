"""What counts and what does not, and why."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from loadgen.analysis.analyse import checkpoint_notes, planned_cells
from loadgen.analysis.run import Run
from loadgen.report.html.markup import Html, element, items, join
from loadgen.report.html.tables import table
from loadgen.report.stamp import STAMP

Cell = Mapping[Hashable, Any]
_MOST_REASONS = 3


def validity(run: Run) -> Html:
    """How many of the planned cells count, the first reasons why the others do not, and what the checkpoints say."""
    invalid, planned = _invalid(run), planned_cells(run.manifest)
    measured = len(run.cells)
    doubted = bool(invalid) or measured < planned
    line = f"{measured - len(invalid)} of {planned} cells valid"
    line += f", {planned - measured} not measured" if measured < planned else ""
    reasons = [_line(run, cell) for cell in invalid[:_MOST_REASONS]]
    if len(invalid) > _MOST_REASONS:
        reasons.append(f"and {len(invalid) - _MOST_REASONS} more, listed below")
    reasons += checkpoint_notes(run.manifest)
    power = run.manifest.get("power") or {}
    if power.get("kind") == "none":
        reasons.append(f"energy: not measured, {power['reason']}")
    told = element("p", element("strong", line + "."), " Intervals are 95%.")
    return element("div", told, items(reasons), class_="validity warn" if doubted else "validity")


def doubts(run: Run) -> Html:
    """Invalid cells with their reasons, servers that failed, and every other warning."""
    invalid = _invalid(run)
    suffix = f" {STAMP}" if run.analysis["simulated"] else ""
    rows = [(cell["target"] + suffix, run.arrival or str(cell["concurrency"]), str(cell["repeat"]), cell["reasons"])
            for cell in invalid]  # fmt: skip
    listed = {*(_line(run, cell) for cell in invalid), *checkpoint_notes(run.manifest)}
    warnings = [warning for warning in run.analysis["warnings"] if warning not in listed]
    heading = element("h3", "Invalid cells") if rows else Html("")
    headings = ("target", "arrivals" if run.arrival else "B", "repeat", "why")
    return join((heading, table(headings, rows, label="Invalid cells"), items(warnings, class_="warnings")))


def _invalid(run: Run) -> list[Cell]:
    cells = run.cells
    return list(cells.loc[~cells["valid"], ["target", "concurrency", "repeat", "reasons"]].to_dict("records"))


def _line(run: Run, cell: Cell) -> str:
    """As the analysis words it in its warnings."""
    return f"{cell['target']}, {run.level(cell['concurrency'])}, repeat {cell['repeat']}: {cell['reasons']}"
