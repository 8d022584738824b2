"""Short form of bench/trust_coverage.py: intervals cover and tests hold their size in simulated studies."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

pytestmark = pytest.mark.slow

STUDIES = 300
SURELY = 0.001


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
    import trust_coverage

    return trust_coverage


def at_most(share: float, limit: float) -> bool:
    """Not so far above the limit as chance brings 300 studies once in a thousand times."""
    return round(share * STUDIES) <= stats.binom.isf(SURELY, STUDIES, limit)


def covers(share: float) -> bool:
    """Between 93% and 97% but for chance."""
    return bool(
        stats.binom.ppf(SURELY, STUDIES, 0.93) <= round(share * STUDIES) <= stats.binom.isf(SURELY, STUDIES, 0.97)
    )


def test_the_tolerance_notices_an_80_percent_interval_and_a_test_of_twice_its_size() -> None:
    least = stats.binom.ppf(SURELY, STUDIES, 0.93)
    assert stats.binom.sf(least - 1, STUDIES, 0.80) < 0.001
    assert not at_most(0.10, 0.05)


@pytest.mark.parametrize(
    ("n", "p", "delta", "psi"),
    [(200, 0.4314, 0.0, 0.12), (1319, 0.4314, 0.0, 0.04), (1319, 0.4314, -0.0372, 0.12), (200, 0.2, -0.1, 0.2)],
)
def test_intervals_cover_and_no_false_alarm(bench: ModuleType, n: int, p: float, delta: float, psi: float) -> None:
    rng = np.random.default_rng([3, n])
    shares = bench.comparison_shares((bench.table_study(rng, n, p, delta, psi) for _ in range(STUDIES)), p, delta)
    for name in ("accuracy", "difference", "t_si", "t_si_delta", "correct_energy"):
        assert covers(shares[f"{name}_covered"]), (name, shares)
    if delta == 0:
        assert at_most(shares["worse"] + shares["better"], 0.05)


def test_equivalence_is_rarely_claimed_at_the_margin(bench: ModuleType) -> None:
    for psi in (0.02, 0.04, 0.12):
        rng = np.random.default_rng([4, round(psi * 100)])
        studies = (bench.table_study(rng, 1319, 0.4314, -0.02, psi) for _ in range(STUDIES))
        assert at_most(bench.comparison_shares(studies, 0.4314, -0.02)["equivalent"], 0.05)


def test_repeated_answers_cover_too(bench: ModuleType) -> None:
    rng = np.random.default_rng(5)
    shares = bench.comparison_shares(
        (bench.repeated_study(rng, 200, 0.43, -0.04, 3) for _ in range(STUDIES)), 0.43, -0.04
    )
    assert covers(shares["difference_covered"])
    assert covers(shares["t_si_covered"])


def test_a_family_without_differences_rarely_alarms(bench: ModuleType) -> None:
    assert at_most(bench.family_false_alarms(np.random.default_rng(6), 1319, 4, 0.12, STUDIES), 0.05)


@pytest.mark.parametrize("undecided", [0.01, 0.2], ids=["permutation", "chi2"])
def test_cochrans_q_holds_its_size(bench: ModuleType, undecided: float) -> None:
    assert at_most(bench.cochran_size(np.random.default_rng(7), 200, 4, undecided, STUDIES), 0.05)


def test_the_interaction_tests_hold_their_size_on_their_own_scale(bench: ModuleType) -> None:
    steady_ratio = bench.depth_shares(np.random.default_rng(8), "ratio", STUDIES)
    assert at_most(steady_ratio["relative_rejected"], 0.05)
    steady_difference = bench.depth_shares(np.random.default_rng(9), "difference", STUDIES)
    assert at_most(steady_difference["absolute_rejected"], 0.05)


def test_the_loss_per_step_is_covered_and_the_trend_found(bench: ModuleType) -> None:
    shares = bench.depth_shares(np.random.default_rng(10), "survival", STUDIES)
    assert covers(shares["q_covered"])
    assert shares["relative_rejected"] > 0.5
