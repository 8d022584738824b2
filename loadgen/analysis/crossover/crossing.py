"""Crossing: a batch B* at which the better side changes, proven or only suspected."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.crossover.band import STEPS, Band
from loadgen.analysis.crossover.sign import GridPoint

Direction = Literal["wins_below", "wins_above"]


class Crossing(msgspec.Struct, frozen=True, kw_only=True):
    """A sign change of the log-advantage, on the axis of the measured running batch."""

    b: float
    lo: float | None
    """95% interval: where the band of the curve contains 0. None: not bounded within the grid, or no noise known."""
    hi: float | None
    bracket: tuple[int, int]
    """Asked concurrencies: proven on both sides, or, for a suspected crossing, its neighbours on the grid."""
    direction: Direction
    """`wins_below`: the target is better below b."""
    probability: float | None
    """At least so sure are the signs on both sides: 1 - their one-sided p-values, adjusted over the grid."""
    established: bool
    """Both signs are proven, over the whole grid at 5%."""
    step: Literal["measured", "graphs"] | None = None
    """`measured`: the curve is much steeper in the interval than on both sides, so that it may jump; `graphs`: the
    interval was widened to batches that both servers captured CUDA graphs for."""


def crossings(points: Sequence[GridPoint], band: Band | None, firm: Sequence[GridPoint] = ()) -> list[Crossing]:
    """Every sign change by ascending batch.

    Established: between neighbouring proven points of opposite sign, which `firm` proves too (the same points under a
    more cautious noise; none: `points` themselves); if the means change sign several times there, one
    (the middle) is reported. Any other sign change of the means is suspected. Without a band all are.
    """
    changes = [i for i in range(len(points) - 1) if _up(points[i]) != _up(points[i + 1])]
    found = []
    for left, right in _proven_brackets(points, firm or points):
        inside = [i for i in changes if left <= i < right]
        changes = [i for i in changes if not left <= i < right]
        found.append(_crossing(points, band, left, right, inside[len(inside) // 2], established=True))
    found += [_crossing(points, band, i, i + 1, i, established=False) for i in changes]
    return sorted(found, key=lambda crossing: crossing.b)


def _proven_brackets(points: Sequence[GridPoint], firm: Sequence[GridPoint]) -> Iterator[tuple[int, int]]:
    proven = [i for i, point in enumerate(points) if point.proven and firm[i].proven]
    for left, right in pairwise(proven):
        if points[left].proven != points[right].proven:
            yield left, right


def _crossing(
    points: Sequence[GridPoint], band: Band | None, left: int, right: int, at: int, *, established: bool
) -> Crossing:
    up = _up(points[left])
    lo = hi = None
    if band is None:
        before, after = points[at].log_advantage, points[at + 1].log_advantage
        share = before / (before - after)
        b = points[at].batch ** (1 - share) * points[at + 1].batch ** share
    else:
        b_place = flip(band.estimate, STEPS * at, STEPS * (at + 1))
        assert b_place is not None
        b = batch_at(band, b_place)
        inner, outer = (band.lower, -band.upper) if up else (-band.upper, band.lower)
        if established:
            low, high = flip(inner, STEPS * left, STEPS * right), flip(outer, STEPS * right, STEPS * left)
        else:
            low, high = flip(inner, math.ceil(b_place), 0), flip(outer, math.floor(b_place), len(outer) - 1)
        lo, hi = (None if place is None else batch_at(band, place) for place in (low, high))
    p_left, p_right = _smallest_p(points, left), _smallest_p(points, right)
    return Crossing(
        b=b,
        lo=lo,
        hi=hi,
        bracket=(points[left].concurrency, points[right].concurrency),
        direction="wins_below" if up else "wins_above",
        probability=None if p_left is None or p_right is None else max(0.0, 1 - (p_left + p_right) / 2),
        established=established,
    )


def _up(point: GridPoint) -> bool:
    return point.log_advantage > 0


def _smallest_p(points: Sequence[GridPoint], at: int) -> float | None:
    """Over the unbroken run of points whose means have the sign of this one's."""
    up, first, last = _up(points[at]), at, at
    while first > 0 and _up(points[first - 1]) == up:
        first -= 1
    while last < len(points) - 1 and _up(points[last + 1]) == up:
        last += 1
    return min((p for point in points[first : last + 1] if (p := point.p) is not None), default=None)


def flip(values: Floats, start: int, end: int) -> float | None:
    """The place, between two by linear interpolation, where `values` first change between positive and not, walking
    from `start` to `end`; None if they never do."""
    step = 1 if end >= start else -1
    path = np.arange(start, end + step, step)
    positive = values[path] > 0
    changed = np.flatnonzero(positive != positive[0])
    if not len(changed):
        return None
    a, b = path[changed[0] - 1], path[changed[0]]
    return float(a + step * values[a] / (values[a] - values[b]))


def batch_at(band: Band, place: float) -> float:
    """The batch at a place between the band's."""
    return float(np.exp(np.interp(place, np.arange(len(band.log_batch)), band.log_batch)))
