"""The end of a sweep in a terminal: a table of the figures that decide, and the report's answer, for any width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from msgspec.structs import replace
from rich.console import Console

from loadgen.analysis.analyse import Analysis
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.indices.study import TrapOverBatches
from loadgen.analysis.kvcache import kv_caches
from loadgen.analysis.run import Run, held_in
from loadgen.analysis.tokenenergy import TokenEnergy
from loadgen.analysis.trust.study import TrustTest
from loadgen.reports.rows import (
    NAME,
    RATE,
    SHORT,
    TOKEN_ENERGY,
    B,
    Column,
    CsvRow,
    Table,
    cells_valid,
    repeats_valid,
    right,
    shown_held,
    table_of,
    token_energy_notes,
    traffic_sentences,
)
from loadgen.reports.textable import Lines, fitting, lines_of, wrapped
from loadgen.secret import VisibleStream, visible
from loadgen.serving.metrics import UNVERIFIED
from loadgen.words import SIMULATED, STAMP, known, number, percent

FIGURES = (
    Column[CsvRow]("running\nmean", lambda row: number(row["running_mean"], 2)),
    Column[CsvRow]("tok/s\nmean", lambda row: number(row["tokens_per_s"])),
    Column[CsvRow]("TTFT ms\np50", lambda row: number(row["ttft_ms_p50"], 1)),
    Column[CsvRow]("TTFT ms\np99", lambda row: number(row["ttft_ms_p99"], 1)),
    Column[CsvRow]("TPOT ms\np50", lambda row: number(row["tpot_ms_p50"], 2)),
    Column[CsvRow]("E2E ms\np50", lambda row: number(row["e2e_ms_p50"], 0)),
    Column[CsvRow]("E2E ms\np99", lambda row: number(row["e2e_ms_p99"], 0)),
    Column[CsvRow]("W\nmean", lambda row: number(row["power_w_mean"], 0)),
    Column[CsvRow]("J/token\nmean", lambda row: number(row["energy_per_token_j"])),
    Column[CsvRow]("J/query\nmean", lambda row: number(row["energy_per_query_j"])),
    Column[CsvRow]("good/s\nmean", lambda row: number(row["goodput_per_s"])),
    Column[CsvRow]("good\n%", lambda row: percent(row["goodput_share"], 1, unit="")),
    Column[CsvRow]("right\n%", lambda row: right(row["accuracy"], row.get("questions"))),
    Column[CsvRow]("requests\nn", lambda row: number(row["requests"] or None, 0)),
    Column[CsvRow]("\nvalid", lambda row: _valid(row), SHORT),
)
DISPENSABLE = (
    "E2E ms\np50", "E2E ms\np99", "W\nmean", "J/token\nmean", "good\n%", "TPOT ms\np50", "running\nmean",
    "requests\nn", "TTFT ms\np99", "TTFT ms\np50", "right\n%", "good/s\nmean", "J/query\nmean", "\nvalid",
)  # fmt: skip
"""Columns that a narrow terminal omits, the first ones first."""
COMPARED = {
    "tok/s\nmean": ("tokens_per_s", True),
    "J/token\nmean": ("energy_per_token_j", False),
    "J/query\nmean": ("energy_per_query_j", False),
    "good/s\nmean": ("goodput_per_s", True),
    "right\n%": ("accuracy", True),
}
"""Figures with an interval, and whether more is better."""
BEST = "*"
MARK = "{}" + BEST
FEW_REQUESTS = 100
MOST_ROWS = 32
"""Of the table; of more, some B are left out."""
EVERYTHING = "--format csv and report.html have all"


def _valid(row: CsvRow) -> str:
    """ "2/3, energy 1/3": the repeats with a valid load, and a quantity of fewer; empty where all are valid."""
    load, *others = repeats_valid(row).split(", ")
    fewer = [text for text in others if int(text.split(" ")[1].split("/")[0]) < row["valid"]]
    return "" if row["valid"] == row["repeats"] and not fewer else ", ".join((load, *fewer))


def best_target(rows: Sequence[CsvRow], figure: str, *, highest: bool) -> str | None:
    """The target whose 95% interval of the figure lies beyond those of all others, of two rows or more; None where one
    is not known or they overlap."""
    ends = [(row[f"{figure}_lo"], row[f"{figure}_hi"]) for row in rows]
    if len(rows) < 2 or not all(known(end) for both in ends for end in both):
        return None
    signed = ends if highest else [(-hi, -lo) for lo, hi in ends]
    first = max(range(len(rows)), key=lambda place: signed[place][0])
    others = (hi for place, (_, hi) in enumerate(signed) if place != first)
    return str(rows[first]["target"]) if signed[first][0] > max(others) else None


def result_table(
    summary: pd.DataFrame,
    *,
    simulated: bool,
    concurrency: str = B,
    mark: str = "{}" + BEST,
    most_rows: int | None = None,
) -> tuple[Table, list[str]]:
    """A row per B and target, the targets of a B below each other, without figures that were not measured anywhere; and
    the B that are left out of more than `most_rows` rows.

    `concurrency` is what to call B; `mark` shows the best figure at a B, as `best_target` finds it among all targets.
    """
    targets = list(dict.fromkeys(summary["target"]))
    by_held: dict[float, list[CsvRow]] = {}
    for row in sorted(summary.to_dict("records"), key=lambda row: (held_in(row), targets.index(row["target"]))):
        by_held.setdefault(held_in(row), []).append(row)
    kept = _spread(list(by_held), max(most_rows // len(targets), 2)) if most_rows else list(by_held)
    rows = [row for held in kept for row in by_held[held]]
    firsts = {(held, by_held[held][0]["target"]): shown_held(held) for held in kept}
    stamp = STAMP if simulated else ""
    columns = (
        Column[CsvRow](
            f"\n{concurrency}", lambda row: shown_held(held_in(row)) * ((held_in(row), row["target"]) in firsts)
        ),
        Column[CsvRow](f"{stamp}\ntarget", lambda row: str(row["target"]), NAME),
        *FIGURES,
    )
    table = table_of(columns, rows)
    shown = [list(texts) for texts in table.rows]
    for place, heading in enumerate(table.headings):
        figure, highest = COMPARED.get(heading, ("", True))
        complete = [held for held in kept if len(by_held[held]) == len(targets) and figure]
        best = {held: best_target(by_held[held], figure, highest=highest) for held in complete}
        gap = " " * len(mark.format("")) if any(best.values()) else ""
        for texts, entry in zip(shown, rows, strict=True):
            is_best = best.get(held_in(entry)) == entry["target"]
            texts[place] = mark.format(texts[place]) if is_best else texts[place] and texts[place] + gap
    table = replace(table, rows=[tuple(texts) for texts in shown])
    return table.filled, [shown_held(held) for held in by_held if held not in kept]


def _spread(values: Sequence[float], most: int) -> list[float]:
    """At most so many of the values, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[place] for place in sorted({round(k * (len(values) - 1) / (most - 1)) for k in range(most)})]


def table_lines(summary: pd.DataFrame, width: int, *, simulated: bool, concurrency: str = B) -> Lines:
    """`result_table` within `width`, what its figures are, and what was left out of it."""
    whole, held = result_table(summary, simulated=simulated, concurrency=concurrency, most_rows=MOST_ROWS)
    table, columns = fitting(whole, width, DISPENSABLE)
    head, rows = lines_of(table, width)
    omitted = [f"{concurrency} = {', '.join(held)}"] if held else []
    omitted += [heading.replace("\n", " ").strip() for heading in columns]
    missing = f"Left out at {width} columns: {', '.join(omitted)}; {EVERYTHING}." if omitted else ""
    told = (meaning(summary, table), missing, _unverified(summary))
    return [*head, *rows, *(line for text in told for line in wrapped(text, width))]


def meaning(summary: pd.DataFrame, table: Table, *, mark: str = BEST) -> str:
    """What the statistics in the table's headings are, and what the `mark` of a figure is."""
    repeats = summary["repeats"].max()
    over = f"of each repeat's window, averaged over {repeats} repeats" if repeats > 1 else "of the window"
    counted = f"; n: requests in {'all windows' if repeats > 1 else 'it'}" * ("requests\nn" in table.headings)
    statistics = [name for name in ("mean", "p50", "p99") if any(name in heading for heading in table.headings)]
    parts = [f"{', '.join(statistics)}: {over}{counted}."]
    if "p99" in statistics and (summary["requests"] < FEW_REQUESTS * summary["repeats"]).any():
        parts.append(f"A p99 of fewer than {FEW_REQUESTS} requests is about the slowest.")
    if summary["target"].nunique() > 1:
        marked = any(BEST in text for row in table.rows for text in row[2:])
        why = "one repeat has no interval" if repeats == 1 else "95% intervals overlap or are not known"
        best = f"{mark} best at its {table.headings[0].strip()}: 95% interval apart from all others."
        parts.append(best if marked else f"No best is marked: {why}.")
    return " ".join(parts)


def _unverified(summary: pd.DataFrame) -> str:
    """The targets whose axis is the requests in flight, because their servers did not tell what ran."""
    rows = summary[summary["running_mean"].isna() & summary["tokens_per_s"].notna()]
    targets = ", ".join(dict.fromkeys(rows["target"]))
    return f"{UNVERIFIED}: {targets} by requests in flight, not by what the server ran" if targets else ""


MOST_TOLD = 22
"""Lines of answers and warnings: with the report's path they fill a terminal of 24 lines."""
SHARES = {
    "truncated_rate": "truncated",
    "unparsed_rate": "unparsed",
    "guessed_rate": "guessed",
    "stopped_rate": "ended by a stop string",
}
LABELS = {
    "traffic": "traffic",
    "energy_per_query_j": "energy per query",
    "tokens_per_s": "throughput",
    "trap": "trap",
    "accuracy": "accuracy",
    "energy_per_correct_j": "per correct answer",
    "si": "SI",
    "energy_per_token_j": "energy per token",
    "energy_hli_per_query_j": "energy by HLI",
}
"""What is reported of a target, the most important first."""
_INDENT = 2
_BESIDE = _INDENT + 1 + max(map(len, LABELS.values()))


class _Console(Console):
    """Leaves it to the caller what a pipe that nobody reads any more means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console_of(stream: Any, *, width: int) -> Console:
    """Writes to stdout or stderr past `VisibleStream`, because rich's own control sequences are meant to be obeyed;
    whoever prints makes texts visible first. `width`: where it is not a terminal."""
    file = stream.stream if isinstance(stream, VisibleStream) else stream
    return _Console(file=file, width=None if file.isatty() else width, markup=False, highlight=False, emoji=False)


def subject(run: Run) -> str:
    """Model (of a local one its folder's name) and device, as in "some/model on 2 × NVIDIA L4"."""
    manifest = run.manifest
    model = manifest.config.model or next((s.model for s in manifest.servers if s.model), run.path.name)
    model = Path(model).name if model.startswith("/") else model
    names = [gpu.name for gpu in manifest.gpu or ()]
    devices = [f"{count} × {name}" if (count := names.count(name)) > 1 else name for name in dict.fromkeys(names)]
    if not devices and manifest.config.device == "cpu":
        devices = [str(manifest.host.cpu)]
    return f"{model} on {', '.join(devices)}" if devices else model


def terms(analysis: Analysis) -> str:
    """What the words of the answer mean, for those that are used."""
    crossed = any(found.crossings or found.beyond for found in analysis.crossovers)
    indexed = any(entry.si for entry in analysis.indices)
    index = f"SI: accuracy, speed, energy in one, {analysis.reference} = 1. Trap: SI < 1."
    used = {"B*: break-even B.": crossed, index: indexed}
    return " ".join(text for text, is_used in used.items() if is_used)


def print_end(run: Run, console: Console) -> None:
    """Prints `end_lines` for the console's width; the path is never broken."""
    for line in end_lines(run, console.width):
        style = "bold red" if line.startswith(STAMP) else "yellow" if line.startswith("!") else None
        console.print(visible(line), style=style, markup=False, highlight=False, soft_wrap=True)


def end_lines(run: Run, width: int) -> Lines:
    """What was run, the figures, each target against the reference, warnings, and where the report is.

    No more than `MOST_TOLD` lines of answers and warnings; no line but the report's path is longer than `width` (of 40
    and more). What does not fit is counted, and is in the report.
    """
    simulated = run.manifest.simulated
    held = B if run.arrival is None else RATE
    head = wrapped(head_of(run), width)
    head += table_lines(run.summary, width, simulated=simulated, concurrency=held)
    if (caches := kv_caches(run.manifest)) is not None:
        head += wrapped(caches.sentence, width)
    head += answered_lines(run.summary, width)
    head += token_energy_lines(run.analysis.token_energy, width)
    head += wrapped(terms(run.analysis), width)
    room = MOST_TOLD
    warnings = [wrapped(f"! {warning}", width, indent=_INDENT, most=2) for warning in warnings_of(run)]
    shown, left_answers = _fitting_answers(answers_of(run, width), room - sum(map(len, warnings[:1])))
    left_warnings = len(warnings)
    for warning in warnings:
        if len(shown) + len(warning) > room:
            break
        shown += warning
        left_warnings -= 1
    left = {"answer": left_answers, "warning": left_warnings}
    missing = [f"+{count} more {what}{'s' * (count > 1)}" for what, count in left.items() if count]
    return [
        *head,
        *shown,
        *([f"{', '.join(missing)} in report.html"] if missing else []),
        f"Report: {run.path / 'report.html'}",
    ]


def head_of(run: Run) -> str:
    """What was run on what, and how much of it is valid."""
    config, dataset = run.manifest.config, run.manifest.dataset
    targets, repeats = len(config.targets), config.repeats
    load = run.arrival or f"B {', '.join(map(str, config.concurrency))}"
    load += f" × {len(config.shapes)} shapes" if config.shapes else ""
    measured = f"{targets} target{'s' * (targets > 1)} × {load} × {repeats} repeat{'s' * (repeats > 1)}"
    if config.find:
        measured = (
            f"{targets} targets, {config.load}, {len(run.manifest.steps)} step{'s' * (len(run.manifest.steps) != 1)}"
        )
    parts = [
        SIMULATED if run.manifest.simulated else "",
        subject(run),
        f"{dataset.name}, {dataset.items} items",
        measured,
        f"shape {run.shape} is shown" if run.shape else "",
        cells_valid(run.every_cell),
        f"good: {run.analysis.slo}" if run.analysis.slo else "",
    ]
    return " · ".join(filter(None, parts))


def token_energy_lines(entries: Sequence[TokenEnergy], width: int) -> Lines:
    """Joules of a prompt token and of an output token, a row per target and B; then what to know of them."""
    fitted = [entry for entry in entries if entry.prompt_token_energy_j is not None][:MOST_ROWS]
    notes = [line for note in token_energy_notes(entries) for line in wrapped(note, width, indent=_INDENT)]
    if not fitted:
        return notes
    table = table_of(TOKEN_ENERGY, fitted).filled
    if any(entry.simulated for entry in fitted):
        table = replace(table, headings=(f"{STAMP}\n{table.headings[0]}", *table.headings[1:]))
    head, rows = lines_of(fitting(table, width, ("repeats", "95% CI", "95% CI", "residual"))[0], width)
    return [*head, *rows, *notes]


def answered_lines(summary: pd.DataFrame, width: int) -> Lines:
    """Per target, equal ones together: questions, and the shares of its answers that are not 0 at some B, over B."""
    by_words: dict[str, list[str]] = {}
    graded = summary[summary["questions"].notna()]
    graded = graded.iloc[np.argsort([held_in(row) for row in graded.to_dict("records")], kind="stable")]
    for target, rows in graded.groupby("target", sort=False):
        shares = [
            f"{_over_b([percent(value, unit='') or '-' for value in rows[column].round(3)])}% {words}"
            for column, words in SHARES.items()
            if any(value > 0 for value in rows[column])
        ]
        words = f"n {_over_b([f'{n:.0f}' for n in rows['questions']])}; "
        words += ", ".join(shares) or "none truncated, unparsed or guessed"
        by_words.setdefault(words, []).append(str(target))
    every = len(by_words) == 1 and graded["target"].nunique() > 1
    return [
        line
        for words, targets in by_words.items()
        for line in wrapped(f"answers{'' if every else ' of ' + ', '.join(targets)}: {words}", width, indent=_INDENT)
    ]


def _over_b(values: Sequence[str]) -> str:
    """One value where all are the same."""
    return values[0] if len(set(values)) == 1 else "/".join(values)


def warnings_of(run: Run) -> list[str]:
    """Those of the analysis, and why energy was not measured."""
    power = run.manifest.power
    unmetered = [f"energy not measured: {power.reason}"] if power.kind == "none" else []
    return [*unmetered, *run.analysis.warnings]


def answers_of(run: Run, width: int) -> list[list[Lines]]:
    """Per target its heading, then what is known of it, the most important first."""
    analysis = run.analysis
    answers: dict[str, dict[str, str]] = {}
    for target, sentences in traffic_sentences(run).items():
        several = len(sentences) > 1
        told = {f"traffic {b}": f"{run.level(b)}: {sentence}" for b, sentence in sentences.items()}
        answers[target] = told if several else {"traffic": next(iter(sentences.values()))}
    for found in analysis.crossovers:
        of_target = answers.setdefault(found.target, {})
        if found.refusal is None:
            of_target[found.metric] = _fitting(found, width)
    indexed = {entry.target for entry in analysis.indices if entry.si}
    for trap in analysis.traps:
        if trap.target in indexed:
            answers.setdefault(trap.target, {})["trap"] = _fitting(trap, width)
    for test in analysis.trust:
        where = f"at {run.level(test.held)}" + (f" (n = {test.items})" if test.items else "")
        text = f"{where} {_fitting(test, width - len(where) - 1)}"
        answers.setdefault(test.target, {})["accuracy"] = text
    stamp = f" ({STAMP})" if analysis.simulated else ""
    return [
        [
            wrapped(
                f"{target}{'' if target == analysis.reference else f' against {analysis.reference}'}{stamp}", width
            ),
            *(
                wrapped(f"{'':{_INDENT}}{label:<{_BESIDE - _INDENT}}{of_target[name]}", width, indent=_BESIDE)
                for label, name in _labelled(of_target)
            ),
        ]
        for target, of_target in answers.items()
        if of_target
    ]


def _labelled(of_target: Mapping[str, str]) -> list[tuple[str, str]]:
    """The labels of what is known, the most important first; an open loop's traffic at each of its rates."""
    return [(label, name) for key, label in LABELS.items() for name in of_target if name.split(" ")[0] == key]


def _fitting_answers(targets: Sequence[Sequence[Lines]], room: int) -> tuple[Lines, int]:
    """As many answers on every target as there are lines for, and how many are omitted."""
    depth = max(map(len, targets), default=0)
    while depth > 2 and sum(len(lines) for answers in targets for lines in answers[:depth]) > room:
        depth -= 1
    shown: Lines = []
    left = 0
    for answers in targets:
        lines = [line for answer in answers[:depth] for line in answer]
        if len(shown) + len(lines) <= room:
            shown += lines
            left += max(len(answers) - depth, 0)
        else:
            left += len(answers) - 1
    return shown, left


def _fitting(verdict: Crossover | TrapOverBatches | TrustTest, width: int) -> str:
    """Its sentence where a line after a label has room for it, else the brief one."""
    return verdict.sentence if len(verdict.sentence) <= width - _BESIDE else verdict.brief
