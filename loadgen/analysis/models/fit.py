"""Fit: least squares on logarithms with parameters of at least 0.

Noise: what repeats say about the scatter of observations. Resampled parameters: how far they would move with other
noise. ModelFit: what one candidate makes of a pair, in analysis.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from scipy import optimize, special

from loadgen.analysis.celldata import Floats
from loadgen.analysis.crossover.noise import decompose, indicators, residual
from loadgen.analysis.estimate import CONFIDENCE, Direction
from loadgen.analysis.models.candidate import Axis, Candidate, Pair

EXACT = 1e-9
"""Relative scatter below which figures count as free of noise."""


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """Errors of the observations, up to a common factor: one of each cell, and one that a start's cells share."""

    whitener: Floats
    """Makes them independent and alike; shape (observations, observations)."""
    shared: Floats
    """Standard deviation of the shared error over that of the cells' own, by observation and start of a server."""
    degrees: int
    """Degrees of freedom that the shared error was estimated with; 0: it was not."""


def noise_of(pair: Pair) -> Noise:
    """The cells of one start share a part of their noise. How large, next to what is each cell's own, is taken from the
    repeats (`Decomposition`, within cells); without repeats it is taken as 0."""
    start = indicators(pair.start)
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
    cells = indicators(pair.cell)
    n, count = cells.shape
    if n == count or count <= parameters:
        return None
    pure = max(residual(noise.whitener @ cells, noise.whitener @ pair.log_cost), n * EXACT**2)
    ratio = (max(rss - pure, 0.0) / (count - parameters)) / (pure / (n - count))
    return float(special.fdtrc(count - parameters, n - count, ratio))


def scatter(pair: Pair) -> float | None:
    """Relative standard deviation of a cell between repeats, pooled; None without repeats."""
    cells = indicators(pair.cell)
    n, count = cells.shape
    return float(np.sqrt(residual(cells, pair.log_cost) / (n - count))) if n > count else None


def _shared_over_own(pair: Pair) -> tuple[float, int]:
    """Ratio of the variances, and the degrees of freedom of the shared one."""
    found = decompose(pair.log_cost, pair.cell, pair.start)
    if not found.known or found.rest <= 0:
        return 0.0, 0
    between = found.between_degrees
    ratio = found.between_square / (found.rest / found.rest_degrees)
    return max(ratio - 1, 0.0) * between / (between + found.rest_degrees), between


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


RESAMPLES = 400
TAIL = 0.5 - CONFIDENCE / 2


class BStar(msgspec.Struct, frozen=True, kw_only=True):
    """Where a fitted model has target and reference cost the same."""

    b: Annotated[float, msgspec.Meta(gt=0)]
    lo: float | None
    """95% interval; None where more than 5% of resamples do not cross in this direction."""
    hi: float | None
    direction: Direction
    share: float
    """Share of the resamples that cross in this direction."""
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
    """Where the fitted model crosses; None if it does not."""
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


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted parameter, at least 0."""

    name: str
    unit: str
    value: float | None
    """None where the measured batches do not determine it, whatever the noise."""
    lo: float | None
    """95% interval."""
    hi: float | None


class Residual(msgspec.Struct, frozen=True, kw_only=True):
    """How far a cell's mean over its repeats lies from the model."""

    of_target: bool
    concurrency: int
    batch: float
    log_ratio: float
    """ln(measured / modelled)."""


class ModelFit(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate, fitted to target and reference together."""

    model: str
    words: str
    parameters: tuple[Parameter, ...]
    observations: int
    """Cells: side x concurrency x repeat."""
    scatter: float
    """Relative standard deviation of the observations around the model, its parameters allowed for."""
    residuals: tuple[Residual, ...]
    lack_of_fit_p: float | None
    """F test of the residuals against the scatter of repeats; None without repeats."""
    cv_error: float | None
    """Relative error (root mean square) at each concurrency of the model fitted without it."""
    aicc: float | None
    """Akaike's criterion with Hurvich and Tsai's correction (1989); None: too few observations for the parameters."""
    delta_aicc: float | None = None
    """Above the lowest of the study."""
    weight: float | None = None
    """Akaike weight among the study's candidates."""
    b_star: BStar | None = None


class FittedModel(NamedTuple):
    """A candidate's entry with what other parts of the study are computed from."""

    entry: ModelFit
    fitted: Fit
    drawn: Floats
    """Resampled parameters, as from `draws`."""


def model_fit(candidate: Candidate, pair: Pair, unit: str) -> FittedModel:
    """Fits one candidate; `unit` of the cost: J or s."""
    noise = noise_of(pair)
    fitted = fit(candidate, pair, noise.whitener)
    drawn = draws(fitted, pair, noise)
    n, terms = len(pair.log_cost), len(candidate.terms)
    entry = ModelFit(
        model=candidate.name,
        words=candidate.words,
        parameters=_parameters(fitted, pair, drawn, unit),
        observations=n,
        scatter=math.sqrt(fitted.rss / max(n - terms, 1)),
        residuals=tuple(_residuals(fitted, pair)),
        lack_of_fit_p=lack_of_fit(pair, noise, fitted.rss, terms),
        cv_error=_cv_error(candidate, pair),
        aicc=aicc(fitted.rss, n, terms),
        b_star=b_star(fitted, pair, drawn),
    )
    return FittedModel(entry, fitted, drawn)


def aicc(rss: float, observations: int, parameters: int) -> float | None:
    """n ln(rss / n) + 2 k + 2 k (k + 1) / (n - k - 1), the variance counted as a parameter: k = parameters + 1. None
    where n - k - 1 is not positive."""
    k = parameters + 1
    if observations - k - 1 <= 0:
        return None
    return observations * math.log(rss / observations) + 2 * k + 2 * k * (k + 1) / (observations - k - 1)


def _parameters(fitted: Fit, pair: Pair, drawn: Floats, unit: str) -> tuple[Parameter, ...]:
    made = []
    terms, known = fitted.candidate.terms.items(), identified(fitted, pair)
    for place, (name, per) in enumerate(terms):
        value, lo, hi = (float(fitted.theta[place]), *interval(drawn[:, place])) if known[place] else (None, None, None)
        per_unit = f"({per})" if "·" in per else per
        made.append(Parameter(name=name, unit=f"{unit}/{per_unit}", value=value, lo=lo, hi=hi))
    return tuple(made)


def _residuals(fitted: Fit, pair: Pair) -> Iterator[Residual]:
    left = pair.log_cost - fitted.log_cost(pair, pair.axis)
    for b in pair.concurrencies:
        for of_target in (False, True):
            here = (pair.concurrency == b) & (pair.of_target == of_target)
            batch, log_ratio = float(pair.batch[here][0]), float(left[here].mean())
            yield Residual(of_target=of_target, concurrency=b, batch=batch, log_ratio=log_ratio)


def _cv_error(candidate: Candidate, pair: Pair) -> float | None:
    errors: list[float] = []
    for b in pair.concurrencies:
        kept = pair.only(pair.concurrency != b)
        without = fit(candidate, kept, noise_of(kept).whitener)
        asked = pair.only(pair.concurrency == b)
        missed = asked.log_cost - without.log_cost(kept, asked.axis)
        errors += [float(missed[asked.of_target == side].mean()) for side in (False, True)]
    error = math.sqrt(float(np.mean(np.square(errors))))
    return error if math.isfinite(error) else None
