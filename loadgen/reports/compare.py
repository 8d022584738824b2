"""The rows and sentences of `loadgen compare`, the same for the terminal and for the page.

Several runs beside each other, in a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from loadgen.analysis.claims import Claim
from loadgen.analysis.compare.comparison import RunComparison, size_words
from loadgen.analysis.compare.imported import ImportedPoint
from loadgen.analysis.compare.nstar import Unmixed
from loadgen.analysis.compare.published import Beside, Ours
from loadgen.analysis.compare.row import CompareRow
from loadgen.load.openloop import CLOSED
from loadgen.reports.grid import FEW_QUESTIONS, interval, repeats_valid, right
from loadgen.reports.words import STAMP, stamped
from loadgen.secret import visible_line

Rows = list[tuple[str, ...]]

RUNS = (
    "run", "model", "N", "N from", "hardware", "dataset", "protocol", "target", "B", "running", "tok/s", "COR",
    "95% CI", "class", "N* by paper formula", "J/token", "J/query", "TTFT p99", "good /s", "good %", "right % (n)",
    "T_SI", "headroom", "valid",
)  # fmt: skip
PUBLISHED = (
    "run", "target", "figure", "theirs", "ours (× theirs)", "source", "may differ because", "contradicted",
)  # fmt: skip
IMPORTED = ("tool", "label", "model", "concurrency", "tok/s", "TTFT ms", "TPOT ms", "ITL ms", "E2E ms", "errors")
CLAIMED = ("precision", "claim", "where", "verdict", "evidence")
TEXT = {
    "run", "model", "N from", "hardware", "dataset", "protocol", "target", "class", "figure", "source", "tool", "label",
    "may differ because", "contradicted", "precision", "claim", "where", "verdict", "evidence",
}  # fmt: skip
COR_MEANS = "COR: tokens/s of the reference over the precision's, less 1; below 0 the precision is faster."
BANNER = f"{STAMP}: rows marked so come from a cost model, not from a GPU."


def run_rows(rows: Sequence[CompareRow]) -> Rows:
    """A row per run x target x concurrency, under `RUNS`; what is not known is empty."""
    return [
        (
            row.run,
            row.model or "",
            size_words(row.parameters) if row.parameters else "",
            row.parameters_source if row.parameters else "not known",
            f"{row.gpu} × {row.gpu_count}" if row.gpu else "not recorded",
            row.dataset,
            row.protocol + (f", {row.fixed_length} tokens" if row.fixed_length else ""),
            stamped(row.target, simulated=row.simulated),
            str(row.concurrency) if row.arrival == CLOSED else row.arrival,
            _figure(row.running_mean) or ("not verified" if row.valid else ""),
            _figure(row.tokens_per_s),
            "" if row.cor is None else f"{row.cor:.2f}",
            interval(row.cor_lo, row.cor_hi, 2, floor=-1.0, between=" to "),
            row.cor_class or "",
            size_words(row.n_star_paper) if row.n_star_paper else "",
            _figure(row.energy_per_token_j),
            _figure(row.energy_per_query_j),
            _figure(row.ttft_ms_p99),
            _figure(row.goodput_per_s),
            _percent(row.goodput_share),
            right(row.accuracy, row.questions) + _of_questions(row.questions),
            _figure(row.t_si),
            _percent(row.memory_headroom, "%"),
            repeats_valid(msgspec.structs.asdict(row)),
        )
        for row in rows
    ]


def published_rows(found: Sequence[Beside]) -> Rows:
    """A row per published figure x run x target, under `PUBLISHED`."""
    return [
        (
            one.run,
            stamped(one.target, simulated=one.simulated),
            f"{one.published.metric}, {one.published.model}, {one.published.precision}"
            + (" (ours: HLI bound)" if one.column == "energy_hli_per_query_j" else ""),
            f"{one.published.value:g} {one.published.unit}"
            f" ({one.published.gpu or 'GPU not stated'}, B {one.published.batch or 'not stated'})",
            " · ".join(map(_ours, one.ours)),
            one.published.source,
            "; ".join(one.differs),
            one.published.contradiction,
        )
        for one in found
    ]


def imported_rows(points: Sequence[ImportedPoint]) -> Rows:
    """A row per imported benchmark, under `IMPORTED`; latencies as mean / p50 / p99."""
    return [
        (
            point.tool,
            point.label,
            point.model or "",
            "" if point.concurrency is None else str(point.concurrency),
            _figure(point.tokens_per_s),
            *(
                _triple([getattr(point, f"{name}_ms_{stat}") for stat in ("mean", "p50", "p99")])
                for name in ("ttft", "tpot", "itl", "e2e")
            ),
            _figure(point.errors),
        )
        for point in points
    ]


def claim_lines(claims: Sequence[Claim]) -> Rows:
    """A row per claim and stratum, under `CLAIMED`."""
    return [(claim.targets[0], claim.claim, claim.source, claim.verdict, claim.evidence) for claim in claims]


def told(comparison: RunComparison) -> list[str]:
    """What is found of N* and what could not be mixed, a sentence each: found ones first, refusals summed up."""
    both = zip(comparison.n_stars, comparison.sentences, strict=True)
    said = [sentence for found, sentence in both if found.refusal is None]
    refused = [found for found in comparison.n_stars if found.refusal is not None]
    if refused:
        said.append(
            f"{len(refused)} of {len(comparison.n_stars)} strata (precision, B, hardware, dataset, ...) hold one model "
            "size or none, and get no N*"
        )
    return said + _unmixed(comparison.unmixed)


def _unmixed(pairs: Sequence[Unmixed]) -> list[str]:
    """A line per run, precisions and reason, with all that it cannot be mixed with."""
    others: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
    for pair in pairs:
        others.setdefault((pair.runs[1], pair.precisions, pair.reason), []).append(pair.runs[0])
    return [
        f"not mixed: {', '.join(firsts)} with {second} ({', '.join(precisions)}), {reason}"
        for (second, precisions, reason), firsts in others.items()
    ]


def notes(comparison: RunComparison) -> list[str]:
    """Warnings, and the notes of the strata that have a curve."""
    curves = [found for found in comparison.n_stars if found.refusal is None]
    return [*comparison.warnings, *dict.fromkeys(note for found in curves for note in found.notes)]


def _figure(value: float | None) -> str:
    """Three significant digits."""
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(share: float | None, unit: str = "") -> str:
    return "" if share is None else f"{100 * share:.1f}{unit}"


def _of_questions(questions: int | None) -> str:
    return "" if questions is None or questions < FEW_QUESTIONS else f" ({questions:,})"


def _triple(values: Sequence[float | None]) -> str:
    shown = [_figure(value) or "–" for value in values]
    return "" if set(shown) == {"–"} else " / ".join(shown)


def _ours(one: Ours) -> str:
    times = f" (×{_figure(one.ratio)})" if one.ratio is not None else ""
    return f"B {one.concurrency}: {_figure(one.value)}{times}"


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
