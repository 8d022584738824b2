"""Cost models fitted to cells whose costs are known in closed form."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from made_costs import cells, eq19, eq23, one_floor, roofline
from made_run import answer, cell_data

from loadgen.analysis.cells import CellSummary, summarize_cell
from loadgen.analysis.crossover.crossing import Crossing
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.models.fit import ModelFit, aicc
from loadgen.analysis.models.study import ModelStudy, cost_models
from loadgen.analysis.validity import Validity


@pytest.fixture
def base(tmp_path: Path) -> CellSummary:
    data = cell_data(tmp_path, [answer(1100, [(1200, 1), (1300, 1)])])
    return msgspec.structs.replace(summarize_cell(data, [None]), validity=Validity(energy=()))


def study_of(made: list[CellSummary]) -> ModelStudy:
    (study,) = cost_models(made, reference="fp16")
    return study


def model(study: ModelStudy, name: str) -> ModelFit:
    return next(entry for entry in study.models if entry.model == name)


def values(entry: ModelFit) -> list[float | None]:
    return [parameter.value for parameter in entry.parameters]


def test_eq_19_is_recognised_and_its_parameters_recovered(base: CellSummary) -> None:
    study = study_of(cells(base, joules=eq19))
    assert (study.verdict, study.best, study.quantity) == ("best", "M1", "energy_per_token_j")
    entry = model(study, "M1")
    assert values(entry) == [pytest.approx(1, rel=0.02), pytest.approx(2, rel=0.02), pytest.approx(0.5, rel=0.05)]
    assert [p.unit for p in entry.parameters] == ["J/token", "J/(bit·step)", "J/token"]
    for parameter, true in zip(entry.parameters, (1, 2, 0.5), strict=True):
        assert parameter.lo is not None and parameter.hi is not None
        assert parameter.lo < true < parameter.hi
    assert entry.b_star is not None and entry.b_star.lo is not None and entry.b_star.hi is not None
    assert (entry.b_star.direction, entry.b_star.measured) == ("wins_below", True)
    assert entry.b_star.b == pytest.approx(48, rel=0.05)
    assert entry.b_star.lo < 48 < entry.b_star.hi
    assert entry.cv_error is not None and entry.cv_error < 0.02
    assert entry.lack_of_fit_p is not None and entry.lack_of_fit_p > 0.01


def test_eq_23_is_recognised_with_the_opposite_direction(base: CellSummary) -> None:
    study = study_of(cells(base, joules=eq23))
    assert (study.verdict, study.best) == ("best", "M2")
    entry = model(study, "M2")
    assert values(entry) == [pytest.approx(v, rel=0.03) for v in (2, 1.5, 8)]
    assert entry.b_star is not None
    assert (entry.b_star.b, entry.b_star.direction) == (pytest.approx(16, rel=0.05), "wins_above")


def test_where_b_cancels_no_model_invents_a_crossing(base: CellSummary) -> None:
    study = study_of(cells(base, joules=one_floor))
    assert (study.verdict, study.best) == ("best", "M3c")
    assert values(model(study, "M3c")) == [pytest.approx(v, rel=0.03) for v in (1, 20, 14)]
    assert model(study, "M3c").b_star is None


def test_the_roofline_is_a_model_of_time_and_finds_its_roof(base: CellSummary) -> None:
    batches = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    study = study_of(cells(base, seconds=roofline, batches=batches))
    assert (study.verdict, study.best, study.quantity) == ("best", "M4", "time_per_token_s")
    entry = model(study, "M4")
    assert values(entry) == [pytest.approx(v, rel=0.1) for v in (1e-3, 8e-3, 0.25e-3, 0.1e-3, 2e-3)]
    assert [p.unit for p in entry.parameters] == ["s/step", "s/step", "s/token", "s/token", "s/step"]
    assert entry.b_star is not None
    assert (entry.b_star.b, entry.b_star.direction) == (pytest.approx(24, rel=0.05), "wins_below")
    energies = study_of(cells(base, joules=roofline, batches=batches))
    assert [found.model for found in energies.models] == ["M1", "M2", "M3", "M3c"]


def test_below_the_roof_launch_and_weights_cannot_be_told_apart(base: CellSummary) -> None:
    study = study_of(cells(base, seconds=roofline, batches=(1, 2, 3, 4, 5, 6)))
    determined = {p.name: p.value is not None for p in model(study, "M4").parameters}
    assert determined == {"launch": False, "weights": False, "compute": False, "sequence": True, "dequant": False}
    assert "M4: these batches do not determine launch, weights, compute, dequant" in study.notes
    assert all(p.lo is None and p.hi is None for p in model(study, "M4").parameters if p.value is None)


def test_models_that_are_the_same_function_are_not_told_apart(base: CellSummary) -> None:
    """With phi = 0 and steps in proportion to the bits, Eq 19 and "B cancels" are one curve."""
    study = study_of(cells(base, joules=lambda t, b: 1 + 2 * (16 if t == "fp16" else 4) / b))
    assert study.verdict == "cannot tell"
    assert {study.best, *study.rivals} == {"M1", "M3c"}
    assert "cannot tell" in study.sentence
    assert study.brief.startswith("cannot tell ") and study.sentence.endswith(f" of awq against fp16: {study.brief}")


def test_what_no_model_describes_is_called_so(base: CellSummary) -> None:
    """A bump of 20% at B = 16 on one side, forty times the scatter of repeats."""
    study = study_of(cells(base, joules=lambda t, b: eq19(t, b) * (1.2 if (t, b) == ("awq", 16) else 1.0)))
    assert study.verdict == "none fits"
    assert "no model fits" in study.sentence
    assert "(B = 16) where repeats scatter by 0." in study.sentence
    assert all(entry.lack_of_fit_p is not None and entry.lack_of_fit_p < 0.01 for entry in study.models)


@pytest.mark.parametrize(("batches", "words"), [((1, 2, 4), "3 are there"), ((1,), "1 is there")], ids=["three", "one"])
def test_fewer_than_four_batches_are_refused(base: CellSummary, batches: tuple[int, ...], words: str) -> None:
    study = study_of(cells(base, joules=eq19, batches=batches))
    assert (study.verdict, study.models, study.best) == ("refused", (), None)
    assert study.refusal == f"cost models need 4 concurrencies measured on both sides, {words}"
    assert study.reading is None
    assert study.sentence.endswith(study.refusal)


def test_only_batches_of_both_sides_and_valid_cells_count(base: CellSummary) -> None:
    """A cell without a valid energy has a valid time per token."""
    reset = Validity(energy=("the counter was reset",))
    made = [
        msgspec.structs.replace(cell, validity=reset) if (cell.target, cell.concurrency) == ("awq", 8) else cell
        for cell in cells(base, joules=eq19, seconds=eq19, batches=(1, 4, 8, 16))
    ]
    refusals = {study.quantity: study.refusal for study in cost_models(made, reference="fp16")}
    assert refusals == {
        "energy_per_token_j": "cost models need 4 concurrencies measured on both sides, 3 are there",
        "time_per_token_s": None,
    }


def test_nothing_is_said_of_what_was_not_measured(base: CellSummary) -> None:
    assert cost_models(cells(base), reference="fp16") == ()
    assert [s.quantity for s in cost_models(cells(base, seconds=eq19), reference="fp16")] == ["time_per_token_s"]


def test_one_repeat_gives_models_but_no_misfit(base: CellSummary) -> None:
    study = study_of(cells(base, joules=eq19, repeats=1))
    assert study.best == "M1"
    assert study.repeat_scatter is None
    assert all(entry.lack_of_fit_p is None for entry in study.models)


def test_figures_without_noise_prove_no_rounding_errors(base: CellSummary) -> None:
    study = study_of(cells(base, joules=one_floor, noise=0.0))
    assert (study.verdict, study.best) == ("best", "M3c")
    assert "no proven difference per token" in str(study.reading)


def test_unknown_bits_leave_out_the_models_that_need_them(base: CellSummary) -> None:
    made = [
        msgspec.structs.replace(cell, precision="home-made") if cell.target == "awq" else cell
        for cell in cells(base, seconds=eq19)
    ]
    study = study_of(made)
    assert [entry.model for entry in study.models] == ["M2", "M3", "M3c"]
    assert "M1 is left out: the bits per weight of a side are unknown" in study.notes


def test_a_reference_of_fewer_bits_is_refused(base: CellSummary) -> None:
    (study,) = cost_models(cells(base, joules=eq19), reference="awq")
    assert study.refusal == "awq has 4 bits and fp16 16: the models need a reference with more bits"


def test_the_signs_decide_between_the_equations(base: CellSummary) -> None:
    """The target less the reference: Eq 19 has +0.5 per token and -24 per step, Eq 23 -0.5 and +8."""
    first, second, third = (study_of(cells(base, joules=cost)) for cost in (eq19, eq23, one_floor))
    assert first.difference is not None and second.difference is not None
    assert first.difference.per_token.value == pytest.approx(0.5, rel=0.05)
    assert first.difference.per_step.value == pytest.approx(-24, rel=0.03)
    assert second.difference.per_step.value == pytest.approx(8, rel=0.03)
    assert "as Eq 19 has it" in str(first.reading) and "Eq 23" not in str(first.reading)
    assert "as Eq 23 has it" in str(second.reading) and "Eq 19" not in str(second.reading)
    assert "no proven difference per token" in str(third.reading)
    assert "only a saving that the batch shares" in str(third.reading)


def test_of_a_roofline_the_overhead_is_named_instead(base: CellSummary) -> None:
    """M3 would take the roof that 4 bits reach first for a cost per token."""
    study = study_of(cells(base, seconds=roofline, batches=(1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)))
    assert "by M4: an overhead of 2" in str(study.reading)
    assert "ms per step" in str(study.reading)


def test_noise_that_a_start_shares_is_not_mistaken_for_a_cost(base: CellSummary) -> None:
    """Repeats of a side differ by 5% throughout: phi is uncertain, and its interval must not be that of the cells."""
    shift = {
        ("fp16", 1): 0.95, ("fp16", 2): 1.0, ("fp16", 3): 1.05, ("awq", 1): 1.04, ("awq", 2): 0.93, ("awq", 3): 1.03,
    }  # fmt: skip

    def moved(cell: CellSummary) -> CellSummary:
        joules = (cell.energy.energy_per_token_j or 0.0) * shift[cell.target, cell.repeat]
        return msgspec.structs.replace(cell, energy=msgspec.structs.replace(cell.energy, energy_per_token_j=joules))

    def width(study: ModelStudy) -> float:
        phi = model(study, "M1").parameters[2]
        assert phi.lo is not None and phi.hi is not None
        assert phi.lo < 0.5 < phi.hi
        return phi.hi - phi.lo

    calm = cells(base, joules=eq19)
    shaken = study_of([moved(cell) for cell in calm])
    # two sides at 1.1 to 1.9 J, each known to 5% / sqrt(3): some 0.05 J, ten times what 0.5% of each cell leave
    assert width(shaken) > 3 * width(study_of(calm))


def test_the_measured_crossing_stands_beside_the_models(base: CellSummary) -> None:
    crossing = Crossing(
        b=50.0, lo=40.0, hi=60.0, bracket=(32, 64), direction="wins_below", probability=0.99, established=True
    )
    found = [
        Crossover(target="awq", reference="fp16", metric=metric, status="crosses", crossings=(crossing,))
        for metric in ("energy_per_token_j", "energy_per_query_j")
    ]
    (study,) = cost_models(cells(base, joules=eq19), found, reference="fp16")
    assert [(seen.b, seen.lo, seen.hi, seen.direction) for seen in study.observed] == [(50, 40, 60, "wins_below")]


def test_aicc_by_hand() -> None:
    """10 observations of variance 1, two parameters and the variance: 0 + 6 + 24 / 6."""
    assert aicc(10.0, 10, 2) == pytest.approx(10.0)
    assert aicc(10.0, 4, 2) is None


def test_akaike_weights_sum_to_one(base: CellSummary) -> None:
    study = study_of(cells(base, joules=one_floor))
    assert sum(entry.weight or 0.0 for entry in study.models) == pytest.approx(1)
    assert min(entry.delta_aicc or 0.0 for entry in study.models) == 0
