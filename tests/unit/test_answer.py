"""The answer of a run: from its cells to crossovers, indices and sentences."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_answer import WOBBLE, answered, cells
from made_run import answer, cell_data

from loadgen.analysis.cells import CellSummary, summarize_cell
from loadgen.analysis.indices.formulas import IndexSettings
from loadgen.analysis.runresult import RunResult, correlation, run_result
from loadgen.analysis.trust.answers import Answers, GradedAnswer, ItemRequest, pair_items, pair_lengths, paired
from loadgen.analysis.trust.significance import trust_ratio
from loadgen.analysis.trust.study import TargetAnswers, TrustStudy, TrustTest, study
from loadgen.analysis.validity import Validity

INVALID = Validity(load=("the server died",), energy=())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> CellSummary:
    data = cell_data(tmp_path_factory.mktemp("cell"), [answer(1100, [(1200, 1), (1300, 1)])])
    return msgspec.structs.replace(summarize_cell(data, [None]), validity=Validity(energy=()))


def crossing(result: RunResult, metric: str) -> tuple[float, str]:
    (found,) = [c for c in result.crossovers if c.metric == metric]
    assert found.status == "crosses", found
    (one,) = found.crossings
    assert one.lo is not None and one.hi is not None and one.lo <= one.b <= one.hi
    return one.b, one.direction


def test_speeds_meet_where_their_ratio_is_one(base: CellSummary) -> None:
    assert crossing(answered(cells(base)), "tokens_per_s") == (pytest.approx(16, rel=0.05), "wins_below")


def test_energy_meets_where_speed_pays_for_power(base: CellSummary) -> None:
    """awq draws 1.5 times the power: joules are equal where it is 1.5 times as fast, (64 / B) ^ 0.5 = 3, B = 7.1."""
    result = answered(cells(base))
    assert crossing(result, "energy_per_query_j") == (pytest.approx(64 / 9, rel=0.05), "wins_below")
    assert crossing(result, "energy_hli_per_query_j") == (pytest.approx(16, rel=0.05), "wins_below")


def test_wrong_answers_move_the_crossing_of_energy_per_correct_answer(base: CellSummary) -> None:
    """T_SI = 0.95: equal where 0.95 times the advantage is one, (64 / B) ^ 0.5 = 3 / 0.95, B = 6.4."""
    (found,) = [c for c in answered(cells(base)).crossovers if c.metric == "energy_per_correct_j"]
    (one,) = (*found.crossings, *found.suspected)
    assert one.b == pytest.approx(64 * (0.95 / 3) ** 2, rel=0.05)


def test_indices_are_those_of_the_paper(base: CellSummary) -> None:
    """At B = 4: eta 2, rho 3, so E_SI = 1 / (0.5 / 2 + 0.5 / 3) = 2.4; 1.5 / 2 of fp16's joules: S 1.33, clamped 1."""
    entry = answered(cells(base)).indices.entry("awq", 4)
    assert entry is not None
    assert entry.cor_tps is not None and entry.cor_tps.value == pytest.approx(-0.5, abs=0.01)
    assert entry.e_si.value is not None and entry.e_si.value.value == pytest.approx(2.4, rel=0.01)
    assert entry.s_si is not None and entry.s_si.value == 1.0
    assert entry.s_si_raw is not None and entry.s_si_raw.value == pytest.approx(4 / 3, rel=0.01)


def test_an_invalid_cell_enters_nothing(base: CellSummary) -> None:
    result = answered(cells(base, validity=INVALID))
    assert {found.status for found in result.crossovers} == {"unresolved"}
    assert all(found.refusal and found.sentence.endswith(found.refusal) for found in result.crossovers)


def test_where_the_bound_contradicts_the_meter_it_is_said(base: CellSummary) -> None:
    """awq at B = 8 to 16: faster, so cheaper by the bound, but dearer by the meter; on this grid no B shows it."""
    made = cells(base)
    flipped = [
        msgspec.structs.replace(
            cell,
            energy=msgspec.structs.replace(cell.energy, energy_per_query_j=1e9 * (cell.energy.energy_per_query_j or 0)),
        )
        if cell.target == "awq"
        else cell
        for cell in made
    ]
    assert answered(made).hli_disagreements == []
    (sentence,) = answered(flipped).hli_disagreements
    assert "believe the meter" in sentence


def in_windows(base: CellSummary, reached: dict[str, int]) -> RunResult:
    """The same answers and joules per token; fp16 and awq got this far down a list of ever longer items."""
    items = {f"q{k}": 100 + k for k in range(200)}
    made, answers = [], {}
    for cell in cells(base):
        own = dict(list(items.items())[: reached[cell.target]])
        mean = sum(own.values()) / len(own)
        energy = msgspec.structs.replace(
            cell.energy,
            energy_per_query_j=0.5 * mean * WOBBLE[cell.repeat if cell.target == "awq" else 4 - cell.repeat],
            energy_hli_per_query_j=0.7 * mean * WOBBLE[cell.repeat if cell.target == "awq" else 4 - cell.repeat],
            energy_per_token_j=0.5,
        )
        made.append(msgspec.structs.replace(cell, energy=energy, output_tokens_mean=mean))
        answers[cell.target, cell.concurrency] = {
            item: [GradedAnswer(repeat=1, outcome="correct", correct=length < 140, output_tokens=length)]
            for item, length in own.items()
        }
    asked = {item: ItemRequest(prompt_sha="0", max_tokens=256, sampling={}) for item in items}
    trust = study([TargetAnswers(target=t, concurrency=b, answers=a, asked=asked) for (t, b), a in answers.items()], {},
                  reference="fp16")  # fmt: skip
    return run_result(made, answers, trust, reference="fp16", settings=IndexSettings())


def test_joules_per_query_are_compared_over_the_items_that_both_completed(base: CellSummary) -> None:
    """awq completed 170 items of 184 tokens on average and 24% right, fp16 70 of 134 tokens and 57% right."""
    found = in_windows(base, {"fp16": 70, "awq": 170})
    for metric in ("energy_per_query_j", "energy_hli_per_query_j", "energy_per_correct_j"):
        (result,) = [c for c in found.crossovers if c.metric == metric]
        assert result.status == "unresolved", metric
        assert [point.log_advantage for point in result.points] == pytest.approx([0.0] * 4, abs=1e-12)
        assert [point.target_value for point in result.points] == [
            pytest.approx(point.reference_value) for point in result.points
        ]
    entry = found.indices.entry("awq", 4)
    assert entry is not None and entry.s_si_raw is not None
    assert entry.s_si_raw.value == pytest.approx(1)
    (of_query,) = [c for c in found.crossovers if c.metric == "energy_per_query_j"]
    assert of_query.points[0].reference_value == pytest.approx(0.5 * 134.5, rel=1e-3)
    assert of_query.notes[-1] == (
        "J/query in tables is over each side's own items: 1.372 times fp16's at B = 1; the crossover compares the 70 "
        "items that both completed: 1.000 times"
    )


def test_too_few_shared_items_are_a_refusal_and_joules_per_token_stay(base: CellSummary) -> None:
    found = in_windows(base, {"fp16": 19, "awq": 170})
    refusals = {c.metric: c.refusal for c in found.crossovers}
    said = "19 items were completed by both sides; a comparison of answer lengths needs 20 (at B = 1); measure longer"
    for metric in ("energy_per_query_j", "energy_hli_per_query_j", "energy_per_correct_j", "si"):
        assert refusals[metric] == said
    assert all(c.sentence.endswith(c.refusal) and c.brief.endswith(c.refusal) for c in found.crossovers if c.refusal)
    assert refusals["energy_per_token_j"] is None
    (refused,) = [c for c in found.crossovers if c.metric == "energy_per_query_j"]
    assert refused.notes[0].startswith("B ≤ 64: left out, 19 items were completed by both sides")


def test_answers_of_one_length_need_no_shared_items() -> None:
    """As of --fixed-length: it does not matter which items were completed."""
    lengths = pair_lengths(dict.fromkeys("abc", 50.0), dict.fromkeys("cd", 50.0))
    assert lengths is not None
    assert (lengths.refusal, lengths.log_ratio, lengths.error) == (None, 0.0, 0.0)


def test_longer_wrong_answers_widen_the_error_of_joules_per_correct_answer() -> None:
    """Every item that is lost is also longer: log L and log T move against each other."""
    items = [f"q{k}" for k in range(100)]
    lengths = pair_lengths({q: 200.0 if k < 10 else 100.0 for k, q in enumerate(items)}, dict.fromkeys(items, 100.0))
    graded = paired({q: float(k >= 10) for k, q in enumerate(items)}, dict.fromkeys(items, 1.0))
    assert lengths is not None and graded is not None
    assert correlation(graded, lengths) == pytest.approx(-1)


BATCHES = (1, 4, 16)
MEMORY = (None, 0.25, 1.0, 2.0)
JOULES = st.sampled_from((None, 0.4, 0.9, 1.6))

POINTS = st.fixed_dictionaries(
    {
        "speeds": st.lists(st.floats(0.5, 3.0), min_size=2, max_size=2),
        "joules": st.lists(JOULES, min_size=2, max_size=2),
        "hli": JOULES,
        "needed": st.tuples(st.sampled_from(MEMORY), st.sampled_from(MEMORY)),
        "peak": st.tuples(st.sampled_from(MEMORY), st.sampled_from(MEMORY)),
        "batch": st.sampled_from((1.0, 0.98, 0.9)),
        "reached": st.sampled_from((60, 30, 10)),
    }
)
CHOICES = st.builds(
    IndexSettings,
    alpha=st.sampled_from((0, 0.3, 0.5, 1)),
    weights=st.sampled_from(((0.34, 0.33, 0.33), (0.6, 0.0, 0.4), (0.0, 1.0, 0.0))),
    sustainability=st.sampled_from(("linear", "log_j", "log_kgco2e")),
    carbon_kg_per_kwh=st.just(0.4),
)


def made_cell(base: CellSummary, target: str, b: int, repeat: int, made: dict[str, Any]) -> CellSummary:
    """One of fp16 makes 100 B tokens/s at 50 J a query, of awq these multiples; GB of memory."""
    own, of = target == "awq", repeat - 1
    measured = made["joules"][of]
    needed, peak = made["needed"][own], made["peak"][own]
    energy = msgspec.structs.replace(
        base.energy,
        energy_per_query_j=None if measured is None else 50.0 * (measured if own else 1.0),
        energy_hli_per_query_j=None if made["hli"] is None else 60.0 * (made["hli"] if own else 1.0),
        memory_peak_bytes=None if peak is None else int(16e9 * peak),
    )
    return msgspec.structs.replace(
        base, target=target, precision=target, concurrency=b, repeat=repeat, energy=energy,
        running_mean=b * (made["batch"] if own else 1.0), tokens_per_s=100.0 * b * (made["speeds"][of] if own else 1.0),
        memory_needed_bytes=None if needed is None else int(8e9 * needed), output_tokens_mean=100.0,
    )  # fmt: skip


def longer_and_longer(items: int, right: int) -> Answers:
    """Ever longer answers; the first `right` are correct."""
    return {
        f"q{k}": [GradedAnswer(repeat=1, outcome="correct", correct=k < right, output_tokens=80 + k)]
        for k in range(items)
    }


def accuracy_test(b: int, answers: dict[tuple[str, int], Answers]) -> TrustTest:
    ratio = trust_ratio(pair_items(answers["awq", b], answers["fp16", b]))
    return TrustTest(
        target="awq", reference="fp16", concurrency=b, verdict="inconclusive", sentence="",
        t_si=ratio.value, t_si_lo=ratio.lo, t_si_hi=ratio.hi,
    )  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(st.tuples(POINTS, POINTS, POINTS), CHOICES, st.booleans())
def test_the_table_and_the_curve_have_the_same_si(
    base: CellSummary, made: tuple[dict[str, Any], ...], chosen: IndexSettings, known_lengths: bool
) -> None:
    of_b = dict(zip(BATCHES, made, strict=True))
    cells = [
        made_cell(base, target, b, repeat, of_b[b]) for target in ("fp16", "awq") for b in BATCHES for repeat in (1, 2)
    ]
    answers = {("fp16", b): longer_and_longer(60, 50) for b in BATCHES}
    answers |= {("awq", b): longer_and_longer(of_b[b]["reached"], 45) for b in BATCHES}
    trust = TrustStudy(trust=tuple(accuracy_test(b, answers) for b in BATCHES))
    lengths = None if known_lengths else {}
    found = run_result(cells, answers, trust, reference="fp16", settings=chosen, lengths=lengths)
    (curve,) = [c for c in found.crossovers if c.metric == "si"]
    entries = found.indices.indices
    compared = {point.concurrency: math.exp(point.log_advantage) for point in curve.points}
    expected = {entry.concurrency: entry.si.value for entry in entries if entry.si is not None}
    if len(expected) > 1:
        assert compared == pytest.approx(expected)
    else:
        assert curve.refusal is not None
