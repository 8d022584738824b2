"""ModelFit: what one candidate makes of a pair, as it stands in analysis.json."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.models.candidate import Candidate, Pair
from loadgen.analysis.models.fit import BStar, Fit, b_star, draws, fit, identified, interval, lack_of_fit, noise_of


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


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate's entry with what other parts of the study are computed from."""

    entry: ModelFit
    fitted: Fit
    drawn: Floats
    """Resampled parameters, as from `draws`."""


def model_fit(candidate: Candidate, pair: Pair, unit: str) -> Judged:
    """Fits and judges one candidate; `unit` of the cost: J or s."""
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
        residuals=_residuals(fitted, pair),
        lack_of_fit_p=lack_of_fit(pair, noise, fitted.rss, terms),
        cv_error=_cv_error(candidate, pair),
        aicc=aicc(fitted.rss, n, terms),
        b_star=b_star(fitted, pair, drawn),
    )
    return Judged(entry=entry, fitted=fitted, drawn=drawn)


def aicc(rss: float, observations: int, parameters: int) -> float | None:
    """n ln(rss / n) + 2 k + 2 k (k + 1) / (n - k - 1), the variance counted as a parameter: k = parameters + 1. None
    where n - k - 1 is not positive."""
    k = parameters + 1
    if observations - k - 1 <= 0:
        return None
    return observations * math.log(rss / observations) + 2 * k + 2 * k * (k + 1) / (observations - k - 1)


def _parameters(fitted: Fit, pair: Pair, drawn: Floats, unit: str) -> tuple[Parameter, ...]:
    made = []
    known = identified(fitted, pair)
    for place, term in enumerate(fitted.candidate.terms):
        value = float(fitted.theta[place]) if known[place] else None
        lo, hi = interval(drawn[:, place]) if known[place] else (None, None)
        per = f"({term.per})" if "·" in term.per else term.per
        made.append(Parameter(name=term.name, unit=f"{unit}/{per}", value=value, lo=lo, hi=hi))
    return tuple(made)


def _residuals(fitted: Fit, pair: Pair) -> tuple[Residual, ...]:
    left = pair.log_cost - fitted.log_cost(pair, pair.axis)
    made = []
    for b in pair.concurrencies:
        for of_target in (False, True):
            here = (pair.concurrency == b) & (pair.of_target == of_target)
            made.append(Residual(of_target=of_target, concurrency=b, batch=float(pair.batch[here][0]),
                                 log_ratio=float(left[here].mean())))  # fmt: skip
    return tuple(made)


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
