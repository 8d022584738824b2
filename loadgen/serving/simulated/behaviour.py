"""Behaviour: how often a simulated precision is right, and on which items it differs from FP16."""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import Literal

import msgspec

from loadgen.errors import UsageError

REFERENCE_ACCURACY = 0.52
"""What simulated FP16 gets right; discordances refer to it."""
Fate = Literal["correct", "wrong", "truncated", "unparsed"]


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """How a precision answers; shares of all items, 0 to 1."""

    accuracy: float
    length_factor: float = 1.0
    """Mean answer length over that of FP16."""
    discordance: float = 0.0
    """Items on which it and the reference are not both right or both not."""
    truncated: float = 0.0
    """Answers that never end and meet every limit."""
    unparsed: float = 0.0
    """Answers that name no result."""
    batch_flips: float = 0.0
    """Items that become right or wrong by the size of the batch they are answered in, as many the one as the other."""
    reference_accuracy: float = REFERENCE_ACCURACY

    def but(
        self,
        *,
        accuracy: float | None = None,
        discordance: float | None = None,
        truncated: float | None = None,
        unparsed: float | None = None,
        batch_flips: float | None = None,
        reference_accuracy: float | None = None,
    ) -> Behaviour:
        """The same with what is given; what is not given yields to it where both cannot be.

        Raises UsageError for shares outside of 0 to 1, or that cannot be together.
        """
        given = {
            "accuracy": accuracy,
            "discordance": discordance,
            "truncated": truncated,
            "unparsed": unparsed,
            "batch_flips": batch_flips,
            "reference_accuracy": reference_accuracy,
        }
        changes = {name: share for name, share in given.items() if share is not None}
        for name, share in changes.items():
            if not 0 <= share <= 1:
                raise UsageError(f"--{name.replace('_', '-')} {share:g} is not between 0 and 1")
        new = msgspec.structs.replace(self, **changes)
        a, reference = new.accuracy, new.reference_accuracy
        least, most = abs(reference - a), min(reference + a, 2 - reference - a)
        if discordance is None:
            new = msgspec.structs.replace(new, discordance=min(max(new.discordance, least), most))
        elif not least - 1e-9 <= discordance <= most + 1e-9:
            raise UsageError(
                f"--discordance {discordance:g} cannot be: accuracies {reference:g} and {a:g} differ on "
                f"{least:g} to {most:g} of the items"
            )
        told, kept = (truncated or 0) + (unparsed or 0), {"truncated": truncated, "unparsed": unparsed}
        if told > 1 - a + 1e-9:
            raise UsageError(f"--accuracy {a:g} leaves {1 - a:g} for --truncated and --unparsed, which are {told:g}")
        for name, known in kept.items():
            if known is None:
                new = msgspec.structs.replace(new, **{name: min(getattr(new, name), (1 - a - told) / 2)})
        return new


BEHAVIOURS = {
    "fp16": Behaviour(accuracy=0.52, truncated=0.002, unparsed=0.006),
    "bf16": Behaviour(accuracy=0.52, discordance=0.03, truncated=0.002, unparsed=0.006),
    "fp8": Behaviour(accuracy=0.515, length_factor=1.01, discordance=0.06, truncated=0.002, unparsed=0.006),
    "int8": Behaviour(accuracy=0.51, length_factor=1.01, discordance=0.07, truncated=0.002, unparsed=0.006),
    "bnb-int8": Behaviour(
        accuracy=0.51, length_factor=1.01, discordance=0.07, truncated=0.002, unparsed=0.006, batch_flips=0.02
    ),
    "awq": Behaviour(accuracy=0.49, length_factor=1.04, discordance=0.12, truncated=0.003, unparsed=0.008),
    "gptq": Behaviour(accuracy=0.48, length_factor=1.05, discordance=0.13, truncated=0.003, unparsed=0.009),
    "bnb-nf4": Behaviour(accuracy=0.47, length_factor=1.06, discordance=0.14, truncated=0.004, unparsed=0.010),
}


class Fates:
    """What becomes of each item at one precision: deterministic by seed, each share exact in expectation."""

    def __init__(self, behaviour: Behaviour, *, precision: str, seed: int) -> None:
        self._behaviour = behaviour
        self._precision = precision
        self._seed = seed

    def of(self, question: str, *, sample: str = "", batch: int | None = None) -> Fate:
        """The fate of one answer; `batch`: sequences in the batch, None where it shall not matter.

        A draw that all precisions share decides whether the reference is right; one of the precision's own, whether it
        differs. Lost and won items are (discordance ± difference of accuracies) / 2 of all.
        """
        b = self._behaviour
        a, reference = b.accuracy, b.reference_accuracy
        own = self.uniform("own", self._precision, question, sample)
        if self.uniform("answer", question, sample) < reference:
            right = own >= _ratio((b.discordance + reference - a) / 2, reference)
        else:
            right = own < _ratio((b.discordance - reference + a) / 2, 1 - reference)
        if batch is not None and b.batch_flips:
            flip = self.uniform("batch", self._precision, question, sample, str(round(math.log2(max(batch, 1)))))
            right ^= flip < _ratio(b.batch_flips / 2, a if right else 1 - a)
        if right:
            return "correct"
        how = self.uniform("how", self._precision, question, sample) * (1 - a)
        if how < b.truncated:
            return "truncated"
        return "unparsed" if how < b.truncated + b.unparsed else "wrong"

    def uniform(self, *key: str) -> float:
        """A draw from 0 to 1 that depends on the seed and the key alone."""
        return self.hash(*key) / 2**64

    def hash(self, *key: str) -> int:
        """64 bits that depend on the seed and the key alone."""
        data = "\0".join((str(self._seed), *key)).encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
