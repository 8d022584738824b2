"""Scatter: the variance of the repeats at each point, pooled over the points where that is allowed.

All points have one variance, unless a likelihood-ratio test asks for a variance that is a power of the batch; and a
point stands apart, with the variance of its own repeats, where an F test against the other points says so. With few
repeats every point's own variance would leave next to nothing proven, and one variance for all proves what is not so.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.celldata import Floats

Flags = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Pooling = Literal["all", "power of the batch", "none"]

TREND_P = 0.1
"""The power of the batch is used below this p; a later use costs false signs, an earlier one power."""
DOUBT_P = 0.3
"""Below this p, and not below `TREND_P`, a point has the larger of both variances: false signs come from uneven noise
that a few repeats do not show."""
APART_P = 0.2
"""A point stands apart below this p, over all points together (Bonferroni)."""
NOTHING = 1e-18
"""A variance of rounding, not of repeats."""
POWERS = np.linspace(-1.5, 1.5, 31)
"""Exponents that are tried; an odd number, so that 0 is the middle one."""


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
    """Of every point, also of those that are not kept (prolonged from the others')."""
    degrees: Floats
    pooling: Pooling
    pooled_square: float
    """One variance for the kept points."""
    own: Floats
    """Of every point: mean square of its deviations from the repeats' means of the kept points."""
    own_expected: Floats
    """Its expectation where the point's variance is `square`."""


def scatter_of(advantage: Floats, log_batch: Floats) -> Scatter:
    """Of log-advantages of shape (points, repeats), NaN where there is none, and two repeats somewhere."""
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
    """Of what is left when points and repeats are taken out."""
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
