"""Short form of bench/model_recovery.py: the true family is found, and intervals hold what they should."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from loadgen.analysis.models.candidate import CANDIDATES
from loadgen.analysis.models.fit import draws, fit, interval, noise_of

pytestmark = pytest.mark.slow

SURELY = 0.001
STUDIES = 12


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
    import model_recovery

    return model_recovery


@pytest.mark.parametrize("family", ["M1", "M2", "M3", "M3c", "M4"])
def test_the_true_family_is_found_and_no_other_named(bench: ModuleType, family: str) -> None:
    """In 12 studies: lowest AICc in three of four, another one named in a tenth, unless by the worst of luck."""
    found = bench.family_row(family, "fine", STUDIES)
    assert found["lowest_aicc"] * STUDIES >= stats.binom.ppf(SURELY, STUDIES, 0.75)
    assert found["named_wrong"] * STUDIES <= stats.binom.isf(SURELY, STUDIES, 0.1)
    assert found["none_fits"] * STUDIES <= stats.binom.isf(SURELY, STUDIES, 0.02)


@pytest.mark.parametrize("family", ["M1", "M3", "M3c"])
def test_parameters_lie_in_their_intervals(bench: ModuleType, family: str) -> None:
    candidate = CANDIDATES[family]
    rng = np.random.default_rng([9, list(CANDIDATES).index(family)])
    studies, inside = 100, np.zeros(len(candidate.terms))
    for _ in range(studies):
        theta, pair = bench.family_study(rng, candidate, "fine")
        noise = noise_of(pair)
        drawn = draws(fit(candidate, pair, noise.whitener), pair, noise)
        for term, true in enumerate(theta):
            low, high = interval(drawn[:, term])
            inside[term] += low <= true <= high
    assert inside.min() >= stats.binom.ppf(SURELY, studies, 0.93)
