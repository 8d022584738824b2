"""Noise: how uncertain a weighted sum of the points' log-advantages is.

A repeat starts its servers again, so that its cells share a part of the noise: the log-advantage of repeat k at point i
is f_i + s_k + e_ik (`Decomposition`). The variance of e may differ between points (`Scatter`): all points have one,
unless a likelihood-ratio test asks for a variance that is a power of the batch; and a point stands apart, with the
variance of its own repeats, where an F test against the other points says so. With few repeats every point's own
variance would leave next to nothing proven, and one variance for all proves what is not so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.celldata import Floats, Ints
from loadgen.analysis.crossover.curve import PairedCurve

Flags = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Pooling = Literal["all", "power of the batch", "none"]

TREND_P = 0.1
"""The power of the batch is used below this p; a later use costs false signs, an earlier one power."""
DOUBT_P = 0.5
"""Below this p, and not below `TREND_P`, a point has the larger of both variances: false signs come from uneven noise
that a few repeats do not show."""
APART_P = 0.1
"""A point is an outlier below this p, over all points together (Bonferroni)."""
NOTHING = 1e-18
"""A variance of rounding, not of repeats."""
POWERS = np.linspace(-1.5, 1.5, 31)
"""Exponents that are tried; an odd number, so that 0 is the middle one."""


class Decomposition(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of squares of figures by point and start of a server: two-way analysis of variance without interaction,
    points fixed, starts random, by Henderson's method III, so that cells may be missing."""

    within: float
    """About the points' means."""
    rest: float
    """When points and starts are taken out."""
    between_degrees: int
    rest_degrees: int
    coefficient: float
    """The expectation of `between_square` is var(e) + this * var(s)."""

    @property
    def known(self) -> bool:
        """The two kinds of noise can be told apart."""
        return self.between_degrees > 0 and self.rest_degrees > 0

    @property
    def between_square(self) -> float:
        """Mean square between starts."""
        return (self.within - self.rest) / self.between_degrees


def decompose(values: Floats, point: Ints, start: Ints) -> Decomposition:
    """The values by the number of their point and of their start, both from 0 without a gap."""
    points = indicators(point)
    both = np.hstack([points, indicators(start)])
    (cells, count), rank = points.shape, int(np.linalg.matrix_rank(both))
    return Decomposition(
        within=residual(points, values),
        rest=residual(both, values),
        between_degrees=rank - count,
        rest_degrees=cells - rank,
        coefficient=(cells - count) / (rank - count) if rank > count else math.inf,
    )


def indicators(numbers: Ints) -> Floats:
    """A column of 0 and 1 for each number from 0."""
    return np.asarray(numbers[:, None] == np.arange(numbers.max() + 1), dtype=float)


def residual(design: Floats, values: Floats) -> float:
    """Sum of squares that least squares leave."""
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return float(left @ left)


class Scatter(msgspec.Struct, frozen=True, kw_only=True):
    """By point: the variance of a repeat about the point's and the repeat's mean, and its degrees of freedom."""

    square: Floats
    degrees: Floats
    pooled_square: float
    """One variance for all points."""
    pooling: Pooling
    apart: tuple[int, ...]


class _Fit(msgspec.Struct, frozen=True, kw_only=True):
    """A two-way fit of the points that are kept together."""

    square: Floats
    """Variance of every point; of those that are not kept, prolonged from the others'."""
    degrees: Floats
    pooling: Pooling
    pooled_square: float
    """One variance for the kept points."""
    own: Floats
    """Mean square of every point's deviations from the repeats' means of the kept points."""
    own_expected: Floats
    """Its expectation where the point's variance is `square`."""


def scatter_of(advantage: Floats, log_batch: Floats) -> Scatter:
    """The scatter of log-advantages of shape (points, repeats), NaN where not measured; a point needs two repeats."""
    seen = ~np.isnan(advantage)
    if len(seen) == 2 and seen.all():
        return _of_two(advantage)
    counts = seen.sum(axis=1)
    kept = np.ones(len(advantage), dtype=bool)
    fit = whole = _fitted(advantage, seen, log_batch, kept)
    while kept.sum() > 2:
        candidates = kept & (counts > 1)
        ratio = np.where(candidates, fit.own / np.maximum(fit.own_expected, 1e-300), -1.0)
        worst = int(ratio.argmax())
        others = kept.copy()
        others[worst] = False
        if not candidates.any() or _degrees(seen, others) <= 0:
            break
        without = _fitted(advantage, seen, log_batch, others)
        f = without.own[worst] / max(without.own_expected[worst], 1e-300)
        p = special.fdtrc(counts[worst] - 1, without.degrees[others].min(), f)
        if p * kept.sum() >= APART_P:
            break
        kept, fit = others, without
    square, degrees = fit.square.copy(), fit.degrees.copy()
    alone = ~kept & (counts > 1)
    square[alone], degrees[alone] = fit.own[alone], counts[alone] - 1.0
    return Scatter(
        square=square,
        degrees=degrees,
        pooled_square=whole.pooled_square,
        pooling=fit.pooling,
        apart=tuple(int(place) for place in np.flatnonzero(alone)),
    )


def _of_two(advantage: Floats) -> Scatter:
    """What two points share is their covariance; the rest of each one's variance is its own."""
    covariance = np.cov(advantage)
    square = np.diag(covariance) - covariance[0, 1]
    return Scatter(
        square=square,
        degrees=np.full(2, advantage.shape[1] - 1.0),
        pooled_square=float(square.mean()),
        pooling="none",
        apart=(),
    )


def _degrees(seen: Flags, kept: Flags) -> int:
    """Degrees of freedom that are left when points and repeats are taken out."""
    rows = seen[kept].astype(float)
    between = np.diag(rows.sum(axis=0)) - rows.T @ (rows / np.maximum(rows.sum(axis=1, keepdims=True), 1))
    return int(rows.sum() - len(rows) - np.linalg.matrix_rank(between))


def _fitted(advantage: Floats, seen: Flags, log_batch: Floats, keep: Flags) -> _Fit:
    """Restricted maximum likelihood of the exponent, on the grid of `POWERS`; the repeats are fixed effects.

    The points' means are taken out of both sides first. What remains of the design is the repeats' Laplacian: a sum
    over points, each with the weight 1 / variance.
    """
    mask = seen.astype(float)
    counts = mask.sum(axis=1)
    centred = np.where(seen, advantage - np.nanmean(advantage, axis=1, keepdims=True), 0.0)
    laplacians = np.eye(mask.shape[1]) * mask[:, :, None] - mask[:, :, None] * mask[:, None, :] / counts[:, None, None]
    points = int(keep.sum())
    x = log_batch - log_batch[keep].mean()
    degrees = _degrees(seen, keep)
    powers = POWERS if points > 2 else np.zeros(1)
    weights = np.exp(-powers[:, None] * x[keep])
    between = np.einsum("gp,prs->grs", weights, laplacians[keep])
    pull = weights @ centred[keep]
    values, vectors = np.linalg.eigh(between)
    real = values > 1e-9 * values[:, -1:]
    inverse = np.where(real, 1 / np.where(real, values, 1.0), 0.0)
    along = np.einsum("grs,gr->gs", vectors, pull)
    squares = weights @ (centred[keep] ** 2).sum(axis=1) - (along**2 * inverse).sum(axis=1)
    squares = np.maximum(squares, NOTHING * NOTHING)
    deviance = (
        powers * float((counts[keep] - 1) @ x[keep])
        + np.where(real, np.log(np.where(real, values, 1.0)), 0.0).sum(axis=1)
        + degrees * np.log(squares)
    )
    level, best = len(powers) // 2, int(deviance.argmin())
    p_level = special.chdtrc(1, max(deviance[level] - deviance[best], 0.0))
    trend = bool(squares[level] > NOTHING * degrees and p_level < TREND_P)
    at = best if trend else level
    square = squares[at] / degrees * np.exp(powers[at] * x)
    if not trend and p_level < DOUBT_P:
        square = np.maximum(square, squares[best] / degrees * np.exp(powers[best] * x))
    each = np.full(len(x), float(degrees))
    if trend:
        each = degrees / points / (1 / points + x**2 / (x[keep] ** 2).sum())
    effects = vectors[at] @ (along[at] * inverse[at])
    covariance = (vectors[at] * inverse[at]) @ vectors[at].T * (squares[at] / degrees)
    left = np.where(seen, advantage - effects, 0.0)
    left = np.where(seen, left - left.sum(axis=1, keepdims=True) / counts[:, None], 0.0)
    own_degrees = np.maximum(counts - 1, 1)
    of_effects = np.einsum("prs,rs->p", laplacians, covariance)
    sign = np.where(keep, -1.0, 1.0)
    expected = square + sign * of_effects / own_degrees
    return _Fit(
        square=square,
        degrees=each,
        pooled_square=float(squares[level] / degrees),
        pooling="power of the batch" if trend else "all",
        own=(left**2).sum(axis=1) / own_degrees,
        own_expected=np.maximum(expected, 1e-6 * square),
    )


ALPHA = 0.05
BISECTIONS = 30
_Component = tuple[Floats, Floats | float]
"""A variance of each sum, and its degrees of freedom."""


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """Variance components of a paired curve, and what they make of a weighted sum of its point means."""

    repeat_square: float
    """Mean square between repeats; its expectation is var(e) + `coefficient` * var(s)."""
    repeat_degrees: float
    rest_square: Floats
    """By point, an estimate of var(e): what is left when points and repeats are taken out."""
    rest_degrees: Floats
    """Degrees of freedom of that estimate, by point."""
    coefficient: float
    counts: Floats
    """Repeats per point."""
    overlap: Floats
    """Shared repeats of two points over the product of their counts; shape (points, points)."""
    item_error: Floats
    pooled_square: float = 0.0
    """var(e) if it were the same at all points; 0 where the points' own are known."""
    stated_square: float = 0.0
    """Variance of one log-advantage between starts, as the user stated it; 0 where repeats show it."""
    pooling: Pooling = "all"
    """Which points' scatter is taken together."""
    apart: tuple[int, ...] = ()
    """Points (places on the grid) whose scatter differs from the others' and is taken from their own repeats alone."""

    def half_width(self, weights: Floats, alpha: Floats | float = ALPHA) -> Floats:
        """Half of the 1 - `alpha` interval of `weights` @ means; weights of shape (sums, points).

        Each component's variance is multiplied by the square of its own Student's quantile before they are added. That
        errs on the wide side; Satterthwaite's common degrees of freedom err on the narrow side where a component has
        only two. Points of unequal variance share Satterthwaite's degrees within the second component. What was stated
        may or may not be common to all points: the wider of both counts.
        """
        return _half(self._components(weights), alpha)

    def _components(self, weights: Floats) -> list[_Component]:
        """Components of the variance of `weights` @ means; the first, and the others that are not 0."""
        shared = np.maximum(np.einsum("gi,ij,gj->g", weights, self.overlap, weights), 0.0) / self.coefficient
        parts = weights**2 * (self.rest_square / self.counts)
        total = parts.sum(axis=1)
        own = np.maximum(total - shared * self.rest_square.mean(), 0.0)
        spent = (parts / self.rest_degrees).sum(axis=1)
        degrees = np.where(spent > 0, total, np.inf) / np.where(spent > 0, spent, 1.0)
        stated = self.stated_square * np.maximum(weights.sum(axis=1) ** 2, (weights**2).sum(axis=1))
        normal = (weights @ self.item_error) ** 2 + stated
        others: list[_Component] = [(own, degrees), (normal, np.inf)]
        return [(shared * self.repeat_square, self.repeat_degrees), *(part for part in others if part[0].any())]

    @property
    def cautious(self) -> Noise:
        """The same with no point's variance below the pooled one.

        Two opposite signs of one point are what a crossing is made of. Where a few repeats happen to agree at both, an
        estimate of the points' own variances proves them too easily.
        """
        return msgspec.structs.replace(self, rest_square=np.maximum(self.rest_square, self.pooled_square))

    def p_value(self, weights: Floats, values: Floats) -> Floats:
        """Two-sided: the alpha at which the interval of `values` ends at 0, at least 1e-16."""
        low, high = np.full(len(values), math.log(1e-16)), np.zeros(len(values))
        components = self._components(weights)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            inside = np.abs(values) <= _half(components, np.exp(middle))
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        return np.asarray(np.where(values == 0, 1.0, np.exp(high)))


def _half(components: Sequence[_Component], alpha: Floats | float) -> Floats:
    return np.asarray(np.sqrt(sum(square * _quantile(degrees, alpha) ** 2 for square, degrees in components)))


def _quantile(degrees: Floats | float, alpha: Floats | float) -> Floats:
    """Student's, two-sided."""
    tail = np.asarray(alpha) / 2
    if np.all(np.isinf(degrees)):
        return np.asarray(-special.ndtri(tail))
    return np.asarray(-special.stdtrit(np.minimum(degrees, 1e9), tail))


def noise_of(curve: PairedCurve, start_sd: float | None = None) -> Noise | None:
    """From the scatter of repeats; None where no point has two of them and no `start_sd` was given.

    `start_sd`: relative standard deviation of a side's figure between two starts of its server. It is used without
    repeats only, with the windows' own errors where they are known.
    """
    seen = ~np.isnan(curve.advantage)
    counts = seen.sum(axis=1).astype(float)
    points, cells = len(counts), int(seen.sum())
    overlap = (seen.astype(float) @ seen.T.astype(float)) / np.outer(counts, counts)
    alone = Noise(
        repeat_square=0.0,
        repeat_degrees=1,
        rest_square=np.zeros(points),
        rest_degrees=np.full(points, np.inf),
        coefficient=np.inf,
        counts=counts,
        overlap=overlap,
        item_error=curve.item_error,
    )
    if cells == points:
        if start_sd is None:
            return None
        inside = np.zeros(points) if curve.window_error is None else curve.window_error
        square = inside**2 * counts
        return msgspec.structs.replace(alone, repeat_degrees=np.inf, rest_square=square, stated_square=2 * start_sd**2)
    point, repeat = np.nonzero(seen)
    found = decompose(curve.advantage[seen], point, repeat)
    if not found.known:
        together = np.full(points, found.within / (cells - points))
        return msgspec.structs.replace(alone, rest_square=together, rest_degrees=np.full(points, float(cells - points)))
    scatter = scatter_of(curve.advantage, np.log(curve.batch))
    return msgspec.structs.replace(
        alone,
        repeat_square=max(found.between_square, 0.0),
        repeat_degrees=found.between_degrees,
        rest_square=scatter.square,
        rest_degrees=scatter.degrees,
        coefficient=found.coefficient,
        pooled_square=scatter.pooled_square,
        pooling=scatter.pooling,
        apart=scatter.apart,
    )
