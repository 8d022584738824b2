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
from loadgen.analysis.claims import Claim, claims_of, paired_p
from loadgen.analysis.indices.dominance import SiDifference
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
    assert claim.evidence.startswith("awq wins below B* = 7.1")
    assert claim.evidence.endswith(", loses above it")


def test_a_target_that_wins_above_b_star_supports_it(base: CellSummary) -> None:
    """awq needs 3, 1.5, 0.75 and 0.375 times the joules of fp16 at B = 1, 4, 16, 64."""
    ratios = {b: 3.0 / 2**k for k, b in enumerate(BATCHES)}
    made = with_joules(cells(base), {b: ratios[b] * (64 / b) ** 0.5 / 2 / 1.5 for b in BATCHES})
    assert claims(made)["Theorem 4.3", "awq"].verdict == "supported"


def test_a_target_that_loses_wins_and_loses_again_contradicts_it(base: CellSummary) -> None:
    """awq needs 2, 0.5, 0.5 and 2 times the joules of fp16: the first crossing alone would support the claim."""
    ratios = dict(zip(BATCHES, (2.0, 0.5, 0.5, 2.0), strict=True))
    made = with_joules(cells(base), {b: ratios[b] * (64 / b) ** 0.5 / 2 / 1.5 for b in BATCHES})
    claim = claims(made)["Theorem 4.3", "awq"]
    assert claim.verdict == "contradicted"
    assert claim.evidence.startswith("awq loses below B* = 1.7"), claim.evidence
    assert ", wins from there to B* = 3" in claim.evidence and claim.evidence.endswith(", loses above it")


def test_an_open_b_above_the_crossing_leaves_it_undecided(base: CellSummary) -> None:
    """awq needs 2, 0.5 and 0.5 times the joules of fp16, and at B = 64 as many: it may lose again there."""
    ratios = dict(zip(BATCHES, (2.0, 0.5, 0.5, 1.0), strict=True))
    made = with_joules(cells(base), {b: ratios[b] * (64 / b) ** 0.5 / 2 / 1.5 for b in BATCHES})
    claim = claims(made)["Theorem 4.3", "awq"]
    assert (claim.verdict, claim.evidence.split("; ")[1]) == ("cannot tell", "not decided at B = 64")


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


def test_a_batch_with_one_valid_repeat_is_left_out_and_named(base: CellSummary) -> None:
    made = [
        cell if (cell.concurrency, cell.repeat) in ((4, 1), (1, 1)) or cell.concurrency != 4
        else msgspec.structs.replace(cell, validity=INVALID)
        for cell in cells(base)
    ]  # fmt: skip
    claim = claims(made)["Theorem 4.5 (1)", "fp16"]
    assert claim.evidence.startswith("2 of 2 steps from B = 1 to 64 fall")
    assert claim.evidence.endswith("; left out: B = 4 (one valid repeat)")


def test_starts_that_differ_do_not_hide_a_fall_within_every_one(base: CellSummary) -> None:
    """Starts 20% apart, and in each of them energy falls by 10% a step: the paired test sees the steps."""
    made = [
        msgspec.structs.replace(
            cell,
            energy=msgspec.structs.replace(
                cell.energy,
                energy_per_query_j=10 * 0.9**step * (0.8, 1.0, 1.2)[cell.repeat - 1] * (1 + 0.001 * (step % 2)),
            ),
        )
        for cell in cells(base)
        for step in [BATCHES.index(cell.concurrency)]
    ]
    assert claims(made)["Theorem 4.5 (1)", "fp16"].verdict == "supported"


def test_batches_that_completed_other_items_are_compared_over_the_shared_ones(base: CellSummary) -> None:
    """0.1 J per token at every B; the larger the batch, the further down the list of ever longer items it gets."""
    all_items = {f"q{k}": 100.0 + k for k in range(400)}
    reached = {b: dict(list(all_items.items())[: 25 * 2**place]) for place, b in enumerate(BATCHES)}
    made = []
    for cell in cells(base):
        mean = float(np.mean(list(reached[cell.concurrency].values())))
        joules = 0.1 * mean * (1 + 0.001 * (cell.repeat - 2) * (-1) ** BATCHES.index(cell.concurrency))
        energy = msgspec.structs.replace(cell.energy, energy_per_query_j=joules)
        made.append(msgspec.structs.replace(cell, energy=energy, output_tokens_mean=mean))
    lengths = {(target, b): reached[b] for target in ("fp16", "awq") for b in BATCHES}

    def verdict(known: dict[tuple[str, int], dict[str, float]] | None) -> Claim:
        found = claims_of(made, answered(made), trusted()[1], reference="fp16", lengths=known)
        return next(c for c in found if c.source == "Theorem 4.5 (1)" and c.targets == ("fp16",))

    assert verdict(None).verdict == "contradicted", "each B's own items: it seems to rise"
    assert verdict(lengths).verdict == "cannot tell"
    few = {key: dict(list(items.items())[:19]) for key, items in lengths.items()}
    assert "19 items were completed by both sides" in verdict(few).evidence


def test_the_paired_test_is_students_and_knows_the_error_of_the_items() -> None:
    differences = [-0.02, -0.05, -0.03]
    assert paired_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-6)
    assert paired_p([0.0, 0.0], shift=0.1, error=0.05) == pytest.approx(2 * stats.norm.sf(2), rel=1e-6)
    assert paired_p([0.1, 0.1]) < 1e-12
    assert paired_p([0.0, 0.0]) == 1.0


def test_a_higher_si_contradicts_that_it_falls_with_the_bits(base: CellSummary) -> None:
    """At B = 4 E_SI is 2.4, T 0.95 and S 1: SI = 1.45."""
    claim = claims(cells(base))["Proposition 3.2, Theorem 4.4", "fp16", "awq"]
    assert claim.claim == "from 16 to 4 bits SI falls"
    assert claim.verdict == "contradicted"
    assert "higher SI at B ≤ 16" in claim.evidence


def test_si_is_held_to_holm_over_the_batches(base: CellSummary) -> None:
    """p = .02 at each of four B is proven at none: Holm asks .0125 of the smallest."""
    made = cells(base)
    result, trust = answered(made), trusted()[1]

    def verdict(*p_values: float) -> str:
        differences = tuple(
            SiDifference(target="fp16", other="awq", concurrency=b, higher=True, p=p)
            for b, p in zip(BATCHES, p_values, strict=True)
        )
        indices = msgspec.structs.replace(result.indices, si_differences=differences)
        found = claims_of(made, msgspec.structs.replace(result, indices=indices), trust, reference="fp16")
        return next(claim.verdict for claim in found if claim.source.startswith("Proposition 3.2"))

    assert verdict(0.02, 0.02, 0.02, 0.02) == "cannot tell"
    assert verdict(0.012, 0.9, 0.9, 0.9) == "supported"


def test_equal_bits_on_the_same_side_at_one_batch_do_not_decide_about_the_kernel(base: CellSummary) -> None:
    made = cells(base)
    twin = [msgspec.structs.replace(c, target="gptq", precision="gptq") for c in made if c.target == "awq"]
    nf4 = [msgspec.structs.replace(c, target="nf4", precision="bnb-nf4") for c in twin]
    found = claims([*made, *nf4])
    ours = [claim for (source, *_), claim in found.items() if source.startswith("Section 4.5.1")]
    assert [claim.verdict for claim in ours] == ["cannot tell"]
    assert "not proven for both at B = 16" in ours[0].evidence, "equal speed at 16"


def test_the_same_answers_at_every_batch_support_theorem_4_5_2(base: CellSummary) -> None:
    claim = claims(cells(base))["Theorem 4.5 (2)", "awq"]
    assert claim.verdict == "supported"
    assert claim.evidence.startswith("200 items at every B: accuracies within 0.0 pp")


def test_what_was_not_measured_is_not_claimed(base: CellSummary) -> None:
    made = cells(base, validity=INVALID)
    sources = {source for source, *_ in claims(made)}
    assert sources == {"Theorem 4.5 (2)"}, "answers stand, speeds and joules do not"
