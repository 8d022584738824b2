"""CorrectEnergy: joules per correct answer."""

from __future__ import annotations

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.intervals import CONFIDENCE
from loadgen.analysis.trust.resample import RESAMPLES, resampled_means


class CorrectEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """Joules spent per correct answer, with a 95% interval; value None where nothing was answered correctly."""

    value_j: float | None
    lo_j: float | None
    hi_j: float | None


def correct_energy(
    energy_per_query_j: float,
    scores: Floats,
    *,
    relative_error: float | None = None,
    degrees: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> CorrectEnergy:
    """Energy per query over accuracy; `scores` are the items' shares of correct answers.

    `relative_error` is the standard error of the mean energy on the log scale (sd of the repeats' logarithms / sqrt
    (repeats)) with `degrees` = repeats - 1 degrees of freedom, None if known from elsewhere (normal). Its draws
    multiply an item bootstrap of the accuracy. Without it, or where over 2.5% of the resamples have nothing right,
    there is no interval.
    """
    accuracy = float(scores.mean()) if len(scores) else 0.0
    if accuracy == 0:
        return CorrectEnergy(value_j=None, lo_j=None, hi_j=None)
    value = energy_per_query_j / accuracy
    tail = 0.5 - CONFIDENCE / 2
    accuracies = resampled_means(scores[:, None], resamples=resamples, seed=seed)[:, 0]
    if relative_error is None or (accuracies == 0).mean() >= tail:
        return CorrectEnergy(value_j=value, lo_j=None, hi_j=None)
    rng = np.random.default_rng([seed, 1])
    noise = rng.standard_normal(resamples) if degrees is None else rng.standard_t(degrees, resamples)
    usable = accuracies > 0
    with np.errstate(over="ignore"):  # two repeats: Student's t with one degree of freedom has no bounds to speak of
        draws = energy_per_query_j * np.exp(relative_error * noise[usable]) / accuracies[usable]
    lo, hi = np.quantile(draws, [tail, 1 - tail])
    return CorrectEnergy(value_j=value, lo_j=float(lo), hi_j=float(hi))
