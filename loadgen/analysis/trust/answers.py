"""Answer: a graded answer; Answers: all answers of a target at one concurrency, by item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one request was answered, or several of one repeat alike."""

    repeat: int
    times: int = 1
    """How many requests were answered so."""
    outcome: str
    """correct, wrong, unparsed, truncated, empty or error."""
    correct: bool
    guessed: bool = False
    """Read by no mark: the last number or letter, or an option's value."""
    stopped: bool = False
    """Ended by a stop string."""
    output_tokens: int | None = None
    text_sha: str | None = None
    """Digest of the answer's text, to tell identical texts; None where it is of no interest."""


Answers = Mapping[str, Sequence[Answer]]


def given(answers: Answers) -> dict[str, list[Answer]]:
    """The answers without failed requests (outcome `error`); items left without an answer are dropped.

    A failed request says nothing about the model: it makes a cell invalid when there are many, never less accurate.
    Truncated, empty and unparsed answers stay: they are answers, and wrong.
    """
    kept = {item: [answer for answer in answered if answer.outcome != "error"] for item, answered in answers.items()}
    return {item: answered for item, answered in kept.items() if answered}


def item_means(answers: Answers) -> dict[str, float]:
    """Share of correct answers (0 to 1) of every item that was answered."""
    return _shares(answers, lambda answer: answer.correct)


def count(answered: Sequence[Answer]) -> int:
    """Requests that these answers stand for."""
    return sum(answer.times for answer in answered)


def outcome_rate(answers: Answers, outcome: str) -> float | None:
    """Share of answers with this outcome (0 to 1), each item weighing the same; None without answers."""
    return share_of(answers, lambda answer: answer.outcome == outcome)


def share_of(answers: Answers, chosen: Callable[[Answer], bool]) -> float | None:
    """Share of answers that are `chosen` (0 to 1), each item weighing the same; None without answers."""
    shares = list(_shares(answers, chosen).values())
    return float(np.mean(shares)) if shares else None


def mean_output_tokens(answers: Answers) -> float | None:
    """Tokens per answer where the server reported them, each item weighing the same; None if it never did."""
    means = list(item_lengths(answers).values())
    return float(np.mean(means)) if means else None


def item_lengths(answers: Answers) -> dict[str, float]:
    """Mean output tokens of every item that was answered and whose tokens the server reported."""
    means = {}
    for item, answered in given(answers).items():
        tokens = asked = 0
        for answer in answered:
            if answer.output_tokens is not None:
                tokens += answer.output_tokens * answer.times
                asked += answer.times
        if asked:
            means[item] = tokens / asked
    return means


def _shares(answers: Answers, chosen: Callable[[Answer], bool]) -> dict[str, float]:
    """Of the answers to each item that are not errors; items without one are dropped."""
    shares = {}
    for item, answered in answers.items():
        some = asked = 0
        for answer in answered:
            if answer.outcome != "error":
                asked += answer.times
                some += answer.times * chosen(answer)
        if asked:
            shares[item] = some / asked
    return shares
