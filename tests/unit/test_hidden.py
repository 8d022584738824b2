"""What an accuracy does not show: answers cut off, unread, guessed or stopped, per target and B."""

from __future__ import annotations

import pandas as pd

from loadgen.analysis.trust.answers import GradedAnswer, guessed_rate, hidden_warnings, stopped_rate
from loadgen.reports.terminal import answered_lines

NAN = float("nan")


def answers(truncated: int, unparsed: int = 0, of: int = 100) -> dict[str, list[GradedAnswer]]:
    """So many items of each outcome, the others right and guessed."""
    outcomes = ["truncated"] * truncated + ["unparsed"] * unparsed
    outcomes += ["correct"] * (of - len(outcomes))
    return {
        f"q{k}": [GradedAnswer(repeat=0, outcome=o, correct=o == "correct", guessed=o == "correct", stopped=k % 4 == 0)]
        for k, o in enumerate(outcomes)
    }


def test_shares_are_those_of_the_answers_each_item_weighing_the_same() -> None:
    some = answers(10, 15)
    some["q99"] = [*some["q99"] * 3, GradedAnswer(repeat=1, outcome="wrong", correct=False)]
    assert guessed_rate(some) == (74 + 0.75) / 100
    assert stopped_rate(some) == 0.25
    assert guessed_rate({}) is None


def test_a_warning_names_max_tokens_also_where_all_arms_suffer_alike() -> None:
    sides = {("fp16", 4): answers(2), ("awq", 4): answers(2), ("awq", 8): answers(1)}
    assert hidden_warnings(sides, 256, lambda b: f"B = {b}") == [
        "2.0% of the answers of fp16 at B = 4 (and 2% or more in 1 of 2 others) were cut off by the token limit and "
        "count as wrong: raise --max-tokens (now 256)"
    ]
    (unread,) = hidden_warnings({("fp16", 4): answers(0, 3)}, None, lambda b: f"B = {b}")
    assert unread.startswith("3.0% of the answers of fp16 at B = 4 ended without an answer")
    assert "--max-tokens" in unread
    assert hidden_warnings({("fp16", 4): answers(1, 1)}, 256, str) == []


def test_the_terminal_says_n_and_the_shares_of_each_target_over_b() -> None:
    summary = pd.DataFrame({
        "target": ["fp16", "awq", "fp16", "awq"], "concurrency": [1, 1, 4, 4], "questions": [64, 64, 64, 60],
        "truncated_rate": [0, 0.031, 0, 0.05], "unparsed_rate": [0, 0, 0, 0],
        "guessed_rate": [0, 0.5, 0, 0.5], "stopped_rate": [0, 1, 0, 1],
    })  # fmt: skip
    assert answered_lines(summary, 200) == [
        "answers of fp16: n 64; none truncated, unparsed or guessed",
        "answers of awq: n 64/60; 3.1/5% truncated, 50% guessed, 100% ended by a stop string",
    ]
    assert answered_lines(summary.assign(questions=NAN), 200) == []
