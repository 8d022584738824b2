"""The end of a sweep in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from loadgen.analysis.run import Run
from loadgen.report.answer import answer_sentences
from loadgen.report.table import HEADINGS, NARROW, shown_columns, table_rows
from loadgen.report.trust import AGAINST, against_rows, depth_sentences

MOST_WARNINGS = 12
WIDEST = 1000


def print_end(run: Run, console: Console) -> None:
    """Table, reasons of invalid cells and the report's path."""
    summary, manifest = run.summary, run.manifest
    reference = manifest["config"]["reference"]
    if manifest["simulated"]:
        console.print("[bold red]SIMULATED[/]: every figure below comes from a cost model, none from a GPU.")
    rows = table_rows(summary, reference)
    columns = shown_columns(rows)
    table = _table(rows, columns)
    if Measurement.get(console, console.options.update(width=WIDEST), table).maximum > console.width:
        table = _table(rows, [column for column in columns if column in NARROW])
    console.print(table)
    cells = run.cells
    console.print(
        f"{int(cells['valid'].sum())} of {len(cells)} cells valid. Figures are means over valid repeats, latencies "
        f"medians; × ref: tokens/s against {escape(reference)}; intervals are over repeats (accuracy: over items).",
        highlight=False,
    )
    _print_trust(run, console)
    for target, sentences in answer_sentences(run.analysis).items():
        stamp = " (SIMULATED)" if manifest["simulated"] else ""
        console.print(f"\n[bold]{escape(target)} against {escape(reference)}[/]{stamp}", highlight=False)
        for sentence in sentences:
            console.print(f"  {escape(sentence)}", highlight=False)
    power = manifest.get("power") or {}
    if power.get("kind") == "none":
        console.print(f"Energy: not measured, {escape(power['reason'])}.", highlight=False)
    warnings = run.analysis["warnings"]
    for warning in warnings[:MOST_WARNINGS]:
        console.print(f"[yellow]![/] {escape(warning)}", highlight=False)
    if len(warnings) > MOST_WARNINGS:
        console.print(f"[yellow]![/] and {len(warnings) - MOST_WARNINGS} more in {run.path / 'analysis.json'}")
    console.print(f"Report: {run.path / 'report.html'}", highlight=False, soft_wrap=True)


def _print_trust(run: Run, console: Console) -> None:
    """Accuracy against the reference, question by question; nothing where nothing was graded."""
    tests = run.analysis["trust"]
    if not tests:
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="")
    table.title = f"Accuracy against {escape(tests[0]['reference'])}, question by question"
    for heading in AGAINST:
        table.add_column(heading, justify="left" if heading in ("target", "verdict") else "right")
    rows = against_rows(tests, simulated=run.manifest["simulated"])
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(*map(escape, row), end_section=following is not None and following[0] != row[0])
    console.print(table)
    stamp = "SIMULATED, depth" if run.manifest["simulated"] else "Depth"
    for sentence in depth_sentences(run.analysis["depth"]):
        console.print(f"{stamp}: {escape(sentence)}", highlight=False)


def _table(rows: Sequence[Sequence[str]], columns: Sequence[int]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: JustifyMethod = "left" if HEADINGS[column] == "target" else "right"
        table.add_column(HEADINGS[column], justify=justify, no_wrap=True)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        shown = [escape(row[column]) for column in columns]
        table.add_row(*shown, end_section=following is not None and following[0] != row[0])
    return table
