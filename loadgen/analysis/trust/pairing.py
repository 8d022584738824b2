"""PairedItems and PairedLengths: the same items answered by a target and by the reference; and when they may not be
paired."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.celldata import Floats
from loadgen.analysis.intervals import CONFIDENCE, NORMAL_95
from loadgen.analysis.trust.answers import Answers, item_means

FEWEST_ITEMS = 20
"""Items that both sides must have completed before their mean lengths are compared: the error of a mean of so many is
known to about a sixth of itself, and Bonett and Price's interval was tested from this number on."""

Lengths = Mapping[str, float]
"""Item -> mean output tokens of its answers."""


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


class PairedLengths(msgspec.Struct, frozen=True, kw_only=True):
    """Output tokens per answer of the items that both sides completed. A comparison of joules per query needs them: in
    a timed window the faster side completes more items, and the mean length of its own items is another one."""

    item_ids: tuple[str, ...]
    target: Floats
    reference: Floats
    constant: bool = False
    """All answers of both sides have the same length, so that it does not matter which items were completed."""

    @property
    def n(self) -> int:
        return len(self.item_ids)

    @property
    def refusal(self) -> str | None:
        """Why the lengths cannot be compared, without a subject; None if they can."""
        if self.constant or self.n >= FEWEST_ITEMS:
            return None
        completed = f"{self.n or 'no'} item{'s were' if self.n > 1 else ' was'}"
        return f"{completed} completed by both sides, and their mean answer length needs {FEWEST_ITEMS}"

    @property
    def log_ratio(self) -> float:
        """Of the mean lengths, target over reference. Raises ValueError without an item."""
        if not self.n:
            raise ValueError("no item was completed by both sides")
        return math.log(float(self.target.mean()) / float(self.reference.mean()))

    @property
    def influence(self) -> Floats:
        """What each item adds to the error of `log_ratio` (delta method): the square root of the sum of squares is its
        standard error, widened so that the normal quantile gives Student's interval."""
        return influence(self.target) - influence(self.reference)

    @property
    def error(self) -> float:
        """Standard error of `log_ratio` that comes from the choice of items."""
        return math.sqrt(float((self.influence**2).sum()))


def influence(values: Floats) -> Floats:
    """What each item adds to the error of the logarithm of the mean of `values`, as in `PairedLengths.influence`."""
    n, mean = len(values), float(values.mean()) if len(values) else 0.0
    if n < 2 or mean == 0:
        return np.zeros(n)
    student = float(special.stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) / NORMAL_95
    return np.asarray((values / mean - 1) * student / math.sqrt(n * (n - 1)))


def pair_lengths(target: Lengths, reference: Lengths) -> PairedLengths | None:
    """Items whose length is known on both sides, in the reference's order; None if a side has no length at all."""
    if not target or not reference:
        return None
    values = {*target.values(), *reference.values()}
    constant = len(values) == 1
    shared = tuple(reference) if constant else tuple(item for item in reference if item in target)
    return PairedLengths(
        item_ids=shared,
        target=np.array([target.get(item, reference[item]) for item in shared]),
        reference=np.array([reference[item] for item in shared]),
        constant=constant,
    )


def paired(target: Mapping[str, float], reference: Mapping[str, float]) -> PairedItems | None:
    """Items that both answered, from their shares of correct answers, in the reference's order; None without one."""
    shared = tuple(item for item in reference if item in target)
    if not shared:
        return None
    return PairedItems(
        item_ids=shared,
        reference=np.array([reference[item] for item in shared]),
        target=np.array([target[item] for item in shared]),
    )


def pair_items(target: Answers, reference: Answers) -> PairedItems:
    """`paired` of the items' mean scores. Raises ValueError if there is no shared item."""
    pairs = paired(item_means(target), item_means(reference))
    if pairs is None:
        raise ValueError("target and reference share no answered item")
    return pairs


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
