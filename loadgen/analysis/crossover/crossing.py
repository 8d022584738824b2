"""Crossing: a batch B* at which the better side changes, proven or only suspected. GridPoint: where on the grid the
target is proven better or worse. Band: the curve between the measured batches. Beyond: where a crossing that the data
do not show could still be. A server pads a batch up to the next size that it captured CUDA graphs for, and switches
kernels at other sizes, so that a curve may have a step between two measured batches."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.crossover.curve import PairedCurve
from loadgen.analysis.crossover.noise import ALPHA, Noise
from loadgen.analysis.estimate import Direction


class GridPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison at one measured batch."""

    concurrency: int
    """As asked for."""
    batch: float
    """Measured: the geometric mean of both sides' running batches."""
    repeats: int
    target_value: float | None = None
    """The two figures that are compared, in the metric's unit: geometric means over the repeats of both sides. Joules
    per query and per correct answer are over the items that both completed, so they differ from summary.csv's."""
    reference_value: float | None = None
    log_advantage: float
    """Mean over repeats of +-log(target / reference); above 0 the target is better."""
    lo: float | None
    """95% interval of this point alone; None if there is no measure of noise."""
    hi: float | None
    p: float | None
    """Two-sided, adjusted over the grid (`hochberg`)."""
    sign: Literal["wins", "loses", "open"]
    """`open`: p is above 5%, or there is none."""

    @property
    def proven(self) -> int:
        """1 where the target is proven better, -1 where worse, else 0."""
        return {"wins": 1, "loses": -1, "open": 0}[self.sign]


def grid_points(curve: PairedCurve, noise: Noise | None) -> tuple[GridPoint, ...]:
    """One per measured batch, ascending. At most 5% of grids have any sign proven that is not so."""
    mean = curve.mean
    count = len(mean)
    lo: list[float] | list[None] = [None] * count
    hi, p = lo, lo
    values = curve.values or ((None, None),) * count
    if noise is not None:
        each = np.eye(count)
        half = noise.half_width(each)
        lo, hi = (mean - half).tolist(), (mean + half).tolist()
        p = hochberg(noise.p_value(each, mean))
    return tuple(
        GridPoint(
            concurrency=curve.concurrency[i],
            batch=float(curve.batch[i]),
            repeats=int((~np.isnan(curve.advantage[i])).sum()),
            target_value=values[i][0],
            reference_value=values[i][1],
            log_advantage=float(mean[i]),
            lo=lo[i],
            hi=hi[i],
            p=p[i],
            sign=_sign(float(mean[i]), p[i]),
        )
        for i in range(count)
    )


def hochberg(p_values: Floats) -> list[float]:
    """Adjusted p-values in the given order (Hochberg 1988): those at or below alpha are significant, with at most alpha
    chance of any false one for tests that are independent or depend on each other positively, as the points of a
    curve do. All are significant where each alone is: a claim about every B needs no more."""
    order = np.argsort(p_values)[::-1]
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum.accumulate(p_values[order] * np.arange(1, len(p_values) + 1))
    return [float(p) for p in adjusted]


def _sign(mean: float, p: float | None) -> Literal["wins", "loses", "open"]:
    if p is None or p > ALPHA:
        return "open"
    return "wins" if mean > 0 else "loses"


STEEPER = 2.0
"""How many times as steep as both neighbours a bracket is that may hold a step."""
WIDEST = 2.5
"""Ratio of the batches at both ends of such a bracket: in a wider one a smooth curve can do all of its fall."""
MOST_SUGGESTED = 9


def shared_sizes(ours: Sequence[int] | None, theirs: Sequence[int] | None) -> tuple[int, ...] | None:
    """The batches that neither server pads, up to the largest that one of them does; None where either is not known.

    Given are the sizes of each one's CUDA graphs, none for a server without. Larger batches run without a graph.
    """
    if ours is None or theirs is None:
        return None
    largest = max((*ours, *theirs), default=0)
    return tuple(b for b in range(1, largest + 1) if all(not s or b > max(s) or b in s for s in (ours, theirs)))


def padded_from(sizes: Sequence[int], batch: float) -> float:
    """The largest of the sizes that is not above the batch; the batch itself where none is, or it is above all."""
    place = bisect_right(sizes, batch)
    return float(sizes[place - 1]) if 0 < place < len(sizes) else batch


def padded_to(sizes: Sequence[int], batch: float) -> float:
    """The smallest of the sizes that is not below the batch; the batch itself where none is."""
    place = bisect_left(sizes, batch)
    return float(sizes[place]) if place < len(sizes) else batch


def steep_brackets(batch: Floats, mean: Floats, noise: Noise) -> frozenset[int]:
    """The gaps of the grid (by their left point) in which the curve rises or falls far more steeply than in both
    neighbouring gaps.

    Proven over all gaps at 5%, and `STEEPER` times at least; not where a gap is wider than `WIDEST`. A gap at an end of
    the grid has one neighbour only, and cannot be told from a bend.
    """
    width = np.diff(np.log(batch))
    rise = np.diff(mean)
    slope = rise / width
    gaps = len(width)
    found = set()
    for gap in range(1, gaps - 1):
        if width[gap] > np.log(WIDEST):
            continue
        sides = [slope[gap - 1], slope[gap + 1]]
        if any(abs(slope[gap]) < STEEPER * abs(side) for side in sides):
            continue
        weights = np.zeros((2, len(mean)))
        for row, beside in enumerate((gap - 1, gap + 1)):
            weights[row, [gap + 1, gap]] += (1 / width[gap], -1 / width[gap])
            weights[row, beside + 1] -= 1 / width[beside]
            weights[row, beside] += 1 / width[beside]
        excess = np.abs(weights @ mean)
        if np.all(excess > noise.half_width(weights, ALPHA / (gaps - 2))):
            found.add(gap)
    return frozenset(found)


def suggested(low: int, high: int, sizes: Sequence[int] | None) -> str:
    """Concurrencies for `--concurrency` that show where between two batches the sign changes: the graphs' sizes there,
    each with the batch after it, else a geometric grid."""
    between = [size for size in sizes or () if low <= size <= high]
    pairs = sorted({b for size in between for b in (size, size + 1) if low <= b <= high} | {low, high})
    if len(between) < 2 or len(pairs) > MOST_SUGGESTED:
        grid = np.geomspace(low, high, min(5, high - low + 1))
        nearest = [min(between, key=lambda size: abs(size - b)) if len(between) > 2 else round(b) for b in grid]
        pairs = sorted({low, high, *nearest})
    return ",".join(map(str, pairs))


Indices = np.ndarray[tuple[int, ...], np.dtype[np.intp]]

STEPS = 64
"""Places per bracket where the band is computed."""
BLIND = np.log(6)
"""Width of a bracket, in ln(batch), inside which a curve may do anything between its two values."""
SHARPER = 2.0
"""How many times as sharply as the neighbouring chords show a curve may bend: chords hide half of the bend of two kinks
that are close to each other."""
SMOOTH_SHARE = 0.25
"""A parabola runs at this share of the way from the chord to the outermost curve."""


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """The log-advantage over ln(batch): estimate and pointwise limits; places `STEPS` * i are the measured points."""

    log_batch: Floats
    estimate: Floats
    lower: Floats
    upper: Floats


def band_of(batch: Floats, mean: Floats, noise: Noise) -> Band:
    """Band through the point means.

    What the curve does between two points is not measured. Two bounds say how far it may leave the chord: it bends no
    more sharply than the neighbouring chords allow (`_bend`), or it is some monotone curve, the freer the wider the
    bracket (`_freedom`). The wider of the two counts, in quadrature with noise. The estimate follows the bend as a
    parabola does, a quarter of the way out.
    """
    x = np.log(batch)
    left, share = _places(len(x))
    weights = np.zeros((len(left), len(x)))
    rows = np.arange(len(left))
    weights[rows, left] = 1 - share
    weights[rows, left + 1] = share
    places, chord = weights @ x, weights @ mean
    below, above = _bend(x, mean, left, share)
    estimate = chord + SMOOTH_SHARE * (above - below)
    below, above = _bend(x, mean, left, share, SHARPER)
    free_below, free_above = _freedom(x, mean, left, share)
    half = noise.half_width(weights)
    return Band(
        log_batch=places,
        estimate=estimate,
        lower=estimate - np.hypot(half, estimate - chord + np.maximum(below, free_below)),
        upper=estimate + np.hypot(half, chord - estimate + np.maximum(above, free_above)),
    )


def _places(points: int) -> tuple[Indices, Floats]:
    """The bracket that each place lies in, and its share of the way through it."""
    count = STEPS * (points - 1) + 1
    left = np.minimum(np.arange(count) // STEPS, points - 2)
    return left, (np.arange(count) - STEPS * left) / STEPS


def _freedom(x: Floats, y: Floats, left: Indices, share: Floats) -> tuple[Floats, Floats]:
    """Room below and above the chord for monotone curves from early (1 - (1 - s)^k) to late (s^k), s being the share
    of the bracket; k is 1 in a narrow bracket and infinite in one as wide as `BLIND`."""
    tightness = np.maximum(1 - (np.diff(x)[left] / BLIND) ** 2, 1e-6)
    rise = np.diff(y)[left]
    late, early = rise * (share ** (1 / tightness) - share), rise * (1 - (1 - share) ** (1 / tightness) - share)
    return -np.minimum(late, early), np.maximum(late, early)


def _bend(x: Floats, y: Floats, left: Indices, share: Floats, sharper: float = 1.0) -> tuple[Floats, Floats]:
    """Room below and above the chord for a curve that bends in one sense: up to the neighbouring chords prolonged.

    At the ends of the grid the next point's bend is continued. Never beyond the values at the bracket's ends.
    """
    if len(x) == 2:
        return np.zeros(len(left)), np.zeros(len(left))
    width = np.diff(x)
    slope = np.diff(y) / width
    bend = np.diff(slope) / ((width[1:] + width[:-1]) / 2)
    slopes = np.concatenate([[slope[0] - bend[0] * width[0]], slope, [slope[-1] + bend[-1] * width[-1]]])
    from_left = sharper * (slopes[left] - slope[left]) * share * width[left]
    from_right = sharper * (slope[left] - slopes[left + 2]) * (1 - share) * width[left]
    rise = np.diff(y)[left]
    lowest, highest = np.maximum(rise * share, rise * (share - 1)), np.maximum(-rise * share, rise * (1 - share))
    return (
        np.minimum(_reach(-from_left, -from_right, share), lowest),
        np.minimum(_reach(from_left, from_right, share), highest),
    )


def _reach(from_left: Floats, from_right: Floats, share: Floats) -> Floats:
    """Room to one side of the chord: both prolonged chords bound it if both run there; one alone counts the less the
    nearer the bracket's other end."""
    both = np.minimum(from_left, from_right)
    alone = np.maximum(from_left * (1 - share), from_right * share)
    return np.maximum(np.where(both > 0, both, alone), 0.0)


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


class Beyond(msgspec.Struct, frozen=True, kw_only=True):
    """If the proven side of an end of the grid changes beyond it, then on this side of `batch` (95%)."""

    side: Literal["above", "below"]
    batch: float


def beyond(points: Sequence[GridPoint], band: Band, noise: Noise) -> tuple[Beyond, ...]:
    """Up to one for each end of the grid.

    Where the end itself is proven: only if the advantage has shrunk towards that end, by more than noise explains.
    Where it is open: from the nearest proven point on, the first batch at which the band contains 0.
    """
    ends = []
    for side in ("below", "above"):
        batch = _limit(points, band, noise, above=side == "above")
        if batch is not None and (side == "above" or batch > 1):
            ends.append(Beyond(side=side, batch=batch))
    return tuple(ends)


def _limit(points: Sequence[GridPoint], band: Band, noise: Noise, *, above: bool) -> float | None:
    proven = [i for i, point in enumerate(points) if point.proven]
    if not proven:
        return None
    last, end = (proven[-1], len(points) - 1) if above else (proven[0], 0)
    sign = points[last].proven
    if last != end:
        place = flip(band.lower if sign > 0 else -band.upper, STEPS * last, STEPS * end)
        return None if place is None else batch_at(band, place)
    run = [i for i in proven if all(points[k].proven == sign for k in range(min(i, end), max(i, end) + 1))]
    peak = max(run, key=lambda i: sign * points[i].log_advantage)
    weights = np.zeros((1, len(points)))
    weights[0, peak] += 1
    weights[0, end] -= 1
    fall = abs(points[peak].log_advantage) - abs(points[end].log_advantage)
    return points[end].batch if fall > noise.half_width(weights)[0] else None
