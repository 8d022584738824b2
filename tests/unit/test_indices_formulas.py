"""The paper's own numbers, recomputed; and where they contradict each other."""

from __future__ import annotations

import math

import pytest

from loadgen.analysis.indices.formulas import (
    IndexSettings,
    carbon_kg,
    clamped,
    cor_tps,
    deficit,
    efficiency,
    improvement,
    percent_increase,
    si_geometric,
    si_linear,
    sustainability_linear,
    sustainability_log,
)
from loadgen.analysis.indices.point import OperatingPoint, item_figures
from loadgen.errors import UsageError

WEIGHTS = IndexSettings().weights


@pytest.mark.parametrize(("tps", "cor"), [(145, 3.214), (304, 1.010)], ids=["int8", "nf4"])
def test_cor_of_qwen_on_mathqa(tps: float, cor: float) -> None:
    assert cor_tps(tps, 611.0) == pytest.approx(cor, abs=0.0005)


def test_cor_is_negative_where_quantized_is_faster() -> None:
    """1.85 times as fast: -0.46; four times slower: +3."""
    assert cor_tps(1.85, 1.0) == pytest.approx(-0.46, abs=0.005)
    assert cor_tps(0.25, 1.0) == 3


def test_the_worked_example_of_s_si_is_linear() -> None:
    assert sustainability_linear(1110.56, 519.79) == pytest.approx(0.468, abs=0.0005)


def test_the_log_form_depends_on_the_unit() -> None:
    """In joules 0.892; in kgCO2e at 0.4 kg/kWh it is the linear form, as log(1 + x) is x for x of 1e-4."""
    assert sustainability_log(1110.56, 519.79) == pytest.approx(0.892, abs=0.0005)
    chi, reference = carbon_kg(1110.56, 0.4), carbon_kg(519.79, 0.4)
    assert chi == pytest.approx(1110.56 * 0.4 / 3.6e6)
    assert reference == pytest.approx(5.8e-5, rel=0.01)
    assert sustainability_log(chi, reference) == pytest.approx(519.79 / 1110.56, rel=1e-4)


def test_t_si_of_the_papers_nf4_is_that_of_its_counts() -> None:
    """520 and 569 right of 1319, as .3942 / .4314."""
    items = [str(place) for place in range(1319)]
    counts = {"fp16": 569, "nf4": 520}
    fp16, nf4 = (
        OperatingPoint(target=name, concurrency=1, scores={item: float(at < right) for at, item in enumerate(items)})
        for name, right in counts.items()
    )
    ratio = item_figures([nf4], fp16, resamples=100, seed=0)["nf4"].t.value
    assert ratio == pytest.approx(520 / 569)
    assert ratio == pytest.approx(0.3942 / 0.4314, abs=0.0005)


def test_both_published_energies_of_nf4_are_one_ratio() -> None:
    """Two pairs of joules, one latency ratio: the linear form is 0.4680 for either."""
    assert sustainability_linear(503.06, 235.47) == pytest.approx(sustainability_linear(1110.56, 519.79), abs=1e-4)


@pytest.mark.parametrize(("cor", "floor", "rho"), [(2.45, 0.449, 0.645), (1.9445, 0.507, 0.487)], ids=["h100", "a100"])
def test_the_published_e_si_of_int8_needs_more_memory_than_fp16(cor: float, floor: float, rho: float) -> None:
    """A100: 693.35 / 235.47 J, which under HLI is 1 + COR."""
    eta = 1 / (1 + cor)
    assert efficiency(eta, 1.0, 0.5) == pytest.approx(floor, abs=0.0005)
    assert efficiency(eta, rho, 0.5) == pytest.approx(0.40, abs=0.0005)
    assert efficiency(eta, 1e9, 0.5) == pytest.approx(2 * eta)


def test_e_si_at_the_ends_of_alpha() -> None:
    assert efficiency(0.3, 4.0, 1.0) == 0.3
    assert efficiency(0.3, 4.0, 0.0) == 4.0


def test_awq_exceeds_one() -> None:
    """COR -0.03, rho 3: E_SI 1.53; with T = 537 / 569 and 41% less energy SI is 1.16, more where S is not clamped."""
    e = efficiency(1 / 0.97, 3.0, 0.5)
    assert e == pytest.approx(1.53, abs=0.005)
    t, s = 537 / 569, sustainability_linear(0.59, 1.0)
    assert s == pytest.approx(1.695, abs=0.0005)
    assert si_linear(t, e, clamped(s), WEIGHTS) == pytest.approx(1.16, abs=0.005)
    assert si_linear(t, e, s, WEIGHTS) - si_linear(t, e, clamped(s), WEIGHTS) == pytest.approx(0.33 * 0.695, abs=0.001)


def test_the_reference_has_an_si_of_one() -> None:
    assert si_linear(1.0, 1.0, 1.0, WEIGHTS) == pytest.approx(1)
    assert si_geometric(1.0, 1.0, 1.0, WEIGHTS) == 1


def test_the_geometric_index_forgives_no_zero() -> None:
    assert si_geometric(0.0, 9.0, 9.0, WEIGHTS) == 0
    assert si_geometric(0.9, 0.4, 0.5, WEIGHTS) == pytest.approx(
        math.exp(0.34 * math.log(0.9) + 0.33 * math.log(0.4) + 0.33 * math.log(0.5))
    )


def test_311_percent_is_two_different_si() -> None:
    """As a deficit 0.689, as an improvement 0.763; the first is a 45.1% improvement, the second a 23.7% deficit."""
    assert deficit(0.689) == pytest.approx(0.311)
    assert improvement(0.689) == pytest.approx(0.451, abs=0.0005)
    assert improvement(0.763) == pytest.approx(0.311, abs=0.0005)
    assert deficit(0.763) == pytest.approx(0.237)


@pytest.mark.parametrize("rho", [3.0, 4.0])
def test_a_likely_mistral_has_the_deficit_of_figure_1(rho: float) -> None:
    """T .914, eta .4, S .40: SI about .676 to .684, next to .689, not to .763."""
    si = si_linear(0.914, efficiency(0.4, rho, 0.5), 0.40, WEIGHTS)
    assert 0.675 < si < 0.685


def test_four_times_the_energy_is_three_times_more() -> None:
    ratio = 1718 / 428
    assert ratio == pytest.approx(4.01, abs=0.005)
    assert percent_increase(ratio) == pytest.approx(301, abs=0.5)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"alpha": 1.5}, "alpha of E_SI is 1.5"),
        ({"weights": (0.5, 0.5, 0.5)}, r"weights of SI are \(0.5, 0.5, 0.5\)"),
        ({"weights": (1.5, -0.5, 0.0)}, "three shares"),
        ({"carbon_kg_per_kwh": 0.0}, "carbon intensity is 0.0"),
        ({"carbon_kg_per_kwh": math.nan}, "carbon intensity is nan"),
        ({"sustainability": "log_kgco2e"}, "no carbon intensity"),
    ],
)
def test_settings_without_a_meaning_are_refused(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        IndexSettings(**wrong)  # type: ignore[arg-type]
