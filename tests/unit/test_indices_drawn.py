"""Draws and the intervals made of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from loadgen.analysis.estimate import Estimate
from loadgen.analysis.indices.formulas import RepeatNoise, Resampled, derive, least

RNG = np.random.default_rng(7)


def normal(value: float) -> Resampled:
    return Resampled(value=value, draws=value + RNG.standard_normal(200_000))


def test_the_smaller_of_two_has_bonferronis_upper_end() -> None:
    """At a tie: 1.96 standard errors down, 2.24 up. Far from it: the interval of the smaller one, 2.24 up."""
    tie = least(normal(0), normal(0))
    assert (tie.lo, tie.hi) == pytest.approx((stats.norm.ppf(0.025), stats.norm.ppf(0.9875)), abs=0.03)
    apart = least(normal(0), normal(10))
    assert (apart.value, apart.lo, apart.hi) == pytest.approx((0, -1.96, 2.24), abs=0.03)


def test_the_smaller_of_two_is_as_unknown_as_either() -> None:
    assert least(normal(0), Resampled(value=1, draws=None)) == Estimate(value=0)


def test_a_mean_over_repeats_is_drawn_by_students_t() -> None:
    values = {1: 90.0, 2: 100.0, 4: 115.0}
    logs = np.log(list(values.values()))
    found = RepeatNoise({1, 2, 3, 4}, resamples=100_000, seed=0).mean(values).estimate
    wanted = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert found.value == pytest.approx(stats.gmean([90, 100, 115]))
    assert np.log([found.lo, found.hi]) == pytest.approx(wanted, abs=0.01)


def test_a_ratio_over_shared_repeats_is_that_of_the_paired_t_test() -> None:
    ours, theirs = {1: 90.0, 2: 100.0, 3: 115.0}, {1: 93.0, 2: 99.0, 3: 120.0}
    noise = RepeatNoise({1, 2, 3}, resamples=100_000, seed=0)
    ratio = derive(lambda one, other: one / other, noise.mean(ours), noise.mean(theirs)).estimate
    test = stats.ttest_rel(np.log(list(ours.values())), np.log(list(theirs.values()))).confidence_interval()
    assert np.log([ratio.lo, ratio.hi]) == pytest.approx([test.low, test.high], abs=0.002)


def test_draws_without_a_value_are_left_out_while_they_are_few() -> None:
    draws = np.arange(1000.0)
    draws[:20] = np.nan
    assert Resampled(value=500, draws=draws).estimate.lo == pytest.approx(20 + 0.025 * 979)
    draws[:30] = np.nan
    assert Resampled(value=500, draws=draws).estimate == Estimate(value=500)


def test_a_border_is_neither_above_nor_below_itself() -> None:
    on = Estimate(value=1, lo=1 - 1e-12, hi=1 - 1e-12)
    assert not on.below(1)
    assert not on.above(1)
    assert Estimate(value=0.9, lo=0.8, hi=0.99).below(1)
    assert not Estimate(value=0.9).below(1)


def test_a_falling_function_swaps_the_ends() -> None:
    assert Estimate(value=0.5, lo=0.25, hi=1.0).falling(lambda si: 1 / si - 1) == Estimate(value=1, lo=0, hi=3)
