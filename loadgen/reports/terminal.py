"""The end of a sweep in a terminal: the report's answer in few lines, whatever the width.

Answered: the lines of the terminal on how many answers an accuracy rests on, and what it does not show of them.

What a run is about.

The answer in words, target by target.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from loadgen.analysis.run import Run
from loadgen.reports.grid import cells_valid, grid_lines
from loadgen.reports.rows import traffic_sentences
from loadgen.reports.words import STAMP, stamped
from loadgen.secret import visible

SHARES = {
    "truncated_rate": "truncated",
    "unparsed_rate": "unparsed",
    "guessed_rate": "guessed",
    "stopped_rate": "ended by a stop string",
}


def answered_lines(summary: pd.DataFrame, width: int) -> list[str]:
    """Per target, equal ones together: questions, and the shares of its answers that are not 0 at some B, over B."""
    said: dict[str, list[str]] = {}
    graded = summary[summary["questions"].notna()].sort_values("concurrency", kind="stable")
    for target, rows in graded.groupby("target", sort=False):
        shares = [
            f"{_listed([_percent(value) for value in rows[column]])}% {words}"
            for column, words in SHARES.items()
            if any(value > 0 for value in rows[column])
        ]
        count = _listed([f"{int(n)}" for n in rows["questions"]])
        told = ", ".join(shares) or "none truncated, unparsed or guessed"
        said.setdefault(f"n {count}; {told}", []).append(str(target))
    every = len(said) == 1 and graded["target"].nunique() > 1
    return [
        line
        for told, targets in said.items()
        for line in textwrap.wrap(
            f"answers{'' if every else ' of ' + ', '.join(targets)}: {told}", width, subsequent_indent="  "
        )
    ]


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}".removesuffix(".0")


def _listed(values: list[str]) -> str:
    """One value where all are the same."""
    return values[0] if len(set(values)) == 1 else "/".join(values)


def subject(run: Run) -> str:
    """Model (of a local one its folder's name) and device, as in "some/model on 2 × NVIDIA L4"."""
    manifest = run.manifest
    model = manifest.config.model or next((s.model for s in manifest.servers if s.model), run.path.name)
    model = Path(model).name if model.startswith("/") else model
    names = [gpu.name for gpu in manifest.gpu or ()]
    devices = [f"{count} × {name}" if (count := names.count(name)) > 1 else name for name in dict.fromkeys(names)]
    if not devices and manifest.config.device == "cpu":
        devices = [str(manifest.host.cpu)]
    return " on ".join((model, *([", ".join(devices)] if devices else [])))


CLAIMS = ("targets", "claim", "where", "verdict", "evidence")


def terms(analysis: Mapping[str, Any]) -> str:
    """What the words of the answer mean, for those that are used."""
    said = {
        "B*: the batch at which the better side changes.": _crossed(analysis),
        "COR: tokens/s of the reference over the target's, less 1; below 0 the target is faster.": bool(
            analysis["cor_curves"]
        ),
        "SI: accuracy, efficiency (speed and memory) and energy against the reference, weighed into one figure; the "
        "reference has 1. Trap: SI is below 1.": _indexed(analysis),
    }
    return " ".join(text for text, used in said.items() if used)


def terms_briefly(analysis: Mapping[str, Any]) -> str:
    """The same in a line of a terminal."""
    index = f"SI: accuracy, speed, energy in one, {analysis['reference']} = 1. Trap: SI < 1."
    said = {"B*: break-even B.": _crossed(analysis), index: _indexed(analysis)}
    return " ".join(text for text, used in said.items() if used)


def _crossed(analysis: Mapping[str, Any]) -> bool:
    return any(found["crossings"] or found["beyond"] for found in analysis["crossovers"])


def _indexed(analysis: Mapping[str, Any]) -> bool:
    return any(entry["si"] for entry in analysis["indices"])


def claim_rows(claims: Sequence[Mapping[str, Any]], *, simulated: bool) -> list[tuple[str, ...]]:
    """A row per claim and target, in the order of the analysis."""
    return [
        (stamped(" and ".join(c["targets"]), simulated=simulated), c["claim"], c["source"], c["verdict"], c["evidence"])
        for c in claims
    ]


def answer_sentences(analysis: Mapping[str, Any]) -> dict[str, list[str]]:
    """Target -> its sentences: every crossover that could be asked for, then the trap verdict.

    Of a metric that was not measured there is none.
    """
    said: dict[str, list[str]] = {}
    for found in analysis["crossovers"]:
        if found["refusal"] is None:
            said.setdefault(found["target"], []).append(found["sentence"])
    for trap in analysis.get("traps", []):
        if trap["target"] in said:
            said[trap["target"]].append(trap["sentence"])
    return said


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
    reference = run.manifest.config.reference
    simulated = run.manifest.simulated
    head = _wrapped(_head(run, simulated=simulated), width)
    held = "B" if run.arrival is None else "in flight ≤"
    head += grid_lines(run.summary, reference, width, simulated=simulated, concurrency=held)
    head += answered_lines(run.summary, width)
    head += _wrapped(terms_briefly(run.analysis_json), width)
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
    config, dataset = manifest.config, manifest.dataset
    targets = len(config.targets)
    load = f"B {', '.join(map(str, config.concurrency))}"
    parts = [
        f"{STAMP}: a cost model's figures, no GPU's" if simulated else None,
        subject(run),
        f"{dataset.name}, {dataset.items} items",
        f"{targets} target{'s' * (targets > 1)} × {run.arrival or load} × "
        f"{config.repeats} repeat{'s' * (config.repeats > 1)}",
        cells_valid(run.cells),
        f"good: {run.analysis_json['slo']}" if run.analysis_json["slo"] else None,
    ]
    return " · ".join(part for part in parts if part)


def _warnings(run: Run) -> list[str]:
    power = run.manifest.power
    unmetered = [f"energy not measured: {power.reason}"] if power.kind == "none" else []
    return [*unmetered, *run.analysis_json["warnings"]]


def _answers(run: Run, reference: str, width: int, *, simulated: bool) -> list[list[Lines]]:
    """Per target its heading, then what is known of it, the most important first."""
    analysis = run.analysis_json
    said: dict[str, dict[str, str]] = {target: {"traffic": told} for target, told in traffic_sentences(run).items()}
    for found in analysis["crossovers"]:
        known = said.setdefault(found["target"], {})
        if found["refusal"] is None:
            known[found["metric"]] = _fitting(found, width)
    for trap in analysis.get("traps", ()):
        if any(entry["si"] for entry in analysis["indices"] if entry["target"] == trap["target"]):
            said.setdefault(trap["target"], {})["trap"] = _fitting(trap, width)
    for test in analysis["trust"]:
        where = f"at {run.level(test['concurrency'])}" + (f" (n = {test['items']:g})" if test["items"] else "")
        said.setdefault(test["target"], {})["accuracy"] = f"{where} {_fitting(test, width - len(where) - 1)}"
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


def _fitting(verdict: Mapping[str, Any], width: int) -> str:
    """Its sentence where a line beside a label has room for it, else the brief one."""
    return str(verdict["sentence"] if len(verdict["sentence"]) <= width - _BESIDE else verdict["brief"])


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
