"""Dominance: is one precision better in everything (Pareto), as far as the data tell?

WeightSpace: for which weights of T, E and S each precision is the best choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.analysis.celldata import Floats
from loadgen.analysis.indices.formulas import ROUNDING, TAIL, Drawn, clamped, derive
from loadgen.analysis.indices.standing import Standing
from loadgen.analysis.intervals import CONFIDENCE
from loadgen.analysis.trust.accuracy import MARGIN
from loadgen.analysis.trust.pairing import paired
from loadgen.analysis.trust.significance import bonett_price, changes, difference_interval

METRICS = ("accuracy", "tokens_per_s", "energy_per_query_j", "memory_bytes")
EQUAL_MEMORY = 0.01
"""Memories closer than this share count as equal."""

Dominates = Literal["dominates", "dominates within margin", "does not", "cannot tell"]
Advantage = Drawn | None


class Dominance(msgspec.Struct, frozen=True, kw_only=True):
    """Of `target` over `other` at one concurrency, and the metrics that are established either way."""

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


def dominances(concurrency: int, standings: Sequence[Standing]) -> Iterator[Dominance]:
    """Of every ordered pair."""
    return (dominance(concurrency, one, other) for one, other in permutations(standings, 2))


def dominance(concurrency: int, one: Standing, other: Standing) -> Dominance:
    """`dominates`: as good in all four metrics and better in one, each at 97.5% confidence; `dominates within margin`:
    the same but for the accuracy, which is proven to be less than `MARGIN` lower. `does not`: worse in one, at 97.5%
    over all metrics together (Bonferroni)."""
    found = dict(zip(METRICS, (_accuracy(one, other), *map(_standing, _advantages(one, other))), strict=True))
    known = {metric: standing for metric, standing in found.items() if standing is not None}
    better = tuple(metric for metric, standing in known.items() if standing.better)
    worse = tuple(metric for metric, standing in known.items() if standing.worse)
    verdict: Dominates = "cannot tell"
    if worse:
        verdict = "does not"
    elif better and len(known) == len(METRICS) and all(s.as_good for m, s in known.items() if m != "accuracy"):
        accuracy = known["accuracy"]
        verdict = "dominates" if accuracy.as_good else "dominates within margin" if accuracy.within else "cannot tell"
    return Dominance(
        concurrency=concurrency,
        target=one.target,
        other=other.target,
        verdict=verdict,
        items=pairs.n if (pairs := paired(one.scores, other.scores)) is not None else None,
        better=better,
        worse=worse,
        unknown=tuple(m for m in METRICS if m not in known),
    )


class _Metric(NamedTuple):
    """What is proven of one metric."""

    better: bool
    worse: bool
    as_good: bool
    within: bool = False
    """Of accuracy: not lower by the margin."""


def _standing(draws: Floats | None) -> _Metric | None:
    if draws is None:
        return None
    return _Metric(
        better=bool((draws > 0).mean() >= 1 - TAIL),
        worse=bool((draws < 0).mean() >= 1 - TAIL / len(METRICS)),
        as_good=bool((draws >= 0).mean() >= 1 - TAIL),
    )


def _accuracy(one: Standing, other: Standing) -> _Metric | None:
    """By Bonett and Price's interval of the ratio, and Tango's of the difference, over the items that both answered.
    Draws of the ratio to the reference would not do: two targets that lost the same items have the same draws."""
    pairs = paired(one.scores, other.scores)
    if pairs is None:
        return _standing(_difference(one.t, other.t))
    lo, _ = bonett_price(pairs)
    _, hi = bonett_price(pairs, confidence=1 - 2 * TAIL / len(METRICS))
    return _Metric(
        better=lo > 1,
        worse=hi is not None and hi < 1,
        as_good=lo >= 1,
        within=difference_interval(changes(pairs))[0] > -MARGIN,
    )


def _advantages(one: Standing, other: Standing) -> Iterator[Floats | None]:
    """Draws of one's advantage over the other in speed, energy and memory: above 0 better."""
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


WEIGHTS = 20_000
"""Drawn from the simplex: a share is known to 0.7 pp (95%)."""
UNCERTAIN_WEIGHTS = 2_000
UNCERTAIN_DRAWS = 500

Pillars = tuple[Drawn, Drawn, Drawn]


class WeightShare(msgspec.Struct, frozen=True, kw_only=True):
    """Shares (0 to 1) of all weights that a precision wins, with the highest linear SI."""

    target: str
    share: float
    lo: float | None = None
    hi: float | None = None
    """95% over the joint draws."""
    established: float | None = None
    """Of weights that it wins in at least 95% of the draws."""


class WeightSpace(msgspec.Struct, frozen=True, kw_only=True):
    """One concurrency; `clamped` with S as it enters SI, `raw` with S above 1 counted. Ties go to the reference."""

    concurrency: int
    clamped: tuple[WeightShare, ...]
    raw: tuple[WeightShare, ...]
    left_out: tuple[str, ...]
    """Precisions without T, E or S."""


def weight_space(concurrency: int, standings: Sequence[Standing], *, seed: int = 0) -> WeightSpace:
    """Of the standings with all three pillars, the reference's (`reference_standing`) first; weights uniform on the
    simplex, Dirichlet(1, 1, 1)."""
    raw = {s.target: (s.t, s.e, s.s) for s in standings if s.t and s.e and s.s}
    held = {target: (t, e, derive(clamped, s)) for target, (t, e, s) in raw.items()}
    return WeightSpace(
        concurrency=concurrency,
        clamped=_shares(held, seed),
        raw=_shares(raw, seed),
        left_out=tuple(s.target for s in standings if s.target not in raw),
    )


def _shares(pillars: Mapping[str, Pillars], seed: int) -> tuple[WeightShare, ...]:
    weights = np.random.default_rng([seed, 2]).dirichlet((1, 1, 1), WEIGHTS)
    values = np.array([[figure.value for figure in ours] for ours in pillars.values()])
    share = _wins(weights, values).mean(axis=0)
    draws = _stacked(pillars)
    if draws is None:
        return tuple(WeightShare(target=name, share=float(won)) for name, won in zip(pillars, share, strict=True))
    wins = np.stack([_wins(weights[:UNCERTAIN_WEIGHTS], draw) for draw in draws])
    lo, hi = np.quantile(wins.mean(axis=1), [TAIL, 1 - TAIL], axis=0)
    established = (wins.mean(axis=0) >= CONFIDENCE).mean(axis=0)
    ends = zip(pillars, share, lo, hi, established, strict=True)
    return tuple(
        WeightShare(target=name, share=float(won), lo=float(low), hi=float(high), established=float(sure))
        for name, won, low, high, sure in ends
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
