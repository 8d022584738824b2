"""Noise: how uncertain a weighted sum of the points' log-advantages is.

A repeat starts its servers anew, so that its cells share a part of the noise: the log-advantage of repeat k at point i
is f_i + s_k + e_ik (two-way analysis of variance without interaction, points fixed, repeats random). Sums of squares
are Henderson's method III, so that missing cells are allowed.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.celldata import Floats
from loadgen.analysis.crossover.curve import PairedCurve

ALPHA = 0.05
BISECTIONS = 30


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """Variance components of a paired curve, and what they make of a weighted sum of its point means."""

    repeat_square: float
    """Mean square between repeats; its expectation is var(e) + `coefficient` * var(s)."""
    repeat_degrees: float
    rest_square: float
    """Mean square of what is left; its expectation is var(e)."""
    rest_degrees: float
    coefficient: float
    counts: Floats
    """Repeats per point."""
    overlap: Floats
    """Shared repeats of two points over the product of their counts; shape (points, points)."""
    item_error: Floats
    stated_square: float = 0.0
    """Variance of one log-advantage between starts, as the user stated it; 0 where repeats show it."""

    def half_width(self, weights: Floats, alpha: Floats | float = ALPHA) -> Floats:
        """Half of the 1 - `alpha` interval of `weights` @ means; weights of shape (sums, points).

        Each component's variance is multiplied by the square of its own Student's quantile before they are added. That
        errs on the wide side; Satterthwaite's common degrees of freedom err on the narrow side where a component has
        only two. What was stated may or may not be common to all points: the wider of both counts.
        """
        shared = np.einsum("gi,ij,gj->g", weights, self.overlap, weights) / self.coefficient
        own = np.maximum(weights**2 @ (1 / self.counts) - shared, 0.0)
        return np.asarray(
            np.sqrt(
                shared * self.repeat_square * _quantile(self.repeat_degrees, alpha) ** 2
                + own * self.rest_square * _quantile(self.rest_degrees, alpha) ** 2
                + (weights @ self.item_error) ** 2 * _quantile(math.inf, alpha) ** 2
                + self.stated_square
                * np.maximum(weights.sum(axis=1) ** 2, (weights**2).sum(axis=1))
                * _quantile(math.inf, alpha) ** 2
            )
        )

    def p_value(self, weights: Floats, values: Floats) -> Floats:
        """Two-sided: the alpha at which the interval of `values` ends at 0, at least 1e-16."""
        low, high = np.full(len(values), math.log(1e-16)), np.zeros(len(values))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            inside = np.abs(values) <= self.half_width(weights, np.exp(middle))
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        return np.asarray(np.where(values == 0, 1.0, np.exp(high)))


def _quantile(degrees: float, alpha: Floats | float) -> Floats:
    """Student's, two-sided."""
    if math.isinf(degrees):
        return np.asarray(-special.ndtri(np.asarray(alpha) / 2))
    return np.asarray(-special.stdtrit(degrees, np.asarray(alpha) / 2))


def noise_of(curve: PairedCurve, start_sd: float | None = None) -> Noise | None:
    """From the scatter of repeats; None where no point has two of them and nobody stated `start_sd`.

    `start_sd`: relative standard deviation of a side's figure between two starts of its server. It is used without
    repeats only, with the windows' own errors where they are known.
    """
    seen = ~np.isnan(curve.advantage)
    counts = seen.sum(axis=1).astype(float)
    overlap = (seen.astype(float) @ seen.T.astype(float)) / np.outer(counts, counts)
    points, cells = len(counts), int(seen.sum())
    if cells == points:
        return None if start_sd is None else _stated(curve, counts, start_sd)
    values = curve.advantage[seen]
    point, repeat = np.nonzero(seen)
    of_points = (point[:, None] == np.arange(points)).astype(float)
    of_both = np.hstack([of_points, (repeat[:, None] == np.arange(seen.shape[1])).astype(float)])
    one_way = values - of_points @ np.linalg.lstsq(of_points, values, rcond=None)[0]
    solution, _, rank, _ = np.linalg.lstsq(of_both, values, rcond=None)
    rest = values - of_both @ solution
    between_degrees, rest_degrees = int(rank) - points, cells - int(rank)
    within = float(one_way @ one_way)
    if rest_degrees == 0 or between_degrees == 0:  # the two kinds of noise cannot be told apart
        return Noise(
            repeat_square=0.0,
            repeat_degrees=1,
            rest_square=within / (cells - points),
            rest_degrees=cells - points,
            coefficient=np.inf,
            counts=counts,
            overlap=overlap,
            item_error=curve.item_error,
        )
    left = float(rest @ rest)
    return Noise(
        repeat_square=max(within - left, 0.0) / between_degrees,
        repeat_degrees=between_degrees,
        rest_square=left / rest_degrees,
        rest_degrees=rest_degrees,
        coefficient=(cells - points) / between_degrees,
        counts=counts,
        overlap=overlap,
        item_error=curve.item_error,
    )


def _stated(curve: PairedCurve, counts: Floats, start_sd: float) -> Noise:
    """Both sides' starts, and of each point the variance inside its windows (it stands for the count); all normal."""
    inside = np.zeros(len(counts)) if curve.window_error is None else curve.window_error
    return Noise(
        repeat_square=0.0,
        repeat_degrees=np.inf,
        rest_square=1.0,
        rest_degrees=np.inf,
        coefficient=np.inf,
        counts=1 / np.maximum(inside, 1e-12) ** 2,
        overlap=np.diag(1 / counts),
        item_error=curve.item_error,
        stated_square=2 * start_sd**2,
    )
