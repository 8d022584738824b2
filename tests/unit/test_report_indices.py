"""Rows of the paper's indices: every number is one of the analysis, what is missing stays empty."""

from __future__ import annotations

from typing import Any

import msgspec
from made_answer import graded
from msgspec.structs import replace

from loadgen.analysis.estimate import Estimate
from loadgen.analysis.indices.dominance import Dominance, WeightShare, WeightSpace
from loadgen.analysis.indices.study import TargetIndices
from loadgen.analysis.trust.accuracy import compare_accuracy, judge
from loadgen.analysis.trust.study import TrustTest
from loadgen.reports.html.sections import verdict_sentences
from loadgen.reports.rows import INDICES, SHARES, dominance, shares, table_of


def entry(**changed: Any) -> TargetIndices:
    figures = {
        "t_si": 0.9, "s_si": 0.468, "si_geometric": 0.8, "deficit": 0.143, "cor_tps": -0.03,
        "s_si_raw": None, "si_raw": None, "si_geometric_raw": None, "improvement": None, "caes_kg_per_query": None,
    }  # fmt: skip
    made = {name: None if value is None else {"value": value} for name, value in figures.items()}
    e_si = {"value": {"value": 1.2}, "alpha": 0.5, "eta": None, "rho": None, "memory_source": None, "floor": None}
    rest = {
        "target": "awq", "reference": "fp16", "concurrency": 16, "refusal": None, "e_si": e_si,
        "si": {"value": 0.857, "lo": 0.8, "hi": 0.91}, "cor_class": "dissolved", "trap": "trap", "trap_raw": "trap",
        "sustainability": "linear", "energy_refusal": None, "energy": None, "energy_hli": None,
        "weights": (0.34, 0.33, 0.33),
    }  # fmt: skip
    return msgspec.convert(made | rest | changed, TargetIndices)


def test_an_index_row_shows_pillars_interval_and_verdict() -> None:
    table = table_of(INDICES, [entry()])
    assert dict(zip(table.headings, table.rows[0], strict=True)) == {
        "target": "awq", "B": "16", "T_SI": "0.900", "E_SI": "1.200", "S_SI": "0.468", "SI": "0.857",
        "95% CI": "0.800 to 0.910", "SI geometric": "0.800", "SI, S unclamped": "", "deficit": "+0.143",
        "COR": "−0.03", "class": "dissolved", "trap": "trap",
    }  # fmt: skip


def test_a_refused_comparison_says_why_and_has_no_figures() -> None:
    nothing = dict.fromkeys(("s_si", "si", "si_geometric", "deficit", "cor_tps", "cor_class"))
    e_si = msgspec.to_builtins(entry().e_si) | {"value": None}
    refused = entry(refusal="running batches differ by 12%", e_si=e_si, trap="cannot tell", **nothing)
    (row,) = table_of(INDICES, [refused]).rows
    assert row[2:] == ("0.900", "", "", "", "", "", "", "", "", "running batches differ by 12%", "cannot tell")


def test_columns_without_any_figure_can_be_omitted() -> None:
    assert "SI, S unclamped" not in table_of(INDICES, [entry(), entry()]).filled.headings
    table = table_of(INDICES, [entry(), entry(si_raw=Estimate(value=2.0))]).filled
    assert [row[table.headings.index("SI, S unclamped")] for row in table.rows] == ["", "2.000"]


def test_shares_of_the_weights_stand_clamped_beside_unclamped() -> None:
    space = WeightSpace(
        concurrency=1, left_out=(),
        clamped=(WeightShare(target="fp16", share=0.2),
                 WeightShare(target="awq", share=0.8, lo=0.6, hi=0.95, established=0.55)),
        raw=(WeightShare(target="awq", share=1.0), WeightShare(target="fp16", share=0.0)),
    )  # fmt: skip
    rows = table_of(SHARES, shares([space])).rows
    assert rows == [("1", "fp16", "20%", "", "", "0%"), ("1", "awq", "80%", "60 to 95%", "55%", "100%")]


def pair(b: int, verdict: str, items: int | None = 300, unknown: tuple[str, ...] = ()) -> Dominance:
    fields = {"target": "awq", "other": "fp16", "better": ("tokens_per_s",), "worse": (), "unknown": unknown}
    return msgspec.convert(fields | {"concurrency": b, "verdict": verdict, "items": items}, Dominance)


def test_only_pairs_that_dominate_or_may_are_listed_batches_of_one_verdict_together() -> None:
    unknown = ("accuracy",)
    pairs = [
        pair(1, "cannot tell", None, unknown), pair(4, "cannot tell", None, unknown),
        pair(16, "does not"), pair(64, "cannot tell", None, unknown),
    ]  # fmt: skip
    assert dominance(pairs).rows == [("1–4, 64", "awq", "fp16", "cannot tell", "tokens/s", "", "accuracy")]
    assert dominance(pairs[:2]).rows[0][0] == "≤ 4"


def test_dominance_names_its_margin_and_its_items() -> None:
    within = "dominates within margin"
    rows = dominance([pair(1, within, 280), pair(4, within)]).rows
    assert [row[:4] for row in rows] == [("≤ 4", "awq", "fp16", "dominates, accuracy within 2 pp (n = 280 to 300)")]
    assert dominance([pair(1, "dominates")]).rows[0][3] == "dominates (n = 300)"


def test_neighbouring_batches_with_one_verdict_on_accuracy_are_one_sentence() -> None:
    compared = compare_accuracy(graded(114), graded(120))
    assert compared is not None
    judged = judge([compared])[0]

    def test(b: int, verdict: Any, difference: float = 0.0, items: int = 64, sentence: str = "") -> TrustTest:
        more = 10 * b if verdict == "inconclusive" else None
        return TrustTest(
            target="awq", reference="fp16", concurrency=b, verdict=verdict, sentence=sentence or f"alone at {b}",
            comparison=replace(compared, difference=difference, items=items),
            judgement=replace(judged, verdict=verdict, more_items=more),
        )  # fmt: skip

    differ = "not compared: prompts differ"
    tests = [
        test(1, "inconclusive", -0.02, 40), test(4, "inconclusive", 0.01), test(16, "worse", -0.1),
        test(64, "refused", sentence=differ), test(128, "refused", sentence=differ),
    ]  # fmt: skip
    assert verdict_sentences(tests, lambda b: f"B = {b}") == [
        "awq, B ≤ 4: inconclusive; −2.0 to +1.0 pp over 40 to 64 items; you need 10 more items at least",
        "awq, B = 16: alone at 16",
        "awq, B = 64–128: not compared: prompts differ",
    ]
