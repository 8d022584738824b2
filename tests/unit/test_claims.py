"""The paper's claims, each supported or contradicted by data made to do so."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from made_answer import BATCHES, answered, cells, trusted
from made_run import answer, cell_data
from scipy import stats

from loadgen.analysis.cells import CellSummary, summarize_cell
from loadgen.analysis.claims import Claim, claims_of, welch
from loadgen.analysis.validity import Validity

INVALID = Validity(load=("the server died",), energy=())


@pytest.fixture
def base(tmp_path: Path) -> CellSummary:
    data = cell_data(tmp_path, [answer(1100, [(1200, 1), (1300, 1)])])
    return msgspec.structs.replace(summarize_cell(data, [None]), validity=Validity(energy=()))


def claims(made: list[CellSummary]) -> dict[tuple[str, ...], Claim]:
    """By source and targets."""
    found = claims_of(made, answered(made), trusted()[1], reference="fp16")
    return {(claim.source, *claim.targets): claim for claim in found}


def with_joules(made: list[CellSummary], factors: dict[int, float]) -> list[CellSummary]:
    """awq's joules per query multiplied by a factor for each B."""
    return [
        msgspec.structs.replace(
            cell,
            energy=msgspec.structs.replace(
                cell.energy, energy_per_query_j=factors[cell.concurrency] * (cell.energy.energy_per_query_j or 0.0)
            ),
        )
        if cell.target == "awq"
        else cell
        for cell in made
    ]


def test_a_target_that_wins_below_b_star_contradicts_theorem_4_3(base: CellSummary) -> None:
    claim = claims(cells(base))["Theorem 4.3", "awq"]
    assert claim.verdict == "contradicted"
    assert claim.evidence.startswith("awq wins below and loses above B* = 7")


def test_a_target_that_wins_above_b_star_supports_it(base: CellSummary) -> None:
    """awq needs 3, 1.5, 0.75 and 0.375 times the joules of fp16 at B = 1, 4, 16, 64."""
    ratios = {b: 3.0 / 2**k for k, b in enumerate(BATCHES)}
    made = with_joules(cells(base), {b: ratios[b] * (64 / b) ** 0.5 / 2 / 1.5 for b in BATCHES})
    assert claims(made)["Theorem 4.3", "awq"].verdict == "supported"


def test_losing_at_every_b_does_not_decide_it(base: CellSummary) -> None:
    claim = claims(with_joules(cells(base), dict.fromkeys(BATCHES, 100.0)))["Theorem 4.3", "awq"]
    assert claim.verdict == "cannot tell"
    assert claim.evidence.endswith("a B* may lie above 64")


def test_energy_that_falls_at_every_step_supports_theorem_4_5(base: CellSummary) -> None:
    found = claims(cells(base))
    assert found["Theorem 4.5 (1)", "fp16"].verdict == "supported"
    assert found["Theorem 4.5 (1)", "fp16"].evidence.startswith("3 of 3 steps from B = 1 to 64 fall")


def test_energy_that_rises_once_contradicts_it(base: CellSummary) -> None:
    claim = claims(with_joules(cells(base), {1: 1.0, 4: 1.0, 16: 1.0, 64: 50.0}))["Theorem 4.5 (1)", "awq"]
    assert claim.verdict == "contradicted"
    assert "rises from B = 16 to 64" in claim.evidence


@pytest.mark.parametrize("sizes", [(2, 2), (3, 5), (9, 4)])
def test_welchs_test_is_scipys(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        ours, theirs = rng.normal(1.0, 2.0, sizes[0]), rng.normal(2.0, 0.5, sizes[1])
        known = stats.ttest_ind(ours, theirs, equal_var=False)
        assert welch(ours.tolist(), theirs.tolist()) == pytest.approx((known.statistic, known.pvalue), rel=1e-12)


def test_means_without_scatter_are_the_same_or_are_not() -> None:
    assert welch([1.0, 1.0], [1.0, 1.0]) == (0.0, 1.0)
    assert welch([1.0, 1.0], [2.0, 2.0]) == (-np.inf, 0.0)


def test_a_higher_si_contradicts_that_it_falls_with_the_bits(base: CellSummary) -> None:
    """At B = 4 E_SI is 2.4, T 0.95 and S 1: SI = 1.45."""
    claim = claims(cells(base))["Proposition 3.2, Theorem 4.4", "fp16", "awq"]
    assert claim.claim == "from 16 to 4 bits SI falls"
    assert claim.verdict == "contradicted"
    assert "higher SI at B = 1, 4" in claim.evidence


def test_the_same_answers_at_every_batch_support_theorem_4_5_2(base: CellSummary) -> None:
    claim = claims(cells(base))["Theorem 4.5 (2)", "awq"]
    assert claim.verdict == "supported"
    assert claim.evidence.startswith("200 items at every B: accuracies within 0.0 pp")


def test_what_was_not_measured_is_not_claimed(base: CellSummary) -> None:
    made = cells(base, validity=INVALID)
    sources = {source for source, *_ in claims(made)}
    assert sources == {"Theorem 4.5 (2)"}, "answers stand, speeds and joules do not"
