"""Simulated studies with known truth: the intervals cover it, and equal precisions are seldom called a trap."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from loadgen.analysis.indices.formulas import IndexSettings, RepeatNoise
from loadgen.analysis.indices.point import OperatingPoint, Repeat, item_figures, ratios_of
from loadgen.analysis.indices.study import TargetIndices, target_indices

pytestmark = pytest.mark.slow

STUDIES, RESAMPLES, ITEMS = 250, 800, 300
SETTINGS = IndexSettings()
NOISE = 0.02
"""Relative standard deviation of a repeat, half of its variance shared by both sides; rates and joules vary alike."""


def studies(*, lost: float, won: float, eta: float, s: float, rho: float, repeats: int = 3) -> list[TargetIndices]:
    """A reference that has 43% right; the target loses and wins these shares of all items."""
    rng = np.random.default_rng(42)
    kinds = rng.choice(4, (STUDIES, ITEMS), p=[0.43 - lost, lost, won, 0.57 - won])
    factor = np.linalg.cholesky(np.array([[1, -0.8], [-0.8, 1]])) * NOISE
    noise = rng.standard_normal((STUDIES, 3, repeats, 2)) @ factor.T
    found = []
    for place, (kind, (shared, ours, theirs)) in enumerate(zip(kinds, noise, strict=True)):
        reference = _point("fp16", 1000, 10, 2e9, kind <= 1, shared + theirs)
        target = _point("awq", 1000 * eta, 10 / s, 2e9 / rho, kind % 2 == 0, shared + ours)
        items = item_figures([target], reference, resamples=RESAMPLES, seed=place)["awq"]
        draws = RepeatNoise(set(range(repeats)), resamples=RESAMPLES, seed=place)
        ratios = ratios_of(target, reference, items=items, noise=draws, settings=SETTINGS)
        entry = target_indices(ratios, reference="fp16", concurrency=16, settings=SETTINGS, t_si=items.t.estimate)
        found.append(entry)
    return found


def _point(
    target: str, tps: float, energy_j: float, memory: float, right: np.ndarray, noise: np.ndarray
) -> OperatingPoint:
    return OperatingPoint(
        target=target,
        concurrency=16,
        repeats=tuple(
            Repeat(
                repeat=at,
                tokens_per_s=tps * float(np.exp(rate)),
                energy_per_query_j=energy_j * float(np.exp(joules)),
                memory_needed_bytes=memory,
            )
            for at, (rate, joules) in enumerate(noise)
        ),
        scores={str(item): float(correct) for item, correct in enumerate(right)},
    )


@pytest.mark.parametrize("repeats", [3, 5])
def test_intervals_cover_the_truth(repeats: int) -> None:
    """At least 92%: 95% less two standard errors of 250 studies, and a little for 300 items."""
    found = studies(lost=0.08, won=0.04, eta=0.9, s=0.8, rho=3, repeats=repeats)
    t, e, s = 0.39 / 0.43, 1 / (0.5 / 0.9 + 0.5 / 3), 0.8
    truth = {
        "cor_tps": 1 / 0.9 - 1,
        "t_si": t,
        "s_si": s,
        "si": 0.34 * t + 0.33 * e + 0.33 * s,
        "si_raw": 0.34 * t + 0.33 * e + 0.33 * s,
        "si_geometric": t**0.34 * e**0.33 * s**0.33,
    }
    for name, true in truth.items():
        covered = [getattr(entry, name).lo <= true <= getattr(entry, name).hi for entry in found]
        assert np.mean(covered) >= 0.92, name
    efficiencies = [entry.e_si.value for entry in found]
    assert np.mean([index.lo <= e <= index.hi for index in efficiencies]) >= 0.92
    widths = [entry.si.hi - entry.si.lo for entry in found]
    assert np.median(widths) < 0.2


@pytest.mark.parametrize("flips", [0.0, 0.05])
def test_equal_precisions_are_seldom_called_a_trap_or_a_benefit(flips: float) -> None:
    """The truth is at the kink of S's clamp, where percentiles of the clamped draws called every seventh a trap."""
    verdicts = Counter(entry.trap for entry in studies(lost=flips, won=flips, eta=1, s=1, rho=1))
    assert verdicts["trap"] + verdicts["no trap"] <= 0.05 * STUDIES
