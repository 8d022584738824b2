"""Speed: tokens/s of all slots together and of one, which the paper does not tell apart."""

from __future__ import annotations

import math

import msgspec

from loadgen.analysis.indices.point import OperatingPoint


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """Of one target at one concurrency: geometric means over its repeats; None: not measured."""

    target: str
    concurrency: int
    running_mean: float | None
    tokens_per_s: float | None
    """Aggregate."""
    tokens_per_s_per_sequence: float | None
    """Aggregate over the running batch: equal to it at B = 1 only."""
    step_s: float | None
    """Running batch over the aggregate: seconds from a sequence's token to its next."""


def speed(point: OperatingPoint) -> Speed:
    """Of a point; the running batch must be known for what is told per sequence."""
    rates = point.by_repeat("tokens_per_s").values()
    aggregate = math.exp(sum(map(math.log, rates)) / len(rates)) if rates else None
    running = point.running_mean
    per_sequence = aggregate / running if aggregate and running else None
    return Speed(
        target=point.target,
        concurrency=point.concurrency,
        running_mean=running,
        tokens_per_s=aggregate,
        tokens_per_s_per_sequence=per_sequence,
        step_s=1 / per_sequence if per_sequence else None,
    )
