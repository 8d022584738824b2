"""Fit: least squares on logarithms with parameters of at least 0."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from scipy import optimize

from loadgen.analysis.celldata import Floats
from loadgen.analysis.models.candidate import Axis, Candidate
from loadgen.analysis.models.noise import EXACT
from loadgen.analysis.models.pair import Pair

ROOFS = 16
"""Places at which the roof of a roofline is tried before the best one is refined."""
STEPS = 40
MOST = 1000
"""Iterations of a non-negative least squares problem; a handful are needed."""
SMALL = 1e-7


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """The best parameters of a candidate."""

    candidate: Candidate
    theta: Floats
    roof: float
    """Infinite for candidates without one."""
    rss: float
    """Sum of squared relative residuals, whitened."""

    def log_cost(self, pair: Pair, axis: Axis) -> Floats:
        """ln of the cost per token at the places of `axis`; -inf where the model says 0."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.candidate.design(axis, pair.bits, self.roof) @ self.theta))


def fit(candidate: Candidate, pair: Pair, whitener: Floats) -> Fit:
    """Minimises |whitener @ (ln measured - ln modelled)|²; `whitener` as of `noise_of`."""
    if not candidate.has_roof:
        theta, rss = _least_squares(candidate.design(pair.axis, pair.bits, math.inf), pair.log_cost, whitener)
        return Fit(candidate=candidate, theta=theta, roof=math.inf, rss=rss)
    assert pair.bits is not None

    def at(log_roof: float) -> tuple[Floats, float]:
        design = candidate.design(pair.axis, pair.bits, math.exp(log_roof))
        merged = np.delete(design, 2, axis=1)
        merged[:, 1] += design[:, 2] / math.exp(log_roof)  # at the roof, compute * roof = weights
        theta, rss = _least_squares(merged, pair.log_cost, whitener)
        return np.insert(theta, 2, theta[1] / math.exp(log_roof)), rss

    highest = float(pair.batch.max()) * pair.bits[False] / pair.bits[True]
    roofs = np.linspace(math.log(float(pair.batch.min())), math.log(highest), ROOFS)
    best = int(np.argmin([at(float(roof))[1] for roof in roofs]))
    found = optimize.minimize_scalar(
        lambda roof: at(roof)[1],
        bounds=(float(roofs[max(best - 1, 0)]), float(roofs[min(best + 1, ROOFS - 1)])),
        method="bounded",
        options={"xatol": 1e-3},
    )
    chosen = min(float(found.x), float(roofs[best]), key=lambda roof: at(roof)[1])
    theta, rss = at(chosen)
    return Fit(candidate=candidate, theta=theta, roof=math.exp(chosen), rss=rss)


def _least_squares(design: Floats, log_cost: Floats, whitener: Floats) -> tuple[Floats, float]:
    """Gauss-Newton, each step a non-negative least squares problem (Lawson and Hanson 1974): near a cost m, ln(design @
    theta) is ln m - 1 + design / m @ theta."""
    log_model, theta, rss = log_cost, np.zeros(design.shape[1]), math.inf
    for _ in range(STEPS):
        slope = whitener @ (design / np.exp(log_model)[:, None])
        full = optimize.nnls(slope, whitener @ (1 + log_cost - log_model), maxiter=MOST)[0]
        share = 1.0
        while True:
            tried = theta + share * (full - theta)
            with np.errstate(divide="ignore"):
                log_tried = np.log(design @ tried)
            left = whitener @ np.where(np.isfinite(log_tried), log_cost - log_tried, 1e3)
            now = float(left @ left)
            if now <= rss or share < SMALL:
                break
            share /= 2
        done = rss - now <= SMALL * now
        if now <= rss:
            log_model, theta, rss = log_tried, tried, now
        if done or not np.isfinite(log_model).all():
            break
    return theta, max(rss, len(log_cost) * EXACT**2)
