"""The result of a command on stdout, as a table for people or as JSON, CSV or Markdown for programs and pages."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from loadgen.analysis.analyse import ANALYSIS
from loadgen.analysis.compare.comparison import RunComparison, csv_text
from loadgen.analysis.run import Run
from loadgen.folder import Folder
from loadgen.reports.compare import comparison_sentences, comparison_tables, print_comparison
from loadgen.reports.rows import RATE, B, Table
from loadgen.reports.terminal import console_of, end_answers, head_of, meaning, print_end, result_table
from loadgen.secret import visible, visible_json, visible_line

WIDTH = 200
"""Characters of a line where stdout is not a terminal."""


def write_run(run: Run, format: str) -> None:
    """Writes the result of a sweep or report: `table`, `csv` (summary.csv), `json` (its rows, and analysis.json) or
    `markdown` (the table with all its columns, and the answers)."""
    if format == "table":
        print_end(run, console_of(sys.stdout, width=WIDTH))
        return
    if format == "csv":
        _write(Folder(run.path).read("summary.csv").decode())
    elif format == "json":
        rows = [{name: _plain(value) for name, value in row.items()} for row in run.summary.to_dict("records")]
        analysis = msgspec.Raw(Folder(run.path).read(ANALYSIS))
        _write_json({"run": str(run.path), "simulated": run.manifest.simulated, "summary": rows, "analysis": analysis})
    else:
        held = B if run.arrival is None else RATE
        table, _ = result_table(run.summary, simulated=run.manifest.simulated, concurrency=held, mark="**{}**")
        lines = [head_of(run), "", *_markdown(table), "", meaning(run.summary, table), "", *_list(end_answers(run))]
        _write("\n".join(lines) + "\n")


def write_comparison(comparison: RunComparison, format: str) -> None:
    """Writes the result of a comparison: `table`, `csv` (compare.csv), `json` (compare.json) or `markdown`."""
    if format == "table":
        print_comparison(comparison, console_of(sys.stdout, width=WIDTH))
    elif format == "csv":
        _write(csv_text(comparison.table))
    elif format == "json":
        _write_json(comparison)
    else:
        tables = (line for table in comparison_tables(comparison) for line in ("", *_markdown(table.filled)))
        _write("\n".join([*tables, "", *_list(comparison_sentences(comparison))]).lstrip() + "\n")


def _markdown(table: Table) -> list[str]:
    """A table as GitHub reads it: figures to the right."""
    rules = ["---:" if kind in ("figure", "interval") else "---" for kind in table.kinds]
    return [_row(table.headings), _row(rules), *map(_row, table.rows)]


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(visible_line(text.strip().replace(chr(10), ' ')).replace('|', chr(92) + '|') for text in texts)} |"
