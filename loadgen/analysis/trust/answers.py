"""Answer: a graded answer; Answers: all answers of a target at one concurrency, by item.

Agreement: how often two answers to the same item are alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

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


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Means over items of the shares of their answer pairs, 0 to 1; None without a pair."""

    items: int
    flip_rate: float | None
    """One right, the other wrong."""
    text_identity_rate: float | None
    """The same text, of pairs whose texts are known."""


def across(answers: Answers, others: Answers) -> Agreement:
    """Each answer with each of the other side's answers to the same item."""
    ours, theirs = given(answers), given(others)
    flips, same = [], []
    for item, answered in ours.items():
        if item in theirs:
            rights, others_right = _by_correctness(answered), _by_correctness(theirs[item])
            texts, other_texts = _by_text(answered), _by_text(theirs[item])
            changed = rights[True] * others_right[False] + rights[False] * others_right[True]
            flips.append(changed / (rights.total() * others_right.total()))
            if texts and other_texts:
                equal = sum(times * other_texts[text] for text, times in texts.items())
                same.append(equal / (texts.total() * other_texts.total()))
    return _agreement(flips, same)


def within(sides: Iterable[Answers]) -> Agreement:
    """Answers with other answers of the same side: the noise floor of asking again. An item counts once per side."""
    flips, same = [], []
    for side in sides:
        for answered in given(side).values():
            rights, texts = _by_correctness(answered), _by_text(answered)
            if rights.total() > 1:
                flips.append(rights[True] * rights[False] / _pairs(rights.total()))
            if texts.total() > 1:
                same.append(sum(map(_pairs, texts.values())) / _pairs(texts.total()))
    return _agreement(flips, same)


def _by_correctness(answered: Sequence[Answer]) -> Counter[bool]:
    counts: Counter[bool] = Counter()
    for answer in answered:
        counts[answer.correct] += answer.times
    return counts


def _by_text(answered: Sequence[Answer]) -> Counter[str]:
    """Of the texts that are known."""
    counts: Counter[str] = Counter()
    for answer in answered:
        if answer.text_sha is not None:
            counts[answer.text_sha] += answer.times
    return counts


def _pairs(answers: int) -> int:
    return answers * (answers - 1) // 2


def _agreement(flips: Sequence[float], same: Sequence[float]) -> Agreement:
    """Of each item's share."""
    return Agreement(
        items=len(flips),
        flip_rate=float(np.mean(flips)) if flips else None,
        text_identity_rate=float(np.mean(same)) if same else None,
    )
