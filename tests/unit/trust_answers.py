"""Answers and paired items for the tests of trust."""

from __future__ import annotations

import numpy as np

from loadgen.analysis.trust.answers import GradedAnswer, PairedItems


def answer(
    correct: bool, *, repeat: int = 1, outcome: str = "", tokens: int | None = None, text: str = ""
) -> GradedAnswer:
    """Its outcome follows from `correct` unless given."""
    return GradedAnswer(
        repeat=repeat,
        outcome=outcome or ("correct" if correct else "wrong"),
        correct=correct,
        output_tokens=tokens,
        text_sha=text or None,
    )


def sides(
    both_right: int, lost: int, won: int, both_wrong: int
) -> tuple[dict[str, list[GradedAnswer]], dict[str, list[GradedAnswer]]]:
    """Target's and reference's answers, one per item, with this 2 x 2 table."""
    target, reference = {}, {}
    cells = [(True, True)] * both_right + [(False, True)] * lost + [(True, False)] * won + [(False, False)] * both_wrong
    for place, (ours, theirs) in enumerate(cells):
        target[f"item-{place}"], reference[f"item-{place}"] = [answer(ours)], [answer(theirs)]
    return target, reference


def pairs(both_right: int, lost: int, won: int, both_wrong: int) -> PairedItems:
    """The same as paired items."""
    counts = [both_right, lost, won, both_wrong]
    return paired(np.repeat([1.0, 1.0, 0.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts))


def paired(reference: np.ndarray, target: np.ndarray) -> PairedItems:
    return PairedItems(
        item_ids=tuple(f"item-{place}" for place in range(len(reference))),
        reference=np.asarray(reference, dtype=float),
        target=np.asarray(target, dtype=float),
    )


def paper(lost: int) -> PairedItems:
    """The paper's Mistral-7B on GSM8K, NF4 against FP16: 520 and 569 right of 1319; `lost` of them by NF4 only."""
    return pairs(569 - lost, lost, lost - 49, 1319 - 569 - (lost - 49))
