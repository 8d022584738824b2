"""OperatingPoint: what was measured of a target at one concurrency, repeat by repeat and item by item."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from loadgen.errors import UsageError

UNEQUAL_BATCH = 0.03
"""Running batches further apart than this share are not the same B."""


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """One valid cell; None: not measured. Raises UsageError for a figure that is no number above 0."""

    repeat: int
    running_mean: float | None = None
    """Measured running batch."""
    tokens_per_s: float | None = None
    """Aggregate over all slots."""
    energy_per_query_j: float | None = None
    """Measured: counter or integral of the power."""
    energy_hli_per_query_j: float | None = None
    """Board power x time: a bound."""
    tokens_per_query: float | None = None
    memory_needed_bytes: float | None = None
    """Weights and the KV cache in use at its peak."""
    memory_peak_bytes: float | None = None
    """NVML's peak, a server's reservation included."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__[1:]:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} of repeat {self.repeat} is {value}, give a number above 0 or None")


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Repeats of several targets with the same number ran next to each other: they are compared pairwise."""

    target: str
    concurrency: int
    repeats: tuple[Repeat, ...] = ()
    scores: Mapping[str, float] = {}
    """Item -> share of correct answers (0 to 1), in the order asked; empty: not graded, or not comparable."""
    lengths: Mapping[str, float] = {}
    """Item -> mean output tokens of its answers. Joules per query are then compared over the items of both sides;
    empty: not known, each side's `energy_per_query_j` is taken unchanged."""

    def by_repeat(self, figure: str) -> dict[int, float]:
        """The repeats in which `figure`, a field of Repeat, was measured."""
        return {repeat.repeat: value for repeat in self.repeats if (value := getattr(repeat, figure)) is not None}

    def alone(self, repeat: int) -> OperatingPoint:
        """The same point as if this repeat were the only one."""
        return msgspec.structs.replace(self, repeats=tuple(r for r in self.repeats if r.repeat == repeat))

    def joules_per_token(self, figure: str) -> dict[int, float]:
        """`figure`, joules per query, over the mean length of the same cell's answers; by repeat."""
        tokens = self.by_repeat("tokens_per_query")
        return {at: joules / tokens[at] for at, joules in self.by_repeat(figure).items() if at in tokens}

    @property
    def running_mean(self) -> float | None:
        """Mean over repeats; None where no repeat has it."""
        known = self.by_repeat("running_mean")
        return sum(known.values()) / len(known) if known else None


def batch_refusal(target: OperatingPoint, reference: OperatingPoint) -> str | None:
    """Why speed and energy of the two cannot be compared (paper: equal B), in one sentence; None if they can."""
    if target.concurrency != reference.concurrency:
        return (
            f"not compared: {target.target} was asked at B = {target.concurrency}, {reference.target} at "
            f"B = {reference.concurrency}; measure both at the same B"
        )
    ours, theirs = target.running_mean, reference.running_mean
    if ours is None or theirs is None or abs(ours / theirs - 1) <= UNEQUAL_BATCH:
        return None
    return (
        f"not compared: {ours:.4g} sequences of {target.target} ran at a time, {theirs:.4g} of {reference.target}, "
        f"more than {UNEQUAL_BATCH:.0%} apart at B = {target.concurrency}; find out why the batch was not full"
    )
