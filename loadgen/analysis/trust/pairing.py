"""PairedItems: the same items answered by a target and by the reference; and when they may not be paired."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.trust.answers import Answers, item_means


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """How an item was put to a server."""

    prompt_sha: str
    max_tokens: int | None
    sampling: Mapping[str, object]
    """Whatever else decides the answer: temperature, top_p, seed, stops, API, thinking."""


class PairedItems(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of correct answers (0 to 1), one entry per item that both sides answered.

    With one answer per item they are 0 or 1. With several (repeats, a window that cycles the data) the item stays the
    unit of everything: its answers are one cluster.
    """

    item_ids: tuple[str, ...]
    reference: Floats
    target: Floats

    @property
    def n(self) -> int:
        return len(self.item_ids)

    @property
    def difference(self) -> Floats:
        """Target minus reference of each item, -1 to 1."""
        return self.target - self.reference


def pair_items(target: Answers, reference: Answers) -> PairedItems:
    """Items that both sides answered, in the reference's order. Raises ValueError if there is none."""
    ours, theirs = item_means(target), item_means(reference)
    shared = tuple(item for item in theirs if item in ours)
    if not shared:
        raise ValueError("target and reference share no answered item")
    return PairedItems(
        item_ids=shared,
        reference=np.array([theirs[item] for item in shared]),
        target=np.array([ours[item] for item in shared]),
    )


def pairing_refusal(target: Mapping[str, Asked], reference: Mapping[str, Asked]) -> str | None:
    """Why the two sides cannot be compared item by item, in one sentence; None if they can.

    Prompts, token limits and sampling settings must be equal on every shared item: otherwise a difference of answers
    is no difference of precisions.
    """
    shared = [item for item in reference if item in target]
    if not shared:
        return "not compared: the two sides were asked no item in common; ask both the same items"
    for what, differs in {
        "prompts": [item for item in shared if target[item].prompt_sha != reference[item].prompt_sha],
        "token limits": [item for item in shared if target[item].max_tokens != reference[item].max_tokens],
        "sampling settings": [item for item in shared if target[item].sampling != reference[item].sampling],
    }.items():
        if differs:
            first = differs[0]
            return (
                f"not compared: {what} differ on {len(differs)} of {len(shared)} items, as on {first} "
                f"({_shown(what, target[first], reference[first])}); ask both sides alike"
            )
    return None


def _shown(what: str, ours: Asked, theirs: Asked) -> str:
    if what == "prompts":
        return f"prompt {ours.prompt_sha[:8]} against {theirs.prompt_sha[:8]}"
    if what == "token limits":
        return f"{ours.max_tokens} against {theirs.max_tokens} tokens"
    settings = {
        name: (ours.sampling.get(name), theirs.sampling.get(name)) for name in {**theirs.sampling, **ours.sampling}
    }
    return ", ".join(f"{name} {our} against {their}" for name, (our, their) in settings.items() if our != their)
