"""Resample: how far parameters, and what follows from them, would move with other noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy import optimize

from loadgen.analysis.celldata import Floats
from loadgen.analysis.intervals import CONFIDENCE
from loadgen.analysis.models.candidate import Direction
from loadgen.analysis.models.fit import MOST, Fit
from loadgen.analysis.models.noise import Noise
from loadgen.analysis.models.pair import Pair

RESAMPLES = 400
TAIL = 0.5 - CONFIDENCE / 2


class BStar(msgspec.Struct, frozen=True, kw_only=True):
    """Where a fitted model has target and reference cost the same."""

    b: float
    lo: float | None
    """95% interval; None where more than 5% of resamples do not cross in this direction."""
    hi: float | None
    direction: Direction
    share: float
    """Of resamples that cross in this direction."""
    measured: bool
    """It lies between the smallest and the largest batch measured, not beyond."""


def draws(fitted: Fit, pair: Pair, noise: Noise, *, seed: int = 0) -> Floats:
    """Parameters refitted to costs drawn around the model; shape (RESAMPLES, terms).

    A parametric bootstrap: the scatter is that of the residuals, and each component of it is as uncertain as its
    degrees of freedom leave it (so that intervals are Student's, not normal). One Gauss-Newton step from the fit stands
    for the refit; errors are a few percent.
    """
    design = fitted.candidate.design(pair.axis, pair.bits, fitted.roof)
    n, terms = design.shape
    slope = noise.whitener @ (design / np.exp(fitted.log_cost(pair, pair.axis))[:, None])
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((RESAMPLES, n))
    shared = rng.standard_normal((RESAMPLES, noise.shared.shape[1])) @ noise.shared.T
    if noise.degrees:
        shared *= np.sqrt(noise.degrees / rng.chisquare(noise.degrees, size=RESAMPLES))[:, None]
    sigma = np.sqrt(fitted.rss / rng.chisquare(max(n - terms, 1), size=RESAMPLES))
    errors = sigma[:, None] * (own + shared) @ noise.whitener
    scale = np.linalg.norm(slope, axis=0)
    scale[scale == 0] = 1.0
    mean = slope @ fitted.theta
    drawn = (mean + errors) @ np.linalg.pinv(slope / scale).T
    for row in np.flatnonzero((drawn < 0).any(axis=1)):
        drawn[row] = optimize.nnls(slope / scale, mean + errors[row], maxiter=MOST)[0]
    return np.asarray(drawn / scale)


def identified(fitted: Fit, pair: Pair) -> list[bool]:
    """By parameter: whether another value, made up for by other parameters, would change what the model says at the
    measured batches."""
    design = fitted.candidate.design(pair.axis, pair.bits, fitted.roof)
    size = np.linalg.norm(design, axis=0)
    _, values, rows = np.linalg.svd(design / np.where(size > 0, size, 1.0), full_matrices=True)
    rank = int((values > 1e-8 * values[0]).sum())
    return [bool(np.abs(rows[rank:, term]).max(initial=0.0) < 1e-6) for term in range(design.shape[1])]


def interval(values: Sequence[float] | Floats) -> tuple[float, float]:
    """Percentiles of draws."""
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    return float(low), float(high)


def b_star(fitted: Fit, pair: Pair, drawn: Floats) -> BStar | None:
    """Of the fitted model; None if it does not cross."""
    found = fitted.candidate.b_star(fitted.theta, pair.bits)
    if found is None or not math.isfinite(found[0]):
        return None
    b, direction = found
    others = [other for theta in drawn if (other := fitted.candidate.b_star(theta, pair.bits)) is not None]
    alike = [other[0] for other in others if other[1] == direction]
    share = len(alike) / len(drawn)
    lo, hi = interval(alike) if share >= CONFIDENCE else (None, None)
    return BStar(
        b=float(b),
        lo=lo,
        hi=hi,
        direction=direction,
        share=share,
        measured=bool(pair.batch.min() <= b <= pair.batch.max()),
    )
