"""Short form of bench/crossover_recovery.py: B* is covered, found, and not invented."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

pytestmark = pytest.mark.slow

STUDIES = 120
SURELY = 0.001


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
    import crossover_recovery

    return crossover_recovery


def shares(bench: ModuleType, truth: str, grid: str, noise: str, studies: int = STUDIES) -> dict[str, float]:
    rng = np.random.default_rng([12, *map(ord, truth + grid + noise)])
    setting = bench.Setting(truth=truth, grid=grid, noise=noise)
    found: dict[str, float] = bench.study_shares([bench.TRUTHS[truth](rng) for _ in range(studies)], rng, setting)
    return found


def least(count: float, share: float) -> float:
    """So few of `count` come once in a thousand times where the chance of each is `share`."""
    return float(stats.binom.ppf(SURELY, count, share))


def test_the_tolerance_notices_a_plain_bootstrap(bench: ModuleType) -> None:
    """The percentile bootstrap of three repeats covers some two thirds and would fail the test below."""
    found = shares(bench, "hill", "fine", "independent")
    assert found["bootstrap_covered"] * found["reported"] < least(found["reported"], 0.93)


@pytest.mark.parametrize(
    ("truth", "grid", "noise"),
    [
        ("log_linear", "fine", "starts"),
        ("amortised", "fine", "shared"),
        ("roofline", "fine", "independent"),
        ("roofline", "coarse", "falling"),
        ("plateau", "fine", "one_noisy"),
        ("monotone", "fine", "uneven"),
        ("monotone", "coarse", "items"),
        ("hill", "fine", "falling"),
        ("hill", "coarse", "one_noisy"),
    ],
)
def test_the_interval_covers_b_star_and_directions_are_right(
    bench: ModuleType, truth: str, grid: str, noise: str
) -> None:
    found = shares(bench, truth, grid, noise)
    assert found["reported"] > STUDIES / 4
    assert found["covered"] * found["reported"] >= least(found["reported"], 0.93)
    assert found["direction_errors"] <= stats.binom.isf(SURELY, STUDIES, 0.05)
    assert found["false_verdicts"] * STUDIES <= stats.binom.isf(SURELY, STUDIES, 0.05)
    assert found["false_sign_studies"] * STUDIES <= stats.binom.isf(SURELY, STUDIES, 0.05)


@pytest.mark.parametrize("truth", ["padding", "jump"])
def test_where_a_curve_steps_the_bracket_holds(bench: ModuleType, truth: str) -> None:
    found = shares(bench, truth, "fine", "independent")
    assert found["bracketed"] * found["reported"] >= least(found["reported"], 0.97)


def test_padding_that_the_log_tells_is_covered(bench: ModuleType) -> None:
    found = shares(bench, "padding_logged", "fine", "independent")
    assert found["covered"] * found["reported"] >= least(found["reported"], 0.93)


def test_two_crossings_are_found_where_two_were_built_in(bench: ModuleType) -> None:
    """The hills are 15 to 60% high, five to twenty times the noise of a mean of three: nine in ten are plain."""
    found = shares(bench, "hill", "fine", "independent")
    assert found["several"] == STUDIES
    assert found["several_found"] * STUDIES >= least(STUDIES, 0.9)


@pytest.mark.parametrize("noise", ["independent", "shared", "items", "one_noisy", "falling", "starts"])
@pytest.mark.parametrize("grid", ["fine", "coarse"])
def test_no_difference_is_no_crossover(bench: ModuleType, grid: str, noise: str) -> None:
    found = shares(bench, "a_a", grid, noise)
    limit = stats.binom.isf(SURELY, STUDIES, 0.05)
    assert found["false_crossover_studies"] * STUDIES <= stats.binom.isf(SURELY, STUDIES, 0.001)
    assert found["false_sign_studies"] * STUDIES <= limit
    assert found["false_verdicts"] * STUDIES <= limit


def test_random_cost_models_are_recovered(bench: ModuleType) -> None:
    found = shares(bench, "cost_model", "fine", "independent", studies=60)
    assert found["covered"] * found["reported"] >= least(found["reported"], 0.93)
