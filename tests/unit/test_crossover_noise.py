"""Noise of a paired curve: variance components by hand, and what they make of points and differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from loadgen.analysis.celldata import Floats
from loadgen.analysis.crossover.crossing import grid_points
from loadgen.analysis.crossover.curve import PairedCurve
from loadgen.analysis.crossover.noise import Noise, decompose, noise_of


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
    rng = np.random.default_rng(1)
    table = rng.standard_normal((4, 3)) + rng.standard_normal(3)
    noise = known(table)
    repeats = table.mean(axis=0)
    rest = table - table.mean(axis=1, keepdims=True) - repeats + table.mean()
    assert noise.repeat_square == pytest.approx(4 * repeats.var(ddof=1))
    assert noise.rest_square == pytest.approx([(rest**2).sum() / 6] * 4)
    assert (noise.repeat_degrees, noise.rest_degrees.tolist(), noise.coefficient) == (2, [6] * 4, 4)
    assert (noise.pooling, noise.apart) == ("all", ())


def test_a_point_and_a_difference_of_points() -> None:
    """Var of a point's mean: (MS_repeat / 4 + MS_rest * 3/4) / 3; of a difference 2 MS_rest / 3, without any repeat."""
    noise = known(np.random.default_rng(1).standard_normal((4, 3)))
    t_repeat, t_rest = stats.t.ppf(0.975, 2), stats.t.ppf(0.975, 6)
    point = math.sqrt((noise.repeat_square / 4 * t_repeat**2 + noise.rest_square[0] * 0.75 * t_rest**2) / 3)
    assert noise.half_width(np.array([[1.0, 0, 0, 0]]))[0] == pytest.approx(point)
    difference = t_rest * math.sqrt(2 / 3 * noise.rest_square[0])
    assert noise.half_width(np.array([[1.0, -1, 0, 0]]))[0] == pytest.approx(difference)


def test_the_p_value_is_where_the_interval_ends_at_0() -> None:
    noise = known(np.random.default_rng(2).standard_normal((4, 3)))
    weights = np.eye(4)
    at_5_percent = noise.half_width(weights, 0.05)
    assert noise.p_value(weights, at_5_percent) == pytest.approx([0.05] * 4, rel=1e-5)
    assert noise.p_value(weights, np.zeros(4)) == pytest.approx([1.0] * 4)


def test_of_a_full_table_the_decomposition_is_the_textbooks() -> None:
    """5 points, 4 starts: mean squares between starts (3 degrees) and of the rest (12); var(s) counts 5 times."""
    table = np.random.default_rng(2).standard_normal((5, 4))
    point, start = np.indices(table.shape)
    found = decompose(table.ravel(), point.ravel(), start.ravel())
    starts = table.mean(axis=0) - table.mean()
    rest = table - table.mean(axis=1, keepdims=True) - starts
    assert (found.between_degrees, found.rest_degrees, found.coefficient) == (3, 12, 5)
    assert found.between_square == pytest.approx(5 * (starts**2).sum() / 3)
    assert found.rest == pytest.approx((rest**2).sum())


def test_components_are_unbiased_with_missing_cells() -> None:
    """Means over 1000 tables with holes: var(s) = 1, var(e) = 4; each within 4 standard errors of 1000 studies."""
    rng = np.random.default_rng(3)
    holes = np.zeros((5, 4), dtype=bool)
    holes[0, 1] = holes[2, 3] = holes[4, 0] = holes[4, 1] = True
    between, rest = [], []
    for _ in range(1000):
        table = rng.standard_normal(4) + 2 * rng.standard_normal((5, 4))
        noise = known(np.where(holes, np.nan, table))
        rest.append(noise.pooled_square)
        between.append((noise.repeat_square - noise.pooled_square) / noise.coefficient)
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


def test_a_point_that_scatters_unlike_the_others_has_the_variance_of_its_own_repeats() -> None:
    """Nine points of 0.4% and one of 4%: the own variance is that of its deviations from the others' repeats."""
    rng = np.random.default_rng(5)
    table = 0.004 * rng.standard_normal((10, 5)) + 0.02 * rng.standard_normal(5)
    table[3] += 0.04 * rng.standard_normal(5)
    noise = known(table)
    others = np.delete(table, 3, axis=0)
    deviations = table[3] - others.mean(axis=0)
    assert (noise.pooling, noise.apart) == ("all", (3,))
    assert noise.rest_square[3] == pytest.approx(deviations.var(ddof=1))
    assert noise.rest_degrees[3] == 4
    rest = others - others.mean(axis=1, keepdims=True) - others.mean(axis=0) + others.mean()
    assert noise.rest_square[0] == pytest.approx((rest**2).sum() / 32)
    assert noise.cautious.rest_square[0] == noise.pooled_square > noise.rest_square[0]


def test_each_of_two_batches_has_its_own_variance() -> None:
    """Any weighted sum of two points is one figure per repeat, so its interval is Student's of these figures; the
    quieter point's alone may be wider."""
    rng = np.random.default_rng(8)
    table = np.array([[0.004], [0.04]]) * rng.standard_normal((2, 5)) + 0.01 * rng.standard_normal(5)
    noise = known(table)
    assert noise.pooling == "none"
    t = stats.t.ppf(0.975, 4)
    for weights in ((0.0, 1.0), (1.0, -1.0), (0.3, 0.7)):
        figures = np.array(weights) @ table
        assert noise.half_width(np.array([weights]))[0] == pytest.approx(t * figures.std(ddof=1) / math.sqrt(5))
    assert noise.half_width(np.array([[1.0, 0.0]]))[0] >= t * table[0].std(ddof=1) / math.sqrt(5)


def test_noise_that_falls_with_the_batch_is_taken_as_a_power_of_it() -> None:
    """Standard deviation 5% / sqrt(B), so a variance of B to the power -1: over 200 studies of 5 repeats the variance
    of the first point is estimated within 15% of the truth on average, with fewer degrees than the pooled 36."""
    rng = np.random.default_rng(6)
    batch = 2.0 ** np.arange(10)
    studies = [known(0.05 / np.sqrt(batch)[:, None] * rng.standard_normal((10, 5))) for _ in range(200)]
    trended = [noise for noise in studies if noise.pooling == "power of the batch"]
    assert len(trended) > 190
    assert np.mean([noise.rest_square[0] for noise in trended]) == pytest.approx(0.05**2, rel=0.15)
    assert all(noise.rest_degrees[0] < noise.rest_degrees[5] <= 36 for noise in trended)


def test_a_doubtful_trend_gives_each_batch_the_larger_of_both_variances() -> None:
    """Standard deviations rise with the batch by a factor from 1 to 6: between no trend and a proven one it is in
    doubt, and no point's variance is below that of all together."""
    pattern = np.array([[1, -1, 0, 0], [0, 0, 1, -1], [1, 1, -1, -1], [-1, 1, -1, 1.0]])
    pattern /= np.linalg.norm(pattern, axis=1, keepdims=True)
    for widest in np.linspace(1, 6, 11):
        noise = known(pattern * np.geomspace(1, widest, 4)[:, None])
        if noise.pooling == "all" and np.ptp(noise.rest_square) > 0:
            assert noise.rest_square.min() == pytest.approx(noise.pooled_square)
            assert noise.rest_square[3] > noise.pooled_square
            assert set(noise.rest_degrees) == {9}
            return
    pytest.fail("no ratio of the standard deviations is doubtful")


@pytest.mark.parametrize("kind", ["one noisy", "falling"])
def test_uneven_noise_proves_no_more_than_5_percent_false_signs(kind: str) -> None:
    """No difference at any of nine batches, five repeats: with one variance for all, 29 and 21% had a sign proven."""
    rng = np.random.default_rng(7)
    batch = 2.0 ** np.arange(9)
    wrong = 0
    for _ in range(150):
        sd = 0.05 / np.sqrt(batch)
        if kind == "one noisy":
            sd = np.full(9, 0.004)
            sd[rng.integers(9)] = 0.04
        curve = paired(sd[:, None] * rng.standard_normal((9, 5)))
        wrong += any(point.proven for point in grid_points(curve, noise_of(curve)))
    assert wrong <= stats.binom.isf(0.001, 150, 0.05)


def test_without_repeats_there_is_no_noise_to_know() -> None:
    assert noise_of(paired(np.array([[0.1], [0.2]]))) is None
