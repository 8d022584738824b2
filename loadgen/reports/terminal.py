"""The end of a sweep in a terminal: the figures that decide, as a grid, and the report's answer, for any width."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from rich.console import Console

from loadgen.analysis.analyse import Analysis
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.indices.study import TrapOverBatches
from loadgen.analysis.run import Run, held_in
from loadgen.analysis.trust.study import TrustTest
from loadgen.reports.rows import RATE, B, Column, CsvRow, cells_valid, right, shown_held, traffic_sentences
from loadgen.secret import VisibleStream, visible
from loadgen.serving.metrics import UNVERIFIED
from loadgen.words import STAMP, number, percent

BETWEEN = " │ "
ALWAYS = (
    Column[CsvRow]("tok/s", lambda row: number(row["tokens_per_s"])),
    Column[CsvRow]("J/query", lambda row: number(row["energy_per_query_j"])),
    Column[CsvRow]("good/s", lambda row: number(row["goodput_per_s"])),
    Column[CsvRow]("good %", lambda row: percent(row["goodput_share"], 1, unit="")),
    Column[CsvRow]("right %", lambda row: right(row["accuracy"], row.get("questions"))),
)
IF_ROOM = (
    Column[CsvRow]("running", lambda row: number(row["running_mean"], 2)),
    Column[CsvRow]("TPOT ms", lambda row: number(row["tpot_ms_p50"], 2)),
    Column[CsvRow]("TTFT ms", lambda row: number(row["ttft_ms_p50"], 1)),
    Column[CsvRow]("W", lambda row: number(row["power_w_mean"], 0)),
)


class _Block(msgspec.Struct, frozen=True):
    """One figure at some batches: a heading, a line of batches and a line per target."""

    heading: str
    columns: tuple[tuple[str, ...], ...]

    @property
    def widths(self) -> list[int]:
        widths = [max(map(len, column)) for column in self.columns]
        return [widths[0] + max(len(self.heading) - sum(widths) - len(widths) + 1, 0), *widths[1:]]

    @property
    def width(self) -> int:
        return sum(self.widths) + len(self.widths) - 1

    def lines(self) -> list[str]:
        rows = zip(*self.columns, strict=True)
        cells = [[text.rjust(width) for text, width in zip(row, self.widths, strict=True)] for row in rows]
        return [self.heading.rjust(self.width), *map(" ".join, cells)]


def grid_lines(
    summary: pd.DataFrame, reference: str, width: int, *, simulated: bool, concurrency: str = B
) -> list[str]:
    """Every target's throughput, energy, goodput and accuracy at every B, the reference's running batch in the last
    line. `concurrency` is what to call B.

    A figure that was not measured anywhere is omitted; TPOT, TTFT and power are added where `width` has room for them.
    What is too wide is continued below, never cut.
    """
    rows = {(row["target"], held_in(row)): row for row in summary.to_dict("records")}
    batches = sorted({b for _, b in rows})
    targets = list(dict.fromkeys(summary["target"]))
    names = [STAMP if simulated else "", concurrency, *targets]
    left = max(map(len, names))
    room = width - left - len(BETWEEN)

    def blocks(figure: Column[CsvRow]) -> list[_Block]:
        """One, or several where not all batches fit side by side; none of what was not measured."""
        found: list[_Block] = []
        for b in batches:
            column = (shown_held(b), *(figure.show(rows[t, b]) if (t, b) in rows else "" for t in targets))
            wider = _Block(figure.heading, (*found[-1].columns, column)) if found else None
            if wider is not None and wider.width <= room:
                found[-1] = wider
            else:
                found.append(_Block(figure.heading, (column,)))
        return found if any(any(column[1:]) for block in found for column in block.columns) else []

    shown = [block for figure in ALWAYS for block in blocks(figure)]
    for figure in IF_ROOM:
        more = [*shown, *blocks(figure)]
        if _width(more) > room:
            break
        shown = more
    bands: list[list[_Block]] = []
    for block in shown:
        if bands and _width([*bands[-1], block]) <= room:
            bands[-1].append(block)
        else:
            bands.append([block])
    lines = [
        f"{name:<{left}}{BETWEEN}{BETWEEN.join(row)}".rstrip()
        for band in bands
        for name, row in zip(names, zip(*(block.lines() for block in band), strict=True), strict=True)
    ]
    if not any(block.heading == "running" for block in shown):
        lines += textwrap.wrap(_running(summary, reference), width)
    return lines + textwrap.wrap(_unverified(summary), width)


def _width(blocks: Sequence[_Block]) -> int:
    return sum(block.width for block in blocks) + len(BETWEEN) * (len(blocks) - 1)


def _running(summary: pd.DataFrame, reference: str) -> str:
    """The x axis of every curve: what ran where so much was asked for."""
    rows = summary[(summary["target"] == reference) & summary["running_mean"].notna()].to_dict("records")
    pairs = [f"{number(row['running_mean'], 2)} at {shown_held(held_in(row))}" for row in sorted(rows, key=held_in)]
    return f"running batch of {reference}: {', '.join(pairs)}" if pairs else ""


def _unverified(summary: pd.DataFrame) -> str:
    """The targets whose axis is the requests in flight, because their servers did not tell what ran."""
    rows = summary[summary["running_mean"].isna() & summary["tokens_per_s"].notna()]
    targets = ", ".join(dict.fromkeys(rows["target"]))
    return f"{UNVERIFIED}: {targets} by requests in flight, not by what the server ran" if targets else ""


MOST_LINES = 34
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
Lines = list[str]


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


def terms(analysis: Analysis, *, briefly: bool = False) -> str:
    """What the words of the answer mean, for those that are used; `briefly`: for a line of a terminal."""
    crossed = any(found.crossings or found.beyond for found in analysis.crossovers)
    indexed = any(entry.si for entry in analysis.indices)
    if briefly:
        index = f"SI: accuracy, speed, energy in one, {analysis.reference} = 1. Trap: SI < 1."
        used = {"B*: break-even B.": crossed, index: indexed}
    else:
        used = {
            "B*: the batch at which the better side changes.": crossed,
            "COR: tokens/s of the reference over the target's, less 1; below 0 the target is faster.": bool(
                analysis.cor_curves
            ),
            "SI: accuracy, efficiency (speed and memory) and energy against the reference, weighed into one figure; "
            "the reference has 1. Trap: SI is below 1.": indexed,
        }
    return " ".join(text for text, is_used in used.items() if is_used)


def print_end(run: Run, console: Console) -> None:
    """Prints `end_lines` for the console's width; the path is never broken."""
    for line in end_lines(run, console.width):
        style = "bold red" if line.startswith(STAMP) else "yellow" if line.startswith("!") else None
        console.print(visible(line), style=style, markup=False, highlight=False, soft_wrap=True)


def end_lines(run: Run, width: int) -> Lines:
    """What was run, the figures, each target against the reference, warnings, and where the report is.

    No more than `MOST_LINES` lines, unless the figures of many targets and B alone take more; none but the report's
    path is longer than `width` (of 40 and more). What does not fit is counted, and is in the report.
    """
    simulated = run.manifest.simulated
    held = B if run.arrival is None else RATE
    head = _wrapped(_head(run, simulated=simulated), width)
    head += grid_lines(run.summary, run.analysis.reference, width, simulated=simulated, concurrency=held)
    head += answered_lines(run.summary, width)
    head += _wrapped(terms(run.analysis, briefly=True), width)
    report = f"Report: {run.path / 'report.html'}"
    room = MOST_LINES - len(head) - -(-len(report) // width) - 1
    warnings = [_wrapped(f"! {warning}", width, indent=_INDENT, most=2) for warning in _warnings(run)]
    shown, left_answers = _fitting_answers(_answers(run, width), room - sum(map(len, warnings[:1])))
    left_warnings = len(warnings)
    for warning in warnings:
        if len(shown) + len(warning) > room:
            break
        shown += warning
        left_warnings -= 1
    left = {"answer": left_answers, "warning": left_warnings}
    missing = [f"+{count} more {what}{'s' * (count > 1)}" for what, count in left.items() if count]
    return [*head, *shown, *([f"{', '.join(missing)} in report.html"] if missing else []), report]


def _head(run: Run, *, simulated: bool) -> str:
    config, dataset = run.manifest.config, run.manifest.dataset
    targets, repeats = len(config.targets), config.repeats
    load = run.arrival or f"B {', '.join(map(str, config.concurrency))}"
    measured = f"{targets} target{'s' * (targets > 1)} × {load} × {repeats} repeat{'s' * (repeats > 1)}"
    if config.find:
        measured = f"{targets} targets, {config.load}, {len(run.manifest.steps)} steps"
    parts = [
        f"{STAMP}: a cost model's figures, no GPU's" if simulated else "",
        subject(run),
        f"{dataset.name}, {dataset.items} items",
        measured,
        cells_valid(run.cells),
        f"good: {run.analysis.slo}" if run.analysis.slo else "",
    ]
    return " · ".join(filter(None, parts))


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
        for line in _wrapped(f"answers{'' if every else ' of ' + ', '.join(targets)}: {words}", width, indent=_INDENT)
    ]


def _over_b(values: Sequence[str]) -> str:
    """One value where all are the same."""
    return values[0] if len(set(values)) == 1 else "/".join(values)


def _warnings(run: Run) -> list[str]:
    power = run.manifest.power
    unmetered = [f"energy not measured: {power.reason}"] if power.kind == "none" else []
    return [*unmetered, *run.analysis.warnings]


def _answers(run: Run, width: int) -> list[list[Lines]]:
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
            _wrapped(
                f"{target}{'' if target == analysis.reference else f' against {analysis.reference}'}{stamp}", width
            ),
            *(
                _wrapped(f"{'':{_INDENT}}{label:<{_BESIDE - _INDENT}}{of_target[name]}", width, indent=_BESIDE)
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


def _wrapped(text: str, width: int, *, indent: int = 0, most: int | None = None) -> Lines:
    """Broken between words alone; of a text of more than `most` lines the end is omitted."""
    return textwrap.wrap(
        text, max(width, indent + 20), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
        max_lines=most, placeholder=" …",
    )  # fmt: skip
