"""The tables and sentences of `loadgen compare`, and how a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from loadgen.analysis.claims import Claim
from loadgen.analysis.compare.comparison import RunComparison, size_words
from loadgen.analysis.compare.difference import Condition, Difference, RunDifference
from loadgen.analysis.compare.external import ImportedPoint, Ours, PublishedMatch
from loadgen.analysis.compare.gpus import GpuEffect, GpuFactor, PrecisionEffect
from loadgen.analysis.compare.nstar import Unmixed
from loadgen.analysis.compare.row import CompareRow
from loadgen.load.openloop import CLOSED
from loadgen.record.cell import level
from loadgen.reports.rows import (
    FEW_QUESTIONS,
    INTERVAL,
    NAME,
    SHORT,
    TEXT,
    Column,
    Table,
    repeats_valid,
    right,
    table_of,
)
from loadgen.secret import visible_line
from loadgen.words import DASH, STAMP, count, interval, number, percent, percents, stamped

Of = TypeVar("Of")
RUNS = (
    Column[CompareRow]("run", lambda row: row.run, NAME),
    Column[CompareRow]("model", lambda row: row.model or "", SHORT),
    Column[CompareRow]("N", lambda row: size_words(row.parameters) if row.parameters else ""),
    Column[CompareRow]("N from", lambda row: row.parameters_source if row.parameters else "not known", SHORT),
    Column[CompareRow]("hardware", lambda row: f"{row.gpu} × {row.gpu_count}" if row.gpu else "not recorded", SHORT),
    Column[CompareRow]("dataset", lambda row: row.dataset, SHORT),
    Column[CompareRow]("protocol", lambda row: _protocol(row), SHORT),
    Column[CompareRow]("target", lambda row: stamped(row.target, simulated=row.simulated), SHORT),
    Column[CompareRow]("B", lambda row: str(row.concurrency) if row.arrival == CLOSED else row.arrival),
    Column[CompareRow]("running", lambda row: number(row.running_mean) or ("not verified" if row.valid else "")),
    Column[CompareRow]("tok/s", lambda row: number(row.tokens_per_s)),
    Column[CompareRow]("COR", lambda row: number(row.cor, 2)),
    Column[CompareRow]("95% CI", lambda row: interval(row.cor_lo, row.cor_hi, 2, floor=-1.0), INTERVAL),
    Column[CompareRow]("class", lambda row: row.cor_class or "", SHORT),
    Column[CompareRow]("N* by paper formula", lambda row: size_words(row.n_star_paper) if row.n_star_paper else ""),
    Column[CompareRow]("J/token", lambda row: number(row.energy_per_token_j)),
    Column[CompareRow]("J/query", lambda row: number(row.energy_per_query_j)),
    Column[CompareRow]("TTFT p99", lambda row: number(row.ttft_ms_p99)),
    Column[CompareRow]("good /s", lambda row: number(row.goodput_per_s)),
    Column[CompareRow]("good %", lambda row: percent(row.goodput_share, 1, unit="")),
    Column[CompareRow]("right % (n)", lambda row: right(row.accuracy, row.questions) + _of_questions(row.questions)),
    Column[CompareRow]("T_SI", lambda row: number(row.t_si)),
    Column[CompareRow]("headroom", lambda row: percent(row.memory_headroom, 1)),
    Column[CompareRow]("valid", lambda row: repeats_valid(msgspec.structs.asdict(row)), SHORT),
)
PUBLISHED = (
    Column[PublishedMatch]("run", lambda match: match.run, NAME),
    Column[PublishedMatch]("target", lambda match: match.target, SHORT),
    Column[PublishedMatch]("figure", lambda match: _figure(match), SHORT),
    Column[PublishedMatch]("theirs", lambda match: _theirs(match), SHORT),
    Column[PublishedMatch]("ours (× theirs)", lambda match: " · ".join(map(_ours, match.ours)), TEXT),
    Column[PublishedMatch]("source", lambda match: match.published.source, TEXT),
    Column[PublishedMatch]("may differ because", lambda match: "; ".join(match.differs), TEXT),
    Column[PublishedMatch]("contradicted", lambda match: match.published.contradiction, TEXT),
)
IMPORTED = (
    Column[ImportedPoint]("tool", lambda point: point.tool, NAME),
    Column[ImportedPoint]("label", lambda point: point.label, SHORT),
    Column[ImportedPoint]("model", lambda point: point.model or "", SHORT),
    Column[ImportedPoint]("concurrency", lambda point: str(point.concurrency or "")),
    Column[ImportedPoint]("tok/s", lambda point: number(point.tokens_per_s)),
    Column[ImportedPoint]("TTFT ms", lambda point: _latency(point, "ttft")),
    Column[ImportedPoint]("TPOT ms", lambda point: _latency(point, "tpot")),
    Column[ImportedPoint]("ITL ms", lambda point: _latency(point, "itl")),
    Column[ImportedPoint]("E2E ms", lambda point: _latency(point, "e2e")),
    Column[ImportedPoint]("errors", lambda point: count(point.errors)),
)
"""Latencies as mean / p50 / p99."""
CLAIMED = (
    Column[Claim]("precision", lambda claim: claim.targets[0], NAME),
    Column[Claim]("claim", lambda claim: claim.claim, TEXT),
    Column[Claim]("where", lambda claim: claim.source, SHORT),
    Column[Claim]("verdict", lambda claim: claim.verdict, SHORT),
    Column[Claim]("evidence", lambda claim: claim.evidence, TEXT),
)
METRICS = {
    "tokens_per_s": "tok/s",
    "ttft_ms_p50": "TTFT p50, ms",
    "ttft_ms_p99": "TTFT p99, ms",
    "tpot_ms_p50": "TPOT p50, ms",
    "e2e_ms_p50": "E2E p50, ms",
    "energy_per_token_j": "J/token",
    "energy_per_query_j": "J/query",
    "power_w_mean": "W",
    "accuracy": "accuracy",
}
"""Of a difference between two runs."""
DIFFERENCES = (
    Column[Difference]("target", lambda one: one.target, NAME),
    Column[Difference]("at", lambda one: level(one.concurrency, one.arrival), SHORT),
    Column[Difference]("metric", lambda one: METRICS[one.metric], SHORT),
    Column[Difference]("first", lambda one: _of_run(one, one.first)),
    Column[Difference]("second", lambda one: _of_run(one, one.second)),
    Column[Difference]("change", lambda one: _change(one)),
    Column[Difference]("95% CI", lambda one: _change_ends(one), INTERVAL),
    Column[Difference]("n", lambda one: rests_on(one), SHORT),
    Column[Difference]("second is", lambda one: one.verdict, SHORT),
)
CONDITIONS = (
    Column[Condition]("what", lambda one: one.what, NAME),
    Column[Condition]("first", lambda one: one.first, TEXT),
    Column[Condition]("second", lambda one: one.second, TEXT),
)


OVER_GPUS = {"tokens_per_s": "tok/s", "energy_per_token_j": "J/token", "energy_per_query_j": "J/query"}
PRECISIONS = (
    Column[PrecisionEffect]("run", lambda one: one.run, NAME),
    Column[PrecisionEffect]("target", lambda one: one.target, SHORT),
    Column[PrecisionEffect]("at", lambda one: one.level, SHORT),
    Column[PrecisionEffect]("metric", lambda one: OVER_GPUS[one.metric], SHORT),
    Column[PrecisionEffect]("over reference", lambda one: f"× {number(one.change.value)}"),
    Column[PrecisionEffect]("95% CI", lambda one: interval(one.change.lo, one.change.hi, floor=0.0), INTERVAL),
    Column[PrecisionEffect]("on each GPU", lambda one: " · ".join(f"× {number(g.ratio)}" for g in one.gpus), SHORT),
    Column[PrecisionEffect]("GPUs differ", lambda one: {True: "yes", False: "no", None: ""}[one.differs], SHORT),
)
GPUS = (
    Column[GpuEffect]("run", lambda one: one.run, NAME),
    Column[GpuEffect]("GPU", lambda one: one.gpu, SHORT),
    Column[GpuEffect]("metric", lambda one: OVER_GPUS[one.metric], SHORT),
    Column[GpuEffect]("over the first GPU", lambda one: f"× {number(one.change.value, 3)}"),
    Column[GpuEffect]("95% CI", lambda one: interval(one.change.lo, one.change.hi, 3, floor=0.0), INTERVAL),
    Column[GpuEffect]("first GPU", lambda one: one.first, SHORT),
)
GPU_MEANS = (
    "Precisions are compared within a GPU, repeat by repeat, so a difference between GPUs is in none of these ratios. "
    "The intervals hold for the mean of these GPUs."
)


def gpu_sentences(factor: GpuFactor) -> list[str]:
    """How far the GPUs differ, and where a precision changes more on one than on another, a sentence each."""
    told = [
        f"{one.run}: {OVER_GPUS[one.metric]} on {one.gpu} is × {number(one.change.value, 3)} that on {one.first}"
        + (f" ({interval(one.change.lo, one.change.hi, 3, floor=0.0)})" if one.change.lo is not None else "")
        for one in factor.gpus
    ]
    return told + [
        f"{one.run}, {one.target} at {one.level}: {OVER_GPUS[one.metric]} over the reference differs between the GPUs ("
        + ", ".join(f"× {number(g.ratio)} on {g.gpu}" for g in one.gpus) + ")"
        for one in factor.precisions if one.differs
    ]  # fmt: skip


def named_table(columns: Sequence[Column[Of]], entries: Sequence[Of], pair: RunDifference) -> Table:
    """A table whose columns `first` and `second` are called as the runs."""
    made = table_of(columns, entries)
    names = {"first": pair.first, "second": pair.second, "second is": f"{pair.second} is"}
    return Table(tuple(names.get(heading, heading) for heading in made.headings), made.kinds, made.rows)


def _of_run(one: Difference, value: float) -> str:
    return percent(value, 1) if one.metric == "accuracy" else number(value)


def _change(one: Difference) -> str:
    if one.metric == "accuracy":
        return percent(one.change.value, 1, unit=" pp", sign=True)
    return f"× {number(one.change.value)}"


def _change_ends(one: Difference) -> str:
    low, high = one.change.lo, one.change.hi
    return percents(low, high, unit=" pp", sign=True) if one.metric == "accuracy" else interval(low, high, floor=0.0)


def rests_on(one: Difference) -> str:
    """The repeats of both runs, or the questions."""
    if one.metric == "accuracy":
        return f"{one.n_first} question{'s' if one.n_first > 1 else ''}"
    return f"{one.n_first} and {one.n_second} repeats"


def decided(pair: RunDifference) -> list[str]:
    """What the intervals decide, a sentence per target and direction without a full stop."""
    found: dict[tuple[str, str, str], list[Difference]] = {}
    for one in pair.differences:
        if one.verdict in ("higher", "lower"):
            found.setdefault((one.target, one.metric, one.verdict), []).append(one)
    sentences = []
    for (target, metric, verdict), alike in found.items():
        where = ", ".join(level(one.concurrency, one.arrival) for one in alike)
        changes = sorted(alike, key=lambda one: one.change.value)
        by = " to ".join(dict.fromkeys(map(_change, (changes[0], changes[-1]))))
        sentences.append(f"{target}: {METRICS[metric]} is {verdict} in {pair.second} at {where} ({by})")
    return sentences


def pair_note(pair: RunDifference) -> str:
    """What the change is, and how many differences chance alone would decide."""
    compared = [one for one in pair.differences if one.change.lo is not None]
    text = f"Change: {pair.second} over {pair.first}, a ratio; of accuracy {pair.second} minus {pair.first}, on the "
    text += "questions that both answered. Each interval is 95% by itself"
    if compared:
        text += f", so chance alone decides about {number(0.05 * len(compared), 0)} of {len(compared)}"
    return f"{text}." + (f" {kept_note(pair)}" if pair.kept_servers else "")


def kept_note(pair: RunDifference) -> str:
    """What the intervals lack, where servers were not restarted between the repeats."""
    names = " and ".join(pair.kept_servers)
    return (
        f"Between its repeats {names} kept its servers running (--target): the intervals leave out what a restart "
        "changes, and a difference may be no more than that."
    )


COR_MEANS = "COR: tokens/s of the reference over the precision's, less 1; below 0 the precision is faster."
BANNER = f"rows marked {STAMP} come from a cost model, not from a GPU."


def _protocol(row: CompareRow) -> str:
    return row.protocol + (f", {row.fixed_length} tokens" if row.fixed_length else "")


def _of_questions(questions: int | None) -> str:
    return "" if questions is None or questions < FEW_QUESTIONS else f" ({questions:,})"


def _figure(match: PublishedMatch) -> str:
    figure = match.published
    bound = " (ours: HLI bound)" if match.column == "energy_hli_per_query_j" else ""
    return f"{figure.metric}, {figure.model}, {figure.precision}{bound}"


def _theirs(match: PublishedMatch) -> str:
    figure = match.published
    gpu, batch = figure.gpu or "GPU not stated", figure.batch or "not stated"
    return f"{figure.value:g} {figure.unit} ({gpu}, B {batch})"


def _ours(one: Ours) -> str:
    return f"B {one.concurrency}: {number(one.value)}" + (f" (×{number(one.ratio)})" if one.ratio is not None else "")


def _latency(point: ImportedPoint, name: str) -> str:
    shown = [number(getattr(point, f"{name}_ms_{statistic}")) for statistic in ("mean", "p50", "p99")]
    return " / ".join(text or DASH for text in shown) if any(shown) else ""


def findings(comparison: RunComparison) -> list[str]:
    """What is found of N* and what could not be mixed, a sentence each: found ones first, refusals summed up."""
    both = zip(comparison.n_stars, comparison.sentences, strict=True)
    sentences = [sentence for found, sentence in both if found.refusal is None]
    if refused := len(comparison.n_stars) - len(sentences):
        sentences.append(
            f"{refused} of {len(comparison.n_stars)} strata (precision, B, hardware, dataset, ...) hold one model "
            "size or none, and get no N*"
        )
    return sentences + _unmixed(comparison.unmixed)


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
    return [
        *comparison.warnings,
        *comparison.kv_caches,
        *dict.fromkeys(note for found in curves for note in found.notes),
    ]


_DISPENSABLE = (
    "N from", "N* by paper formula", "TTFT p99", "protocol", "T_SI", "hardware", "dataset", "headroom", "model",
    "running", "J/token", "95% CI", "right % (n)", "class",
)  # fmt: skip
"""Columns that a narrow terminal omits, the first ones first."""
MOST_LINES = 12
WIDEST = 1000


def print_comparison(comparison: RunComparison, console: Console) -> None:
    """Tables and sentences; what does not fit goes into compare.html."""
    if comparison.simulated:
        _print(console, f"{STAMP}: {BANNER}", "bold red")
    print_table(console, table_of(RUNS, comparison.rows), _DISPENSABLE)
    if any(row.cor is not None for row in comparison.rows):
        console.print(f"  {COR_MEANS}", highlight=False)
    if comparison.pair is not None:
        _print_pair(console, comparison.pair)
    _print_lines(console, "GPUs, of each other; precisions are compared within a GPU", gpu_sentences(comparison.gpus))
    _print_lines(console, "N*, the model size at which COR is zero", findings(comparison))
    _print_lines(console, "", [f"{c.source}: {c.verdict}; {c.evidence}" for c in comparison.claims])
    _print_lines(console, "Published figures compared with ours", published_lines(comparison.published))
    _print_lines(console, "", published_doubts(comparison.published))
    if comparison.imports:
        _print(console, "Imported from other tools, mean / p50 / p99, as they define them", "bold")
        print_table(console, table_of(IMPORTED, comparison.imports))
        _print_lines(console, "", [f"{tool}: {how}" for tool, how in comparison.differences.items()])
    for note in notes(comparison)[:MOST_LINES]:
        _print(console, f"! {note}", "yellow")


def _print_pair(console: Console, pair: RunDifference) -> None:
    title = stamped(f"{pair.second} against {pair.first}", simulated=pair.simulated)
    if pair.refusal is not None:
        _print_lines(console, title, [f"not compared: {pair.refusal}"])
        return
    differs = "; ".join(f"{c.what}: {c.first} and {c.second}" for c in pair.differs)
    sentences = decided(pair) or [f"no difference is decided, of {len(pair.differences)} (target, B and metric)"]
    kept = [kept_note(pair)] if pair.kept_servers else []
    _print_lines(console, title, [*sentences, *kept, *([f"what differs: {differs}"] if differs else []), *pair.missing])


def _print(console: Console, line: str, style: str | None = None) -> None:
    console.print(Text(visible_line(line)), style=style)


def print_table(console: Console, table: Table, dispensable_first: Sequence[str] = ()) -> None:
    """Without empty columns, and without as many of the dispensable ones as do not fit."""
    table = table.filled
    for dispensable in ("", *dispensable_first):
        table = table.without(place for place, heading in enumerate(table.headings) if heading == dispensable)
        made = _rich_table(table)
        if Measurement.get(console, console.options.update(width=WIDEST), made).maximum <= console.width:
            break
    console.print(made)


def _rich_table(table: Table) -> RichTable:
    made = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    for heading, kind in zip(table.headings, table.kinds, strict=True):
        figures = kind in ("figure", "interval") or heading == "valid"
        made.add_column(heading, justify="right" if figures else "left", overflow="fold", no_wrap=figures)
    for row in table.rows:
        made.add_row(*(Text(visible_line(text)) for text in row))
    return made


def _print_lines(console: Console, title: str, lines: Sequence[str]) -> None:
    if title and lines:
        _print(console, title, "bold")
    for line in lines[:MOST_LINES]:
        _print(console, f"  {line}")
    if len(lines) > MOST_LINES:
        _print(console, f"  and {len(lines) - MOST_LINES} more (--out DIR, compare.html)")


def published_lines(found: Sequence[PublishedMatch]) -> list[str]:
    """A line each, ratios to theirs in brackets; why they may differ is one line for all."""
    return [
        f"{match.run}, {match.target}, {_figure(match)}: "
        f"{' · '.join(map(_ours, match.ours))}; theirs{'†' if match.published.contradiction else ''} {_theirs(match)}, "
        f"{match.published.source}"
        for match in found
    ]


def published_doubts(found: Sequence[PublishedMatch]) -> list[str]:
    reasons = dict.fromkeys(reason for match in found for reason in match.differs)
    doubts = [f"they may differ because: {'; '.join(reasons)}"] if reasons else []
    if any(match.published.contradiction for match in found):
        doubts.append("† the source contradicts this figure itself: --out DIR writes how into compare.html")
    return doubts
