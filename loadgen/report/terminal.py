"""The end of a sweep in a terminal: the report's answer in few lines, whatever the width."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

import msgspec
from rich.console import Console

from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.crossover.sentence import brief
from loadgen.analysis.run import Run
from loadgen.report.answer import terms_briefly
from loadgen.report.answered import answered_lines
from loadgen.report.grid import grid_lines
from loadgen.report.stamp import STAMP
from loadgen.report.subject import subject
from loadgen.report.traffic import traffic_sentences
from loadgen.report.validity import cells_valid
from loadgen.visible import visible

MOST_LINES = 34
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
"""What is said of a target, the most important first."""
_INDENT = 2
_BESIDE = _INDENT + 1 + max(map(len, LABELS.values()))

Lines = list[str]


def print_end(run: Run, console: Console) -> None:
    """Prints `end_lines` for the console's width; the path is never broken."""
    for line in end_lines(run, console.width):
        style = "bold red" if line.startswith(STAMP) else "yellow" if line.startswith("!") else None
        console.print(visible(line), style=style, markup=False, highlight=False, soft_wrap=True)


def end_lines(run: Run, width: int) -> Lines:
    """What was run, the figures, each target against the reference, warnings, and where the report is.

    No more than `MOST_LINES` lines, unless the figures of many targets and B alone take more; none but the report's
    path is longer than `width` (of 40 and more). What does not fit is counted and stands in the report.
    """
    reference = run.manifest["config"]["reference"]
    simulated = bool(run.manifest["simulated"])
    head = _wrapped(_head(run, simulated=simulated), width)
    held = "B" if run.arrival is None else "in flight ≤"
    head += grid_lines(run.summary, reference, width, simulated=simulated, concurrency=held)
    head += answered_lines(run.summary, width)
    head += _wrapped(terms_briefly(run.analysis), width)
    report = f"Report: {run.path / 'report.html'}"
    room = MOST_LINES - len(head) - -(-len(report) // width) - 1
    warnings = [_wrapped(f"! {warning}", width, indent=_INDENT, most=2) for warning in _warnings(run)]
    answers = _answers(run, reference, width, simulated=simulated)
    told, left_answers = _answers_that_fit(answers, room - sum(map(len, warnings[:1])))
    room -= len(told)
    shown = 0
    while shown < len(warnings) and len(warnings[shown]) <= room:
        told += warnings[shown]
        room -= len(warnings[shown])
        shown += 1
    left = {"answer": left_answers, "warning": len(warnings) - shown}
    missing = [f"+{count} more {what}{'s' * (count > 1)}" for what, count in left.items() if count]
    return [*head, *told, *([f"{', '.join(missing)} in report.html"] if missing else []), report]


def _head(run: Run, *, simulated: bool) -> str:
    manifest = run.manifest
    config, dataset = manifest["config"], manifest["dataset"]
    targets = len(config["targets"])
    load = f"B {', '.join(map(str, config['concurrency']))}"
    parts = [
        f"{STAMP}: a cost model's figures, no GPU's" if simulated else None,
        subject(run),
        f"{dataset['name']}, {dataset['items']} items",
        f"{targets} target{'s' * (targets > 1)} × {run.arrival or load} × "
        f"{config['repeats']} repeat{'s' * (config['repeats'] > 1)}",
        cells_valid(run.cells),
        f"good: {run.analysis['slo']}" if run.analysis["slo"] else None,
    ]
    return " · ".join(part for part in parts if part)


def _warnings(run: Run) -> list[str]:
    power = run.manifest.get("power") or {}
    unmetered = [f"energy not measured: {power['reason']}"] if power.get("kind") == "none" else []
    return [*unmetered, *run.analysis["warnings"]]


def _answers(run: Run, reference: str, width: int, *, simulated: bool) -> list[list[Lines]]:
    """Per target its heading, then what is known of it, the most important first."""
    analysis = run.analysis
    said: dict[str, dict[str, str]] = {target: {"traffic": told} for target, told in traffic_sentences(run).items()}
    for entry in analysis["crossovers"]:
        found = msgspec.convert(entry, Crossover)
        known = said.setdefault(found.target, {})
        if found.refusal is None:
            known[found.metric] = _shortened(brief(found), width, ";.*")
    for trap in analysis.get("traps", ()):
        if any(entry["si"] for entry in analysis["indices"] if entry["target"] == trap["target"]):
            verdicts = trap["sentence"].removeprefix("quantization trap: ")
            said.setdefault(trap["target"], {})["trap"] = _shortened(verdicts, width, r" \(.*?\)")
    for test in analysis["trust"]:
        where = f"at {run.level(test['concurrency'])}" + (f" (n = {test['items']:g})" if test["items"] else "")
        judged = f"{where} {str(test['sentence']).partition(';')[0]}"
        said.setdefault(test["target"], {})["accuracy"] = _shortened(judged, width, ", you need.*")
    stamp = f" ({STAMP})" if simulated else ""
    return [
        [
            _wrapped(f"{target}{stamp}" if target == reference else f"{target} against {reference}{stamp}", width),
            *(
                _wrapped(f"{'':{_INDENT}}{label:<{_BESIDE - _INDENT}}{known[name]}", width, indent=_BESIDE)
                for name, label in LABELS.items()
                if name in known
            ),
        ]
        for target, known in said.items()
        if known
    ]


def _answers_that_fit(targets: Sequence[Sequence[Lines]], room: int) -> tuple[Lines, int]:
    """As many answers on every target as there are lines for, and how many are left out."""
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


def _shortened(text: str, width: int, details: str) -> str:
    """Without what matches `details`, where a line beside a label has no room for it."""
    return text if len(text) <= width - _BESIDE else re.sub(details, "", text)


def _wrapped(text: str, width: int, *, indent: int = 0, most: int | None = None) -> Lines:
    """Broken between words alone; of a text of more than `most` lines the end is left out."""
    return textwrap.wrap(
        text,
        max(width, indent + 20),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        max_lines=most,
        placeholder=" …",
    )
