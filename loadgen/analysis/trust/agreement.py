"""Agreement: how often two answers to the same item are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from loadgen.analysis.trust.answers import Answer, Answers, given


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
