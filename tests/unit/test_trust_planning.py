"""The planner's known answers, and that what it promises is kept."""

from __future__ import annotations

import numpy as np
import pytest
from trust_answers import pairs

from loadgen.analysis.trust.paired import mcnemar_p
from loadgen.analysis.trust.planning import (
    detectable_difference,
    items_for_difference,
    items_for_equivalence,
    minutes_at_concurrency,
    minutes_at_rate,
    power_of_equivalence,
    power_of_mcnemar,
    provable_margin,
)


@pytest.mark.parametrize(
    ("psi", "at_80", "at_90"),
    [(0.08, 451, 603), (0.12, 678, 907), (0.16, 905, 1211), (0.20, 1132, 1514), (0.25, 1416, 1894), (0.30, 1699, 2274)],
)
def test_items_for_the_papers_drop(psi: float, at_80: int, at_90: int) -> None:
    assert items_for_difference(-0.0372, psi) == at_80
    assert items_for_difference(0.0372, psi, power=0.9) == at_90


def test_items_for_smaller_drops() -> None:
    assert [items_for_difference(0.0228, psi) for psi in (0.08, 0.12, 0.20)] == pytest.approx([1206, 1810, 3017], abs=1)
    assert items_for_difference(0.01, 0.08) == 6277


@pytest.mark.parametrize(
    ("delta", "powers"),
    [(0.0372, {0.12: 0.97, 0.16: 0.91, 0.20: 0.84, 0.25: 0.76}), (0.0228, {0.08: 0.81, 0.12: 0.65, 0.20: 0.43})],
)
def test_exact_power_at_the_whole_of_gsm8k(delta: float, powers: dict[float, float]) -> None:
    """The anchors were simulated: known to a point."""
    for psi, power in powers.items():
        assert power_of_mcnemar(1319, delta, psi) == pytest.approx(power, abs=0.016)
    assert power_of_mcnemar(1319, 0.0372, 0.08) > 0.99


def test_exact_power_is_how_often_the_test_rejects() -> None:
    n, delta, psi = 120, 0.1, 0.2
    rng = np.random.default_rng(5)
    cells = rng.multinomial(n, [0.5, (psi + delta) / 2, (psi - delta) / 2, 0.5 - psi], size=1000)
    rejected = np.mean([mcnemar_p(pairs(*map(int, cell))) <= 0.05 for cell in cells])
    power = power_of_mcnemar(n, delta, psi)
    assert rejected == pytest.approx(power, abs=3 * (power * (1 - power) / 1000) ** 0.5)


def test_the_size_of_the_exact_test_is_below_alpha() -> None:
    assert power_of_mcnemar(1319, 0, 0.12) < 0.05


@pytest.mark.parametrize(
    ("items", "psi", "pp"),
    [(1319, 0.12, 2.7), (1319, 0.20, 3.5), (2985, 0.12, 1.8), (2985, 0.20, 2.3), (604, 0.12, 4.0), (604, 0.20, 5.1)],
)
def test_the_smallest_difference_that_a_number_of_items_shows(items: int, psi: float, pp: float) -> None:
    """Anchors given to a tenth of a point, 604 at 12% as 4.0 where the formula says 3.94."""
    delta = detectable_difference(items, psi)
    assert delta is not None
    assert 100 * delta == pytest.approx(pp, abs=0.065)
    assert items_for_difference(delta, psi) == items


def test_so_few_items_that_nothing_can_be_shown() -> None:
    assert detectable_difference(10, 0.1) is None


@pytest.mark.parametrize(("psi", "items"), [(0.01, 856), (0.02, 1713), (0.04, 3426), (0.06, 5139)])
def test_items_for_equivalence_within_one_point(psi: float, items: int) -> None:
    """The anchors were computed with z = 1.645 + 1.2816, which is worth one item at 5139."""
    assert items_for_equivalence(0.01, psi) == pytest.approx(items, abs=1)
    assert items_for_equivalence(0.02, psi) == pytest.approx(items / 4, abs=1)


def test_equivalence_is_dearer_where_there_is_a_difference() -> None:
    none, small = items_for_equivalence(0.02, 0.06), items_for_equivalence(0.02, 0.06, delta=0.01)
    assert small > 2 * none
    assert power_of_equivalence(small, 0.02, 0.06, delta=0.01) == pytest.approx(0.8, abs=0.001)
    with pytest.raises(ValueError, match="not inside the margin"):
        items_for_equivalence(0.02, 0.06, delta=-0.02)


def test_the_smallest_margin_that_gsm8k_proves() -> None:
    margins = [100 * provable_margin(1319, psi) for psi in (0.01, 0.02, 0.04, 0.06, 0.10)]
    assert margins == pytest.approx([0.8, 1.1, 1.6, 2.0, 2.5], abs=0.06)
    assert power_of_equivalence(1319, provable_margin(1319, 0.04), 0.04) == pytest.approx(0.8)


def test_minutes() -> None:
    assert minutes_at_concurrency(1280, 64, 6) == 2
    assert minutes_at_concurrency(3, 64, 6) == 0.1
    assert minutes_at_rate(1200, 2000, 150) == 1.5
