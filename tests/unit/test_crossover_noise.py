"""Noise of a paired curve: variance components by hand, and what they make of points and differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from loadgen.analysis.celldata import Floats
from loadgen.analysis.crossover.curve import PairedCurve
from loadgen.analysis.crossover.noise import Noise, noise_of


def paired(advantage: Floats) -> PairedCurve:
    points = len(advantage)
    return PairedCurve(
        concurrency=tuple(2**i for i in range(points)),
        batch=2.0 ** np.arange(points),
        advantage=advantage,
        window_error=None,
        item_error=np.zeros(points),
        notes=(),
    )


def known(advantage: Floats) -> Noise:
    noise = noise_of(paired(advantage))
    assert noise is not None
    return noise


def test_mean_squares_of_a_full_table_are_the_text_books() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((4, 3)) + rng.standard_normal(3)
    noise = known(table)
    repeats = table.mean(axis=0)
    rest = table - table.mean(axis=1, keepdims=True) - repeats + table.mean()
    assert noise.repeat_square == pytest.approx(4 * repeats.var(ddof=1))
    assert noise.rest_square == pytest.approx((rest**2).sum() / 6)
    assert (noise.repeat_degrees, noise.rest_degrees, noise.coefficient) == (2, 6, 4)


def test_a_point_and_a_difference_of_points() -> None:
    """Var of a point's mean: (MS_repeat / 4 + MS_rest * 3/4) / 3; of a difference 2 MS_rest / 3, without any repeat."""
    noise = known(np.random.default_rng(1).standard_normal((4, 3)))
    t_repeat, t_rest = stats.t.ppf(0.975, 2), stats.t.ppf(0.975, 6)
    point = math.sqrt((noise.repeat_square / 4 * t_repeat**2 + noise.rest_square * 0.75 * t_rest**2) / 3)
    assert noise.half_width(np.array([[1.0, 0, 0, 0]]))[0] == pytest.approx(point)
    difference = t_rest * math.sqrt(2 / 3 * noise.rest_square)
    assert noise.half_width(np.array([[1.0, -1, 0, 0]]))[0] == pytest.approx(difference)


def test_the_p_value_is_where_the_interval_ends_at_0() -> None:
    noise = known(np.random.default_rng(2).standard_normal((4, 3)))
    weights = np.eye(4)
    at_5_percent = noise.half_width(weights, 0.05)
    assert noise.p_value(weights, at_5_percent) == pytest.approx([0.05] * 4, rel=1e-5)
    assert noise.p_value(weights, np.zeros(4)) == pytest.approx([1.0] * 4)


def test_components_are_unbiased_with_missing_cells() -> None:
    """Means over 1000 tables with holes: var(s) = 1, var(e) = 4; each within 4 standard errors of 1000 studies."""
    rng = np.random.default_rng(3)
    holes = np.zeros((5, 4), dtype=bool)
    holes[0, 1] = holes[2, 3] = holes[4, 0] = holes[4, 1] = True
    between, rest = [], []
    for _ in range(1000):
        table = rng.standard_normal(4) + 2 * rng.standard_normal((5, 4))
        noise = known(np.where(holes, np.nan, table))
        rest.append(noise.rest_square)
        between.append((noise.repeat_square - noise.rest_square) / noise.coefficient)
    for values, truth in ((rest, 4.0), (between, 1.0)):
        assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(1000)


def test_the_variance_of_a_point_with_a_hole_counts_its_repeats() -> None:
    table = np.random.default_rng(4).standard_normal((6, 3))
    table[0, 2] = np.nan
    noise = known(table)
    assert noise.counts.tolist() == [2, 3, 3, 3, 3, 3]
    assert noise.overlap[0, 0] == pytest.approx(1 / 2)
    assert noise.overlap[0, 1] == pytest.approx(2 / 6)


def test_a_single_repeated_point_pools_what_there_is() -> None:
    table = np.full((3, 2), np.nan)
    table[:, 0] = [0.1, 0.2, 0.3]
    table[0, 1] = 0.14
    noise = known(table)
    t = stats.t.ppf(0.975, 1)
    assert noise.half_width(np.eye(3))[1] == pytest.approx(t * math.sqrt(0.04**2 / 2))


def test_without_repeats_there_is_no_noise_to_know() -> None:
    assert noise_of(paired(np.array([[0.1], [0.2]]))) is None
