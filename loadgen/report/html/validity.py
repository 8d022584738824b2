"""What counts and what does not, and why."""

from __future__ import annotations

from loadgen.analysis.analyse import checkpoint_notes, planned_cells
from loadgen.analysis.invalid import invalid_sentences
from loadgen.analysis.run import Run
from loadgen.report.html.markup import Html, element, items, join
from loadgen.report.html.tables import table
from loadgen.report.stamp import STAMP
from loadgen.report.validity import cells_valid

_MOST_REASONS = 3


def validity(run: Run) -> Html:
    """How many of the planned cells count, the first reasons why the others do not, and what the checkpoints say."""
    planned, measured = planned_cells(run.manifest), len(run.cells)
    invalid = invalid_sentences(run.invalid, run.arrival)
    line = cells_valid(run.cells, of=planned)
    line += f", {planned - measured} not measured" if measured < planned else ""
    reasons = invalid[:_MOST_REASONS]
    if len(invalid) > _MOST_REASONS:
        reasons.append(f"and {len(invalid) - _MOST_REASONS} more, listed below")
    reasons += checkpoint_notes(run.manifest)
    power = run.manifest.get("power") or {}
    if power.get("kind") == "none":
        reasons.append(f"energy: not measured, {power['reason']}")
    told = element("p", element("strong", line + "."), " Intervals are 95%.")
    return element("div", told, items(reasons), class_="validity" if run.complete else "validity warn")


def doubts(run: Run) -> Html:
    """What is invalid in which cell and why, servers that failed, and every other warning."""
    suffix = f" {STAMP}" if run.analysis["simulated"] else ""
    rows = [
        (one.target + suffix, run.arrival or str(one.concurrency), str(one.repeat), one.quantity, one.reasons)
        for one in run.invalid
    ]
    listed = {*invalid_sentences(run.invalid, run.arrival), *checkpoint_notes(run.manifest)}
    warnings = [warning for warning in run.analysis["warnings"] if warning not in listed]
    note = "Where the load is invalid, latency and energy are too: they belong to another load."
    heading = join((element("h3", "Invalid cells"), element("p", note, class_="small"))) if rows else Html("")
    headings = ("target", "arrivals" if run.arrival else "B", "repeat", "invalid", "why")
    return join((heading, table(headings, rows, label="Invalid cells"), items(warnings, class_="warnings")))
