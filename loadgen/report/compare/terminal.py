"""Several runs beside each other, in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from loadgen.analysis.compare.comparison import RunComparison
from loadgen.analysis.compare.published import Beside
from loadgen.report.compare.rows import (
    BANNER,
    COR_MEANS,
    IMPORTED,
    RUNS,
    TEXT,
    Rows,
    imported_rows,
    notes,
    published_rows,
    run_rows,
    told,
)
from loadgen.visible import visible_line

SPARED = (
    "N from", "N* by paper formula", "TTFT p99", "protocol", "T_SI", "hardware", "dataset", "headroom", "model",
    "running", "J/token", "95% CI", "right % (n)", "class",
)  # fmt: skip
"""Columns that a narrow terminal goes without, the first ones first."""
MOST_LINES = 12
WIDEST = 1000


def print_comparison(comparison: RunComparison, console: Console) -> None:
    """Tables and sentences; what does not fit goes into compare.html."""
    if comparison.simulated:
        _print(console, BANNER, "bold red")
    _print_table(console, RUNS, run_rows(comparison.rows))
    if any(row.cor is not None for row in comparison.rows):
        console.print(f"  {COR_MEANS}", highlight=False)
    _print_lines(console, "N*, the model size at which COR is zero", told(comparison))
    _print_lines(console, "", [f"{c.source}: {c.verdict}; {c.evidence}" for c in comparison.claims])
    _print_lines(console, "Published figures beside ours", _published_lines(comparison.published))
    _print_lines(console, "", _published_doubts(comparison.published))
    if comparison.imports:
        _print(console, "Imported from other tools, mean / p50 / p99, as they define them", "bold")
        _print_table(console, IMPORTED, imported_rows(comparison.imports))
        _print_lines(console, "", [f"{tool}: {how}" for tool, how in comparison.differences.items()])
    for note in notes(comparison)[:MOST_LINES]:
        _print(console, f"! {note}", "yellow")


def _print(console: Console, line: str, style: str | None = None) -> None:
    console.print(Text(visible_line(line)), style=style)


def _print_table(console: Console, headings: Sequence[str], rows: Rows) -> None:
    """Without what is empty everywhere, and without as many of `SPARED` as do not fit."""
    places = [place for place in range(len(headings)) if any(row[place] for row in rows)]
    for spared in ("", *SPARED):
        places = [place for place in places if headings[place] != spared]
        table = _table(headings, rows, places)
        if Measurement.get(console, console.options.update(width=WIDEST), table).maximum <= console.width:
            break
    console.print(table)


def _table(headings: Sequence[str], rows: Rows, places: Sequence[int]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place in places:
        table.add_column(
            headings[place], justify="left" if headings[place] in TEXT else "right", overflow="fold",
            no_wrap=headings[place] not in TEXT,
        )  # fmt: skip
    for row in rows:
        table.add_row(*(Text(visible_line(row[place])) for place in places))
    return table


def _print_lines(console: Console, title: str, lines: Sequence[str]) -> None:
    if title and lines:
        _print(console, title, "bold")
    for line in lines[:MOST_LINES]:
        _print(console, f"  {line}")
    if len(lines) > MOST_LINES:
        _print(console, f"  and {len(lines) - MOST_LINES} more (--out DIR, compare.html)")


def _published_lines(found: Sequence[Beside]) -> list[str]:
    """A line each, ratios to theirs in brackets; why they may differ is said once for all."""
    lines = []
    for run, target, figure, theirs, ours, source, _, contradicted in published_rows(found):
        mark = "†" if contradicted else ""
        lines.append(f"{run}, {target}, {figure}: {ours}; theirs{mark} {theirs}, {source}")
    return lines


def _published_doubts(found: Sequence[Beside]) -> list[str]:
    reasons = dict.fromkeys(reason for one in found for reason in one.differs)
    doubts = [f"they may differ because: {'; '.join(reasons)}"] if reasons else []
    if any(one.published.contradiction for one in found):
        doubts.append("† the source contradicts this figure itself: --out DIR writes how into compare.html")
    return doubts
