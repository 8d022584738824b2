"""The planner's known answers, and that what it promises is kept."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from trust_answers import pairs

from loadgen.analysis.trust.accuracy import (
    MANY_CHANGES,
    detectable_difference,
    items_for_difference,
    items_for_equivalence,
    minutes_at_concurrency,
    minutes_at_rate,
    power_of_equivalence,
    power_of_mcnemar,
    provable_margin,
)
from loadgen.analysis.trust.significance import Changes, equivalence_p, mcnemar_p


@pytest.mark.parametrize(
    ("psi", "at_80", "at_90"),
    [(0.08, 451, 603), (0.12, 678, 907), (0.16, 905, 1211), (0.20, 1132, 1514), (0.25, 1416, 1894), (0.30, 1699, 2274)],
)
def test_items_for_the_papers_drop(psi: float, at_80: int, at_90: int) -> None:
    """The anchors are Connor's normal approximation; the exact test needs up to 2 / 0.0372 = 54 items more."""
    assert at_80 < items_for_difference(-0.0372, psi) < at_80 + 54
    assert at_90 < items_for_difference(0.0372, psi, power=0.9) < at_90 + 54


@pytest.mark.parametrize(("delta", "psi"), [(0.3, 0.3), (0.1, 0.2), (0.0372, 0.12), (0.0228, 0.08), (0.01, 0.08)])
@pytest.mark.parametrize(("power", "alpha"), [(0.8, 0.05), (0.9, 0.05), (0.8, 0.0125)])
def test_the_power_promised_is_that_of_the_exact_test(delta: float, psi: float, power: float, alpha: float) -> None:
    items = items_for_difference(delta, psi, power=power, alpha=alpha)
    assert power_of_mcnemar(items, delta, psi, alpha=alpha) >= power
    assert power_of_mcnemar(items - 1, delta, psi, alpha=alpha) < power


def test_many_changes_are_planned_by_a_formula_that_is_as_good() -> None:
    for delta, psi in ((0.01, 0.15), (0.0372, 0.5)):
        items = items_for_difference(delta, psi)
        assert items * psi > MANY_CHANGES
        assert power_of_mcnemar(items, delta, psi) == pytest.approx(0.8, abs=0.002)


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
    """Anchors of the normal approximation, given to a tenth of a point; the exact test shows a little less."""
    delta = detectable_difference(items, psi)
    assert delta is not None
    assert 100 * delta == pytest.approx(pp, abs=0.13)
    assert power_of_mcnemar(items, delta, psi) == pytest.approx(0.8)


def test_so_few_items_that_nothing_can_be_shown() -> None:
    assert detectable_difference(10, 0.1) is None


@pytest.mark.parametrize(("psi", "items"), [(0.01, 856), (0.02, 1713), (0.04, 3426), (0.06, 5139)])
def test_items_for_equivalence_within_one_point(psi: float, items: int) -> None:
    """The anchors are Wald's, psi (1.645 + 1.2816)^2 / margin^2. The score test's variance at the margin is larger:
    that costs the less the more items change."""
    few, many = items_for_equivalence(0.01, psi) / items, items_for_equivalence(0.02, psi) / (items / 4)
    assert 1 < few < many < 1 + 0.0085 / psi


@pytest.mark.parametrize(("margin", "psi"), [(0.02, 0.06), (0.01, 0.02), (0.05, 0.1)])
def test_the_power_promised_is_that_of_the_score_test(margin: float, psi: float) -> None:
    """Summed over all numbers of won and lost items. Wald's numbers of items have a power of 76 to 78%."""
    n = items_for_equivalence(margin, psi)
    each = range(int(n * psi / 2 + 6 * (n * psi / 2) ** 0.5 + 6))
    won, lost = (side.ravel() for side in np.meshgrid(each, each))
    logs = special.gammaln(n + 1) - sum(special.gammaln(k + 1) for k in (won, lost, n - won - lost))
    weight = np.exp(logs + (won + lost) * np.log(psi / 2) + (n - won - lost) * np.log(1 - psi))
    likely = weight > 1e-7
    proven = [
        equivalence_p(Changes(n=n, won=w, lost=k), margin) <= 0.05
        for w, k in zip(won[likely].tolist(), lost[likely].tolist(), strict=True)
    ]
    assert 0.8 <= weight[likely] @ np.array(proven) <= 0.83


def test_equivalence_is_dearer_where_there_is_a_difference() -> None:
    none, small = items_for_equivalence(0.02, 0.06), items_for_equivalence(0.02, 0.06, delta=0.01)
    assert small > 2 * none
    assert power_of_equivalence(small, 0.02, 0.06, delta=0.01) == pytest.approx(0.8, abs=0.001)
    with pytest.raises(ValueError, match="not inside the margin"):
        items_for_equivalence(0.02, 0.06, delta=-0.02)


def test_the_smallest_margin_that_gsm8k_proves() -> None:
    """The anchors are Wald's: psi (1.645 + 1.2816)^2 / 1319."""
    margins = [100 * provable_margin(1319, psi) for psi in (0.01, 0.02, 0.04, 0.06, 0.10)]
    assert margins == pytest.approx([0.8, 1.1, 1.6, 2.0, 2.5], abs=0.13)
    assert provable_margin(1, 0.9) == 1
    assert power_of_equivalence(1319, provable_margin(1319, 0.04), 0.04) == pytest.approx(0.8)


def test_minutes() -> None:
    assert minutes_at_concurrency(1280, 64, 6) == 2
    assert minutes_at_concurrency(3, 64, 6) == 0.1
    assert minutes_at_rate(1200, 2000, 150) == 1.5
