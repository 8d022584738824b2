"""Dominance: is one precision better in everything (Pareto), as far as the data tell?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.indices.drawn import ROUNDING, TAIL, Drawn
from loadgen.analysis.indices.standing import Standing

METRICS = ("accuracy", "tokens_per_s", "energy_per_query_j", "memory_bytes")
EQUAL_MEMORY = 0.01
"""Memories closer than this share count as equal."""

Dominates = Literal["dominates", "does not", "cannot tell"]
Advantage = Drawn | None


class Dominance(msgspec.Struct, frozen=True, kw_only=True):
    """Of `target` over `other` at one concurrency, and the metrics that are established either way."""

    concurrency: int
    target: str
    other: str
    verdict: Dominates
    better: tuple[str, ...]
    worse: tuple[str, ...]
    unknown: tuple[str, ...]
    """Metrics that one of them lacks, or has from another source."""


def dominances(concurrency: int, standings: Sequence[Standing]) -> Iterator[Dominance]:
    """Of every ordered pair."""
    return (dominance(concurrency, one, other) for one, other in permutations(standings, 2))


def dominance(concurrency: int, one: Standing, other: Standing) -> Dominance:
    """`dominates`: as good in all four metrics and better in one, each at 97.5% confidence. `does not`: worse in one,
    at 97.5% over all metrics together (Bonferroni)."""
    advantages = dict(zip(METRICS, _advantages(one, other), strict=True))
    known = {metric: draws for metric, draws in advantages.items() if draws is not None}
    better = tuple(m for m, draws in known.items() if (draws > 0).mean() >= 1 - TAIL)
    worse = tuple(m for m, draws in known.items() if (draws < 0).mean() >= 1 - TAIL / len(METRICS))
    verdict: Dominates = "cannot tell"
    if worse:
        verdict = "does not"
    elif better and len(known) == len(METRICS) and all((d >= 0).mean() >= 1 - TAIL for d in known.values()):
        verdict = "dominates"
    return Dominance(
        concurrency=concurrency,
        target=one.target,
        other=other.target,
        verdict=verdict,
        better=better,
        worse=worse,
        unknown=tuple(m for m in METRICS if m not in known),
    )


def _advantages(one: Standing, other: Standing) -> Iterator[Floats | None]:
    """Draws of one's advantage over the other, metric by metric: above 0 better."""
    yield _difference(one.t, other.t)
    yield _difference(one.eta, other.eta)
    sources = {standing.energy.source for standing in (one, other) if standing.energy}
    yield _difference(one.saving, other.saving) if len(sources) < 2 else None
    memories = {standing.memory_source for standing in (one, other)} - {None}
    yield _difference(one.rho, other.rho, equal=EQUAL_MEMORY) if len(memories) < 2 else None


def _difference(ours: Advantage, theirs: Advantage, *, equal: float = ROUNDING) -> Floats | None:
    if ours is None or theirs is None or ours.draws is None or theirs.draws is None:
        return None
    with np.errstate(all="ignore"):
        relative = ours.draws / theirs.draws - 1
    relative = relative[~np.isnan(relative)]
    return np.where(np.abs(relative) <= equal, 0.0, relative)
