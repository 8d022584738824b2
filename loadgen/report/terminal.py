"""The end of a sweep in a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadgen.analysis.run import Run
from loadgen.report.table import HEADINGS, table_rows

_LEFT = ("target", "cells")
MOST_WARNINGS = 12


def print_end(run: Run, console: Console) -> None:
    """Table, reasons of invalid cells and the report's path."""
    summary, manifest = run.summary, run.manifest
    reference = manifest["config"]["reference"]
    if manifest["simulated"]:
        console.print("[bold red]SIMULATED[/]: every figure below comes from a cost model, none from a GPU.")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in _LEFT else "right", no_wrap=True)
    rows = table_rows(summary, reference)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(*map(escape, row), end_section=following is not None and following[0] != row[0])
    console.print(table)
    cells = run.cells
    console.print(
        f"{int(cells['valid'].sum())} of {len(cells)} cells valid. Figures: mean over valid repeats; "
        f"× ref: tokens/s against {escape(reference)}; interval over repeats (accuracy: over items).",
        highlight=False,
    )
    warnings = run.analysis["warnings"]
    for warning in warnings[:MOST_WARNINGS]:
        console.print(f"[yellow]![/] {escape(warning)}", highlight=False)
    if len(warnings) > MOST_WARNINGS:
        console.print(f"[yellow]![/] and {len(warnings) - MOST_WARNINGS} more in {run.path / 'analysis.json'}")
    console.print(f"Report: {run.path / 'report.html'}", highlight=False, soft_wrap=True)
