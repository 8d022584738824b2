"""N*: the zero of COR over log N, where it is proven, and silence where it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_models import row, steady

from loadgen.analysis.compare.comparison import n_star_sentence, size_claims, size_words
from loadgen.analysis.compare.nstar import NStar, n_stars
from loadgen.analysis.compare.row import CompareRow, paper_n_star
from loadgen.analysis.models.fit import BStar, ModelFit
from loadgen.analysis.models.study import ModelStudy, Quantity

SIZES = (1e9, 3e9, 8e9, 30e9)


def only(*rows: CompareRow) -> NStar:
    (found,) = n_stars(rows)
    return found


def curve(*cors: float, **changed: object) -> list[CompareRow]:
    return [row(size, steady(cor), **changed) for size, cor in zip(SIZES, cors, strict=True)]


def verdicts(found: NStar) -> list[str]:
    return [claim.verdict for claim in size_claims(found)]


def test_a_straight_line_in_log_n_crosses_where_it_says() -> None:
    """log(1 + COR) = 0.5 ln(5e9 / N): zero at 5B."""
    found = only(*(row(n, [0.5 * math.log(5e9 / n) + w for w in (-0.01, 0, 0.01)]) for n in SIZES))
    (crossing,) = found.crossings
    assert found.status == "crosses"
    assert crossing.n == pytest.approx(5e9, rel=1e-6)
    assert crossing.lo is not None and crossing.hi is not None
    assert 3e9 < crossing.lo < 5e9 < crossing.hi < 8e9
    assert crossing.bracket == (3e9, 8e9)
    assert crossing.direction == "wins_above"
    assert verdicts(found)[0] == "supported"
    assert "slower below N* = 5B (95% CI " in n_star_sentence(found)


def test_a_trap_that_returns_is_a_second_crossing_and_contradicts_both_claims() -> None:
    """The paper's own 72B point (I5): COR +3 above its N*."""
    found = only(*curve(1.5, 0.8, -0.4, 3.0))
    assert [crossing.direction for crossing in found.crossings] == ["wins_above", "wins_below"]
    assert verdicts(found) == ["contradicted", "contradicted"]


def test_slower_at_every_size_says_where_an_n_star_could_be() -> None:
    found = only(*curve(2.0, 1.6, 1.2, 0.8))
    assert (found.status, found.crossings) == ("worse", ())
    assert found.above == 30e9
    assert n_star_sentence(found).endswith("; if an N* exists, it is > 30B")
    assert verdicts(found) == ["cannot tell", "cannot tell"]


def test_without_a_trend_an_n_star_may_be_on_either_side() -> None:
    assert n_star_sentence(only(*curve(1.0, 1.0, 1.0, 1.0))).endswith("; if an N* exists, it is outside 1B–30B")


def test_one_model_size_is_refused() -> None:
    found = only(row(7e9, steady(0.5)), row(7e9, steady(-0.5), run="again"))
    assert found.refusal == "one model size, and a curve over N needs two"
    assert size_claims(found) == ()


def test_equal_sizes_stand_as_one_point() -> None:
    found = only(row(7e9, steady(1.0)), row(7e9, steady(3.0), run="again"), row(14e9, steady(0.2)))
    assert [point.parameters for point in found.points] == [7e9, 14e9]
    assert found.points[0].cor == pytest.approx(math.sqrt(2 * 4) - 1)
    assert "run-7B, again have the same size" in found.notes[0]


def test_a_point_has_the_runs_own_interval() -> None:
    measured = row(7e9, steady(1.0))
    found = only(measured, row(14e9, steady(0.2)))
    assert found.points[0].cor_lo == pytest.approx(measured.cor_lo)
    assert found.points[0].cor_hi == pytest.approx(measured.cor_hi)


def test_one_repeat_and_an_unknown_size_are_left_out_by_name() -> None:
    found = only(*curve(1.0, 0.5, 0.2, 0.1), row(70e9, [0.1]), row(None, steady(0.0), parameters_source="asked"))
    assert len(found.points) == 4
    assert found.notes[:2] == (
        "run-70B: left out, one repeat has no interval; measure three", "run-unknown: left out, asked",
    )  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [{"gpu": "H100"}, {"gpu_count": 2}, {"concurrency": 8}, {"dataset": "mathqa"}, {"precision": "gptq"},
     {"reference": "bf16"}, {"kernels": "Marlin"}, {"fixed_length": 128}, {"simulated": True}, {"protocol": "cot"}],
)  # fmt: skip
def test_whatever_differs_beside_n_makes_another_stratum(other: dict[str, object]) -> None:
    found = n_stars([row(7e9, steady(1.0)), row(14e9, steady(-0.5), **other)])
    assert len(found) == 2
    assert all(one.refusal is not None for one in found)


def test_different_versions_of_vllm_are_told() -> None:
    found = only(row(7e9, steady(1.0), vllm="0.26.0"), row(14e9, steady(-0.4), vllm="0.32.0"))
    assert found.notes == ("vLLM versions differ (0.26.0, 0.32.0), which alone can move a COR",)


def test_headroom_of_both_sides_stands_beside_the_point() -> None:
    reference = row(7e9, steady(0.0), target="fp16", precision="fp16", is_reference=True, cor=None, memory_headroom=0.2)
    found = only(reference, row(7e9, steady(1.0), memory_headroom=0.7), row(14e9, steady(-0.4)))
    assert (found.points[0].headroom, found.points[0].reference_headroom) == (0.7, 0.2)
    assert (found.points[1].headroom, found.points[1].reference_headroom) == (None, None)


@pytest.mark.parametrize(
    ("judged", "verdict"),
    [("worse", "supported"), ("equivalent", "contradicted"), ("inconclusive", "cannot tell"), (None, "cannot tell")],
)
def test_corollary_4_7_takes_its_accuracy_from_the_largest_model(judged: str | None, verdict: str) -> None:
    rows = [row(n, steady(c)) for n, c in zip(SIZES[:3], (1.5, 0.8, 0.3), strict=True)]
    assert verdicts(only(*rows, row(30e9, steady(-0.4), accuracy_verdict=judged)))[1] == verdict


def studies(count: int, truth: list[float], rng: np.random.Generator) -> list[NStar]:
    """Three noisy repeats of log(1 + COR) at each size, 5% apart."""
    return [
        only(*(row(n, list(mean + rng.normal(0, 0.05, 3))) for n, mean in zip(SIZES, truth, strict=True)))
        for _ in range(count)
    ]


def test_the_interval_covers_the_true_n_star() -> None:
    rng, covered, found, wrong = np.random.default_rng(1), 0, 0, 0
    for _ in range(150):
        zero = float(np.exp(rng.uniform(math.log(2e9), math.log(20e9))))
        (study,) = studies(1, [0.6 * math.log(zero / n) for n in SIZES], rng)
        for crossing in study.crossings:
            found += 1
            wrong += crossing.direction != "wins_above"
            covered += (crossing.lo or 0) <= zero <= (crossing.hi or math.inf)
    assert found >= 60
    assert wrong == 0
    assert covered >= 0.93 * found


def test_without_any_difference_hardly_ever_anything_is_proven() -> None:
    """5% of 200 are 10, and 3.1 the standard deviation of their number."""
    found = studies(200, [0.0] * 4, np.random.default_rng(2))
    assert sum(study.status != "unresolved" for study in found) <= 10 + 3 * 3.1


@pytest.mark.parametrize(("n", "words"), [(7.25e9, "7.25B"), (600e6, "600M"), (124439808, "124M"), (999.9e6, "1B")])
def test_sizes_read_as_people_write_them(n: float, words: str) -> None:
    assert size_words(n) == words


def test_the_papers_formula_takes_phi_and_alpha_from_the_fit_of_eq_19() -> None:
    """alpha (pi - p) / phi = B* = 50 for a model of 7B: at B = 25 half of it, at B = 100 twice."""

    def study(target: str, quantity: Quantity, **fits: float | None) -> ModelStudy:
        models = tuple(
            ModelFit(
                model=name, words="", parameters=(), observations=9, scatter=0.0, residuals=(), lack_of_fit_p=None,
                cv_error=None, aicc=None, b_star=None if b is None else BStar(
                    b=b, lo=None, hi=None, direction="wins_below", share=1.0, measured=True
                ),
            )
            for name, b in fits.items()
        )  # fmt: skip
        return ModelStudy(
            target=target, reference="fp16", quantity=quantity, concurrencies=(), verdict="best", models=models,
            simulated=False,
        )  # fmt: skip

    models = [
        study("awq", "time_per_token_s", M1=9.0),
        study("awq", "energy_per_token_j", M1=50.0, M3=7.0),
        study("gptq", "energy_per_token_j", M1=None),
        study("nf4", "energy_per_token_j"),
    ]
    assert paper_n_star(models, "awq", 25, 7e9) == 3.5e9
    assert paper_n_star(models, "awq", 100, 7e9) == 14e9
    assert paper_n_star(models, "gptq", 25, 7e9) is None
    assert paper_n_star(models, "nf4", 25, 7e9) is None
    assert paper_n_star(models, "awq", 25, None) is None
