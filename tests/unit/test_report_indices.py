"""Rows of the paper's indices: every number is one of the analysis, what is missing stays empty."""

from __future__ import annotations

from typing import Any

from loadgen.reports.rows import DOMINANCE, INDICES, SHARES, dominance_rows, index_rows, share_rows
from loadgen.reports.trust import verdict_sentences


def estimate(value: float | None, lo: float | None = None, hi: float | None = None) -> dict[str, float | None]:
    return {"value": value, "lo": lo, "hi": hi}


def entry(**changed: Any) -> dict[str, Any]:
    return {
        "target": "awq", "concurrency": 16, "refusal": None, "t_si": estimate(0.9), "e_si": {"value": estimate(1.2)},
        "s_si": estimate(0.468), "si": estimate(0.857, 0.8, 0.91), "si_geometric": estimate(0.8), "si_raw": None,
        "deficit": estimate(0.143), "cor_tps": estimate(-0.03), "cor_class": "dissolved", "trap": "trap",
    } | changed  # fmt: skip


def test_an_index_row_shows_pillars_interval_and_verdict() -> None:
    (row,) = index_rows([entry()], simulated=False)
    assert dict(zip(INDICES, row, strict=True)) == {
        "target": "awq", "B": "16", "T_SI": "0.900", "E_SI": "1.200", "S_SI": "0.468", "SI": "0.857",
        "95% CI": "0.800–0.910", "SI geometric": "0.800", "SI, S unclamped": "", "deficit": "+0.143", "COR": "−0.03",
        "class": "dissolved", "trap": "trap",
    }  # fmt: skip


def test_a_refused_comparison_says_why_and_has_no_figures() -> None:
    nothing = dict.fromkeys(("e_si", "s_si", "si", "si_geometric", "deficit", "cor_tps", "cor_class", "trap"))
    (row,) = index_rows([entry(refusal="running batches differ by 12%", **nothing)], simulated=True)
    assert row[0] == "awq SIMULATED"
    assert row[2:] == ("0.900", "", "", "", "", "", "", "", "", "running batches differ by 12%", "")


def test_shares_of_the_weights_stand_clamped_beside_unclamped() -> None:
    def share(target: str, value: float, **more: float) -> dict[str, Any]:
        return {"target": target, "share": value, "lo": None, "hi": None, "established": None} | more

    space = {
        "concurrency": 1,
        "clamped": [share("fp16", 0.2), share("awq", 0.8, lo=0.6, hi=0.95, established=0.55)],
        "raw": [share("awq", 1.0), share("fp16", 0.0)],
    }
    rows = share_rows([space], simulated=False)
    assert rows == [("1", "fp16", "20%", "", "", "0%"), ("1", "awq", "80%", "60%–95%", "55%", "100%")]
    assert all(len(row) == len(SHARES) for row in rows)


PAIR = {"target": "awq", "other": "fp16", "better": ["tokens_per_s"], "worse": [], "unknown": []}


def pair(b: int, verdict: str, items: int | None = 300, **changed: Any) -> dict[str, Any]:
    return PAIR | {"concurrency": b, "verdict": verdict, "items": items, "accuracy_margin": 0.02} | changed


def test_only_pairs_that_dominate_or_may_are_listed_batches_of_one_verdict_together() -> None:
    unknown = ["accuracy"]
    pairs = [
        pair(1, "cannot tell", None, unknown=unknown), pair(4, "cannot tell", None, unknown=unknown),
        pair(16, "does not"), pair(64, "cannot tell", None, unknown=unknown),
    ]  # fmt: skip
    rows = dominance_rows(pairs, simulated=False)
    assert rows == [("1–4, 64", "awq", "fp16", "cannot tell", "tokens/s", "", "accuracy")]
    assert len(rows[0]) == len(DOMINANCE)
    assert dominance_rows(pairs[:2], simulated=False)[0][0] == "≤ 4"


def test_dominance_names_its_margin_and_its_items() -> None:
    within = "dominates within margin"
    rows = dominance_rows([pair(1, within, 280), pair(4, within)], simulated=False)
    assert [row[:4] for row in rows] == [("≤ 4", "awq", "fp16", "dominates, accuracy within 2 pp (n = 280 to 300)")]
    assert dominance_rows([pair(1, "dominates")], simulated=False)[0][3] == "dominates (n = 300)"


def test_neighbouring_batches_with_one_verdict_on_accuracy_are_one_sentence() -> None:
    def test(b: int, verdict: str, difference: float, items: int, **changed: Any) -> dict[str, Any]:
        made = {"target": "awq", "concurrency": b, "verdict": verdict, "items": items, "sentence": f"alone at {b}"}
        return made | {"comparison": {"difference": difference}, "judgement": {"more_items": 10 * b}} | changed

    tests = [
        test(1, "inconclusive", -0.02, 40), test(4, "inconclusive", 0.01, 64), test(16, "worse", -0.1, 64),
        test(64, "refused", 0, 0, sentence="not compared: prompts differ"),
        test(128, "refused", 0, 0, sentence="not compared: prompts differ"),
    ]  # fmt: skip
    assert verdict_sentences(tests, lambda b: f"B = {b}") == [
        "awq, B ≤ 4: inconclusive; −2.0 to +1.0 pp over 40 to 64 items; you need 10 more items at least",
        "awq, B = 16: alone at 16",
        "awq, B = 64–128: not compared: prompts differ",
    ]
