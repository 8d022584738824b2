"""A run of fp16 and awq at four batches and three repeats, all figures in closed form."""

from __future__ import annotations

from typing import Any

import msgspec

from loadgen.analysis.cells import CellSummary
from loadgen.analysis.indices.formulas import IndexSettings
from loadgen.analysis.runresult import RunResult, run_result
from loadgen.analysis.trust.answers import Answers, GradedAnswer, ItemRequest
from loadgen.analysis.trust.study import TargetAnswers, TrustStudy, study

BATCHES = (1, 4, 16, 64)
REPEATS = (1, 2, 3)
WOBBLE = {1: 0.99, 2: 1.0, 3: 1.01}
"""Repeats differ by 1%, awq's the other way round."""


def cells(base: CellSummary, **changed: Any) -> list[CellSummary]:
    """fp16 makes 100 B tokens/s; awq (64 / B) ^ 0.5 / 2 times that: 4 times at B = 1, as many at 16, half at 64."""
    made = []
    for target in ("fp16", "awq"):
        for b in BATCHES:
            for repeat in REPEATS:
                speed = 100.0 * b * (1 if target == "fp16" else (64 / b) ** 0.5 / 2)
                wobble = WOBBLE[repeat] if target == "fp16" else WOBBLE[4 - repeat]
                joules = 1e5 / speed * (1.5 if target == "awq" else 1.0)
                energy = msgspec.structs.replace(
                    base.energy, energy_per_query_j=joules * wobble, energy_hli_per_query_j=1e5 / speed * wobble
                )
                made.append(
                    msgspec.structs.replace(
                        base, target=target, precision=target, concurrency=b, repeat=repeat, running_mean=float(b),
                        tokens_per_s=speed * wobble, energy=energy,
                        memory_needed_bytes=4_000 if target == "awq" else 12_000, **changed,
                    )
                )  # fmt: skip
    return made


def graded(right: int) -> Answers:
    """Answers to 200 items, the first `right` ones correct."""
    return {
        f"q{k}": [GradedAnswer(repeat=1, outcome="correct" if k < right else "wrong", correct=k < right)]
        for k in range(200)
    }


def trusted() -> tuple[dict[tuple[str, int], Answers], TrustStudy]:
    """fp16 right on 120 of 200 items at every B, awq on 114 of them."""
    answers = {("fp16", b): graded(120) for b in BATCHES} | {("awq", b): graded(114) for b in BATCHES}
    asked = {f"q{k}": ItemRequest(prompt_sha="0", max_tokens=256, sampling={}) for k in range(200)}
    sides = [TargetAnswers(target=t, concurrency=b, answers=given, asked=asked) for (t, b), given in answers.items()]
    return answers, study(sides, {}, reference="fp16")


def answered(made: list[CellSummary]) -> RunResult:
    """What the analysis says of the cells and those answers."""
    answers, trust = trusted()
    return run_result(made, answers, trust, reference="fp16", settings=IndexSettings())
