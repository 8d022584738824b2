"""Dominance: is one precision better in everything (Pareto), as far as the data tell?

WeightSpace: for which weights of T, E and S each precision is the best choice.

SiDifference: which of two precisions has the higher SI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.analysis.celldata import Floats
from loadgen.analysis.estimate import CONFIDENCE, ROUNDING
from loadgen.analysis.indices.formulas import TAIL, Resampled, clamped, derive, si_linear
from loadgen.analysis.indices.point import Ratios
from loadgen.analysis.trust.accuracy import MARGIN
from loadgen.analysis.trust.answers import PairedItems, paired
from loadgen.analysis.trust.significance import bonett_price, changes, difference_interval
from loadgen.bounds import Count

METRICS = ("accuracy", "tokens_per_s", "energy_per_query_j", "memory_bytes")
EQUAL_MEMORY = 0.01
"""Memories closer than this share count as equal."""

Dominates = Literal["dominates", "dominates within margin", "does not", "cannot tell"]


class Dominance(msgspec.Struct, frozen=True, kw_only=True):
    """Whether `target` dominates `other` at one concurrency, and the metrics that are established either way."""

    concurrency: int
    target: str
    other: str
    verdict: Dominates
    items: int | None = None
    """Items that both answered, which the verdict on accuracy rests on; None where the scores are not known."""
    accuracy_margin: float = MARGIN
    """`dominates within margin`: the accuracy is proven to be less than this (a proportion) lower, not as good."""
    better: tuple[str, ...]
    worse: tuple[str, ...]
    unknown: tuple[str, ...]
    """Metrics that one of them lacks, or has from another source."""


def dominances(concurrency: int, of_all: Sequence[Ratios]) -> Iterator[Dominance]:
    """One for every ordered pair."""
    return (dominance(concurrency, one, other) for one, other in permutations(of_all, 2))


def dominance(concurrency: int, one: Ratios, other: Ratios) -> Dominance:
    """`dominates`: as good in all four metrics and better in one, each at 97.5% confidence; `dominates within margin`:
    the same but for the accuracy, which is proven to be less than `MARGIN` lower. `does not`: worse in one, at 97.5%
    over all metrics together (Bonferroni)."""
    pairs = paired(one.scores, other.scores)
    found = dict(zip(METRICS, (_accuracy(one, other, pairs), *map(_proven, _advantages(one, other))), strict=True))
    known = {metric: proven for metric, proven in found.items() if proven is not None}
    better = tuple(metric for metric, proven in known.items() if proven.better)
    worse = tuple(metric for metric, proven in known.items() if proven.worse)
    verdict: Dominates = "cannot tell"
    if worse:
        verdict = "does not"
    elif better and len(known) == len(METRICS) and all(p.as_good for m, p in known.items() if m != "accuracy"):
        accuracy = known["accuracy"]
        verdict = "dominates" if accuracy.as_good else "dominates within margin" if accuracy.within else "cannot tell"
    return Dominance(
        concurrency=concurrency,
        target=one.target,
        other=other.target,
        verdict=verdict,
        items=pairs.n if pairs is not None else None,
        better=better,
        worse=worse,
        unknown=tuple(m for m in METRICS if m not in known),
    )


class _Proven(NamedTuple):
    """What is proven of one metric."""

    better: bool
    worse: bool
    as_good: bool
    within: bool = False
    """The accuracy is not lower by the margin."""


def _proven(draws: Floats | None) -> _Proven | None:
    if draws is None:
        return None
    return _Proven(
        better=bool((draws > 0).mean() >= 1 - TAIL),
        worse=bool((draws < 0).mean() >= 1 - TAIL / len(METRICS)),
        as_good=bool((draws >= 0).mean() >= 1 - TAIL),
    )


def _accuracy(one: Ratios, other: Ratios, pairs: PairedItems | None) -> _Proven | None:
    """By Bonett and Price's interval of the ratio, and Tango's of the difference, over the items that both answered.
    Draws of the ratio to the reference would not do: two targets that lost the same items have the same draws."""
    if pairs is None:
        return _proven(_difference(one.t, other.t))
    lo, _ = bonett_price(pairs)
    _, hi = bonett_price(pairs, confidence=1 - 2 * TAIL / len(METRICS))
    within = difference_interval(changes(pairs))[0] > -MARGIN
    return _Proven(better=lo > 1, worse=hi is not None and hi < 1, as_good=lo >= 1, within=within)


def _advantages(one: Ratios, other: Ratios) -> Iterator[Floats | None]:
    """Draws of one's advantage over the other in speed, energy and memory: above 0 better."""
    yield _difference(one.eta, other.eta)
    sources = {ratios.energy.source for ratios in (one, other) if ratios.energy}
    yield _difference(one.saving, other.saving) if len(sources) < 2 else None
    memories = {ratios.memory_source for ratios in (one, other)} - {None}
    yield _difference(one.rho, other.rho, equal=EQUAL_MEMORY) if len(memories) < 2 else None


def _difference(ours: Resampled | None, theirs: Resampled | None, *, equal: float = ROUNDING) -> Floats | None:
    if ours is None or theirs is None or ours.draws is None or theirs.draws is None:
        return None
    with np.errstate(all="ignore"):
        relative = ours.draws / theirs.draws - 1
    relative = relative[~np.isnan(relative)]
    return np.where(np.abs(relative) <= equal, 0.0, relative)


WEIGHTS = 20_000
"""Drawn from the simplex: a share is known to 0.7 pp (95%)."""
UNCERTAIN_WEIGHTS = 2_000
UNCERTAIN_DRAWS = 500

Pillars = tuple[Resampled, Resampled, Resampled]


class WeightShare(msgspec.Struct, frozen=True, kw_only=True):
    """Shares (0 to 1) of all weights that a precision wins, with the highest linear SI."""

    target: str
    share: float
    lo: float | None = None
    hi: float | None = None
    """95% over the joint draws."""
    established: float | None = None
    """Share of the weights that it wins in at least 95% of the draws."""


class WeightSpace(msgspec.Struct, frozen=True, kw_only=True):
    """One concurrency; `clamped` with S as it enters SI, `raw` with S above 1 counted. Ties go to the reference."""

    concurrency: int
    clamped: tuple[WeightShare, ...]
    raw: tuple[WeightShare, ...]
    left_out: tuple[str, ...]
    """Precisions without T, E or S."""


def weight_space(concurrency: int, of_all: Sequence[Ratios], *, seed: int = 0) -> WeightSpace:
    """The shares of the targets with all three pillars, the reference (`reference_ratios`) first; weights uniform on
    the simplex, Dirichlet(1, 1, 1)."""
    raw = {ratios.target: (ratios.t, ratios.e, ratios.s) for ratios in of_all if ratios.t and ratios.e and ratios.s}
    held = {target: (t, e, derive(clamped, s)) for target, (t, e, s) in raw.items()}
    return WeightSpace(
        concurrency=concurrency,
        clamped=_shares(held, seed),
        raw=_shares(raw, seed),
        left_out=tuple(ratios.target for ratios in of_all if ratios.target not in raw),
    )


def _shares(pillars: Mapping[str, Pillars], seed: int) -> tuple[WeightShare, ...]:
    weights = np.random.default_rng([seed, 2]).dirichlet((1, 1, 1), WEIGHTS)
    values = np.array([[figure.value for figure in ours] for ours in pillars.values()])
    won = _wins(weights, values).mean(axis=0)
    shares = [WeightShare(target=name, share=float(share)) for name, share in zip(pillars, won, strict=True)]
    draws = _stacked(pillars)
    if draws is None:
        return tuple(shares)
    wins = np.stack([_wins(weights[:UNCERTAIN_WEIGHTS], draw) for draw in draws])
    lo, hi = np.quantile(wins.mean(axis=1), [TAIL, 1 - TAIL], axis=0).tolist()
    established = (wins.mean(axis=0) >= CONFIDENCE).mean(axis=0).tolist()
    return tuple(
        msgspec.structs.replace(share, lo=lo[at], hi=hi[at], established=established[at])
        for at, share in enumerate(shares)
    )


def _stacked(pillars: Mapping[str, Pillars]) -> Floats | None:
    """Draw x precision x pillar; None where one has no draws. Draws without a value are left out."""
    columns = [figure.draws for ours in pillars.values() for figure in ours]
    known = [column for column in columns if column is not None]
    if len(known) < len(columns):
        return None
    table = np.stack(np.broadcast_arrays(*known), axis=1)
    table = table[np.isfinite(table).all(axis=1)][:UNCERTAIN_DRAWS]
    return table.reshape(len(table), len(pillars), 3) if len(table) > 1 else None


def _wins(weights: Floats, values: Floats) -> NDArray[np.bool_]:
    """Weight x precision: which one has the highest SI."""
    wins: NDArray[np.bool_] = np.argmax(weights @ values.T, axis=1)[:, None] == np.arange(len(values))
    return wins


class SiDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a target's SI is higher or lower than another's at one concurrency, from their joint draws."""

    target: str
    other: str
    concurrency: Count
    higher: bool
    """The direction that `p` speaks for."""
    p: float
    """Two-sided, of this concurrency alone: a claim over several needs Holm's correction."""


def si_differences(
    concurrency: int, of_all: Sequence[Ratios], weights: tuple[float, float, float]
) -> Iterator[SiDifference]:
    """Every unordered pair whose SI has draws."""
    known: list[tuple[str, list[Floats]]] = []
    for ratios in of_all:
        draws = [found.draws for found in ratios.index(si_linear, weights) or () if found.draws is not None]
        if len(draws) == 2:
            known.append((ratios.target, draws))
    for (target, ours), (other, theirs) in combinations(known, 2):
        lower, higher = _p_below(ours, theirs), _p_below(theirs, ours)
        p = min(1.0, 2 * min(lower, higher))
        yield SiDifference(target=target, other=other, concurrency=concurrency, higher=higher < lower, p=p)


def _p_below(ours: Sequence[Floats], theirs: Sequence[Floats]) -> float:
    """One-sided p that our SI is not below theirs. Ours is below if one of its two figures lies below both of theirs;
    two chances cost twice the p, as in `least`."""
    ways = []
    for draws in ours:
        misses = [(1 + np.count_nonzero(~(draws < other))) / (1 + max(len(draws), len(other))) for other in theirs]
        ways.append(max(misses))
    return float(min(1.0, 2 * min(ways)))
