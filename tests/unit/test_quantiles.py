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


def test_of_two_values_every_percentile_lies_between_them() -> None:
    assert percentiles(np.array([3.0, 1.0]), (0, 50, 100)) == [1.0, 2.0, 3.0]
