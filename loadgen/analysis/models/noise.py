"""Noise: what repeats say about the scatter of observations."""

from __future__ import annotations

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.celldata import Floats
from loadgen.analysis.models.pair import Ints, Pair

EXACT = 1e-9
"""Relative scatter below which figures count as free of noise."""


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """Errors of the observations, up to a common factor: one of each cell, and one that a start's cells share."""

    whitener: Floats
    """Makes them independent and alike; shape (observations, observations)."""
    shared: Floats
    """Standard deviation of the shared error over that of the cells' own, by observation and start of a server."""
    degrees: int
    """Of freedom that the shared error was estimated with; 0: it was not."""


def noise_of(pair: Pair) -> Noise:
    """The cells of one start share a part of their noise. How large, next to what is each cell's own, is taken from the
    repeats (analysis of variance by Henderson's method III, within cells); without repeats it is taken as 0."""
    start = _indicators(pair.start)
    ratio, degrees = _shared_over_own(pair)
    size = start.sum(axis=0)
    shrink = (1 - 1 / np.sqrt(1 + ratio * size)) / size
    return Noise(
        whitener=np.eye(len(pair.log_cost)) - (start * shrink) @ start.T,
        shared=np.sqrt(ratio) * start,
        degrees=degrees,
    )


def lack_of_fit(pair: Pair, noise: Noise, rss: float, parameters: int) -> float | None:
    """p of the F test of a model's residuals against the scatter of repeats; None without repeats, or where the model
    has as many parameters as there are cells."""
    cells = _indicators(pair.cell)
    n, count = cells.shape
    if n == count or count <= parameters:
        return None
    pure = max(_rest(noise.whitener @ cells, noise.whitener @ pair.log_cost), n * EXACT**2)
    ratio = (max(rss - pure, 0.0) / (count - parameters)) / (pure / (n - count))
    return float(special.fdtrc(count - parameters, n - count, ratio))


def scatter(pair: Pair) -> float | None:
    """Relative standard deviation of a cell between repeats, pooled; None without repeats."""
    cells = _indicators(pair.cell)
    n, count = cells.shape
    return float(np.sqrt(_rest(cells, pair.log_cost) / (n - count))) if n > count else None


def _shared_over_own(pair: Pair) -> tuple[float, int]:
    """Ratio of the variances, and the degrees of freedom of the shared one."""
    cells = _indicators(pair.cell)
    both = np.hstack([cells, _indicators(pair.start)])
    n, count = cells.shape
    rank = int(np.linalg.matrix_rank(both))
    between, own = rank - count, n - rank
    if between == 0 or own == 0:
        return 0.0, 0
    within, left = _rest(cells, pair.log_cost), _rest(both, pair.log_cost)
    if left <= 0:
        return 0.0, 0
    ratio = ((within - left) / between) / (left / own)
    return max(ratio - 1, 0.0) * between / (n - count), between


def _indicators(numbers: Ints) -> Floats:
    return np.asarray(numbers[:, None] == np.arange(numbers.max() + 1), dtype=float)


def _rest(design: Floats, values: Floats) -> float:
    """Residual sum of squares."""
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return float(left @ left)
