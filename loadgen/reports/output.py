"""The result of a command on stdout: a table for people, or JSON, CSV or Markdown for programs and pages."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from loadgen.analysis.analyse import ANALYSIS
from loadgen.analysis.compare.comparison import RunComparison
from loadgen.analysis.run import Run
from loadgen.analysis.tables import csv_text
from loadgen.folder import Folder
from loadgen.reports.compare import (
    BANNER,
    COR_MEANS,
    IMPORTED,
    RUNS,
    findings,
    notes,
    print_comparison,
    published_doubts,
    published_lines,
)
from loadgen.reports.rows import RATE, TOKEN_ENERGY, B, Table, table_of, token_energy_notes
from loadgen.reports.terminal import answers_of, console_of, head_of, meaning, print_end, result_table, warnings_of
from loadgen.secret import visible_json, visible_line
from loadgen.words import STAMP

WIDTH = 200
"""Characters of a line where stdout is not a terminal."""
UNBROKEN = 10_000


def write_run(run: Run, form: str) -> None:
    """Writes the result of a sweep or report: `table`, `csv` (summary.csv), `json` (its rows, and analysis.json) or
    `markdown` (the table with all its columns, and the answers)."""
    if form == "table":
        print_end(run, console_of(sys.stdout, width=WIDTH))
    elif form == "csv":
        sys.stdout.write(csv_text(run.every_summary))
    elif form == "json":
        rows = [{name: _plain(value) for name, value in row.items()} for row in run.every_summary.to_dict("records")]
        analysis = msgspec.Raw(Folder(run.path).read(ANALYSIS))
        _write_json({"run": str(run.path), "simulated": run.manifest.simulated, "summary": rows, "analysis": analysis})
    else:
        held = B if run.arrival is None else RATE
        table, _ = result_table(run.summary, simulated=run.manifest.simulated, concurrency=held, mark="**{}**")
        told = [line for answers in answers_of(run, UNBROKEN) for lines in answers for line in lines]
        _write_lines([head_of(run), "", *_markdown(table), "", meaning(run.summary, table, mark="Bold:"), ""])
        if entries := run.analysis.token_energy:
            told += token_energy_notes(entries)
            fitted = [entry for entry in entries if entry.prompt_token_energy_j is not None]
            _write_lines([*_markdown(table_of(TOKEN_ENERGY, fitted).filled), ""] if fitted else [])
        _write_lines([*_bullets(told), *_bullets(f"! {warning}" for warning in warnings_of(run))])
    if form != "table":
        print(f"Report: {run.path / 'report.html'}", file=sys.stderr)


def write_comparison(comparison: RunComparison, form: str) -> None:
    """Writes the result of a comparison: `table`, `csv` (compare.csv), `json` (compare.json) or `markdown`."""
    if form == "table":
        print_comparison(comparison, console_of(sys.stdout, width=WIDTH))
    elif form == "csv":
        sys.stdout.write(csv_text(comparison.table))
    elif form == "json":
        _write_json(comparison)
    else:
        _write_lines([f"{STAMP}: {BANNER}", ""] if comparison.simulated else [])
        _write_lines([*_markdown(table_of(RUNS, comparison.rows).filled), "", COR_MEANS, ""])
        if comparison.imports:
            _write_lines([*_markdown(table_of(IMPORTED, comparison.imports).filled), ""])
        claims = [f"{claim.source}: {claim.verdict}; {claim.evidence}" for claim in comparison.claims]
        published = [*published_lines(comparison.published), *published_doubts(comparison.published)]
        told = [*findings(comparison), *claims, *published, *(f"! {note}" for note in notes(comparison))]
        _write_lines(_bullets(told))


def _plain(value: Any) -> Any:
    """A cell of a data frame as JSON has it: null where it was not measured."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_json(content: Any) -> None:
    text = msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
    sys.stdout.write(f"{visible_json(text)}\n")


def _write_lines(lines: Iterable[str]) -> None:
    sys.stdout.writelines(f"{visible_line(line)}\n" for line in lines)


def _markdown(table: Table) -> list[str]:
    """A table as GitHub reads it: figures to the right."""
    rules = ["---:" if kind in ("figure", "interval") else "---" for kind in table.kinds]
    return [_row(table.headings), _row(rules), *map(_row, table.rows)]


def _row(texts: Sequence[str]) -> str:
    cells = (" ".join(text.split()).replace("|", "\\|") for text in texts)
    return f"| {' | '.join(cells)} |"


def _bullets(lines: Iterable[str]) -> list[str]:
    """A list, in which indented lines belong to the one before them."""
    return [f"{'  ' if line.startswith(' ') else ''}- {' '.join(line.split())}" for line in lines]
