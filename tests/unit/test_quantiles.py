"""Percentiles, beside numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from loadgen.analysis.celldata import percentiles


@pytest.mark.parametrize("decimals", [1, 17])
@pytest.mark.parametrize("quantiles", [(50, 99), (50, 90, 99), (99,), (0, 25, 100)])
def test_they_are_numpys_to_the_last_digit(quantiles: tuple[int, ...], decimals: int) -> None:
    """Quantiles of any number of values, also where many are equal."""
    rng = np.random.default_rng(0)
    for size in range(1, 200):
        values = np.round(rng.random(size), decimals)
        before = values.copy()
        assert percentiles(values, quantiles) == np.percentile(values, quantiles).tolist()
        assert np.array_equal(values, before), "left as it was"


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(1).normal(size=300_000).round(3),
        np.arange(300_000.0)[::-1],
        np.arange(300_000) % 7 / 3,
        np.repeat([1.0, 5.0], 150_000),
        np.where(np.arange(300_000) % (300_000 // (1 << 14)), 0.0, np.arange(300_000)),
        (np.arange(18 << 14) % 18 >= 9) * 1.0,
    ],
    ids=["scattered", "falling", "few values", "two values", "a sample unlike the others", "a step behind the median"],
)
def test_those_of_many_values_are_too(values: np.ndarray) -> None:
    before, quantiles = values.copy(), (0, 1, 25, 50, 75, 99, 100)
    assert percentiles(values, quantiles) == np.percentile(values, quantiles).tolist()
    assert np.array_equal(values, before), "left as it was"


def test_of_two_values_every_percentile_lies_between_them() -> None:
    assert percentiles(np.array([3.0, 1.0]), (0, 50, 100)) == [1.0, 2.0, 3.0]
