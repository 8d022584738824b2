"""Agreement: how often two answers to the same item are alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, product

import msgspec
import numpy as np

from loadgen.analysis.trust.answers import Answer, Answers, given

Pair = tuple[Answer, Answer]


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
    return _agreement(list(product(ours[item], theirs[item])) for item in ours if item in theirs)


def within(sides: Iterable[Answers]) -> Agreement:
    """Answers with other answers of the same side: the noise floor of asking again. An item counts once per side."""
    return _agreement(list(combinations(answered, 2)) for side in sides for answered in _repeated(side))


def _repeated(side: Answers) -> Iterator[Sequence[Answer]]:
    return (answered for answered in given(side).values() if len(answered) > 1)


def _agreement(items: Iterable[Sequence[Pair]]) -> Agreement:
    flips, same = [], []
    for pairs in items:
        flips.append(sum(a.correct != b.correct for a, b in pairs) / len(pairs))
        known = [a.text_sha == b.text_sha for a, b in pairs if a.text_sha is not None and b.text_sha is not None]
        if known:
            same.append(sum(known) / len(known))
    return Agreement(
        items=len(flips),
        flip_rate=float(np.mean(flips)) if flips else None,
        text_identity_rate=float(np.mean(same)) if same else None,
    )
