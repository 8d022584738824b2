"""Pairing, the 2 x 2 table, McNemar, the intervals of difference and ratio, on the paper's 1319 items."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from trust_answers import answer, paired, pairs, paper, sides

from loadgen.analysis.estimate import wilson_interval
from loadgen.analysis.trust.answers import (
    ItemRequest,
    item_means,
    mean_output_tokens,
    outcome_rate,
    pair_items,
    pairing_refusal,
)
from loadgen.analysis.trust.significance import (
    changes,
    difference_interval,
    equivalence_p,
    mcnemar_p,
    paired_table,
    score_z,
    trust_ratio,
)


@pytest.mark.parametrize(
    ("right", "lo", "hi"), [(569, 40.49, 45.83), (539, 38.24, 43.54), (520, 36.82, 42.09)], ids=["fp16", "int8", "nf4"]
)
def test_wilson_intervals_of_the_papers_accuracies(right: int, lo: float, hi: float) -> None:
    assert [100 * end for end in wilson_interval(right, 1319)] == pytest.approx([lo, hi], abs=0.005)


def test_unpaired_the_papers_drop_is_not_significant() -> None:
    pooled = (569 + 520) / 2638
    z = (569 - 520) / 1319 / math.sqrt(2 * pooled * (1 - pooled) / 1319)
    assert 2 * stats.norm.sf(z) == pytest.approx(0.052, abs=0.001)
    assert mcnemar_p(paper(lost=104)) < 0.001


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [(77, 29, 3e-6), (103, 55, 1.7e-4), (123, 75, 8e-4), (156, 108, 0.0037), (189, 141, 0.0096), (222, 174, 0.018)],
    ids=["8%", "12%", "15%", "20%", "25%", "30%"],
)
def test_exact_mcnemar_over_the_share_of_flips(lost: int, won: int, p: float) -> None:
    """Net 48 items at 8 to 30% discordance of 1319."""
    measured = mcnemar_p(pairs(400, lost, won, 919 - lost - won))
    assert measured == pytest.approx(p, rel=0.2)
    assert measured == pytest.approx(mcnemar([[400, lost], [won, 0]], exact=True).pvalue)


def test_as_many_won_as_lost_is_no_evidence() -> None:
    """Both tails hold the middle: their sum is over 1."""
    assert mcnemar_p(pairs(60, 12, 12, 16)) == 1


def test_nothing_changed_is_no_evidence() -> None:
    same = pairs(60, 0, 0, 40)
    assert mcnemar_p(same) == 1
    """No change among n: Tango's interval ends at z^2 / (n + z^2)."""
    lo, hi = difference_interval(changes(same))
    assert lo == pytest.approx(-hi)
    assert hi == pytest.approx(1.959964**2 / (100 + 1.959964**2), rel=1e-6)


def test_the_table_counts_flips_both_ways() -> None:
    table = paired_table(pairs(50, 12, 5, 33))
    assert (table.n, table.both_right, table.lost, table.won, table.both_wrong) == (100, 50, 12, 5, 33)
    assert table.flips == pytest.approx(0.17)


def test_several_answers_to_an_item_are_one_item() -> None:
    """Asking each item three times and getting the same answers changes nothing: the items are the sample."""
    target, reference = sides(50, 12, 5, 33)
    thrice = pair_items({i: a * 3 for i, a in target.items()}, {i: a * 3 for i, a in reference.items()})
    once = pair_items(target, reference)
    assert mcnemar_p(thrice) == mcnemar_p(once)
    assert changes(thrice) == changes(once)
    assert trust_ratio(thrice) == trust_ratio(once)


def test_shares_of_several_answers_enter_the_table_by_their_pairs() -> None:
    both = pair_items({"a": [answer(True), answer(False)]}, {"a": [answer(True), answer(True)]})
    table = paired_table(both)
    assert (table.n, table.both_right, table.lost, table.won) == (1, 0.5, 0.5, 0.0)


def test_the_randomisation_test_agrees_with_enumeration() -> None:
    """Item differences 1, 1/2, 1/2, -1/2, 1: 32 sign patterns, of which 8 reach |sum| = 2.5 or more."""
    few = paired(np.array([0, 0, 0.5, 0.5, 0]), np.array([1, 0.5, 1, 0, 1]))
    differences = few.difference
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    exact = (np.abs(signs @ np.abs(differences)) >= abs(differences.sum()) - 1e-9).mean()
    assert exact == 8 / 32
    assert mcnemar_p(few) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 100_000))


def test_the_variance_is_that_of_the_most_likely_tables_with_the_supposed_difference() -> None:
    """A grid search over the shares of lost items: 12 won and 30 lost of 200, a difference of 3 pp supposed."""
    seen, supposed = changes(pairs(80, 30, 12, 78)), 0.03
    losing = np.linspace(1e-6, (1 - supposed) / 2 - 1e-6, 200_001)
    same = 1 - 2 * losing - supposed
    likelihood = 12 * np.log(losing + supposed) + 30 * np.log(losing) + 158 * np.log(same)
    best = float(losing[np.argmax(likelihood)])
    variance = 200 * (2 * best + supposed - supposed**2)
    assert score_z(seen, supposed) == pytest.approx((12 - 30 - 6) / math.sqrt(variance), rel=1e-4)


def test_with_many_changes_the_interval_is_walds() -> None:
    n, lost, won = 100_000, 12_000, 8_000
    half = 1.96 * math.sqrt((0.2 - 0.04**2) / n)
    interval = difference_interval(changes(pairs(40_000, lost, won, 40_000)))
    assert interval == pytest.approx((-0.04 - half, -0.04 + half), abs=2e-5)


def test_the_interval_reaches_the_bounds_only_where_everything_changed() -> None:
    lo, hi = difference_interval(changes(pairs(0, 0, 20, 0)))
    assert hi == 1
    assert lo == pytest.approx(-difference_interval(changes(pairs(0, 20, 0, 0)))[1])
    assert 0 < lo < 1


def test_items_with_several_answers_keep_their_mean_and_variance() -> None:
    seen = changes(paired(np.array([0.5, 0.5, 1, 0]), np.array([0, 1, 0, 0.5])))
    assert seen.difference == pytest.approx((-0.5 + 0.5 - 1 + 0.5) / 4)
    assert seen.won + seen.lost == pytest.approx(0.25 * 3 + 1)
    one_way = changes(paired(np.full(10, 0.5), np.ones(10)))
    assert (one_way.won, one_way.lost) == (5, 0)


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.03, 0.04])
def test_equivalence_is_the_90_percent_interval_inside_the_margin(margin: float) -> None:
    seen = changes(pairs(500, 40, 30, 430))
    lo, hi = difference_interval(seen, confidence=0.9)
    proven = equivalence_p(seen, margin) <= 0.05
    assert proven == (-margin < lo and hi < margin)


@pytest.mark.parametrize(("psi", "lo", "hi"), [(0.12, 0.872, 0.956), (0.20, 0.861, 0.969)])
def test_the_papers_t_si_with_its_paired_interval(psi: float, lo: float, hi: float) -> None:
    ratio = trust_ratio(paper(lost=round((psi * 1319 + 49) / 2)))
    assert ratio.value == pytest.approx(520 / 569)
    assert (ratio.lo, ratio.hi) == pytest.approx((lo, hi), abs=0.002)
    assert (ratio.delta_lo, ratio.delta_hi) == pytest.approx((lo, hi), abs=0.002)


def test_t_si_is_not_clipped() -> None:
    gained = trust_ratio(pairs(40, 2, 20, 38))
    assert gained.value == pytest.approx(60 / 42)
    assert gained.lo is not None
    assert gained.lo > 1


def test_above_chance_more_is_lost() -> None:
    """The paper's 0.38 to 0.33 on five options: 13% of the accuracy, 28% of what exceeds guessing."""
    both = pairs(300, 80, 30, 590)
    plain, corrected = trust_ratio(both), trust_ratio(both, chance=0.2)
    assert plain.value == pytest.approx(0.33 / 0.38)
    assert corrected.value == pytest.approx(0.13 / 0.18)
    assert corrected.lo is not None
    assert corrected.hi is not None
    assert corrected.hi - corrected.lo > 1.5 * (plain.hi or 0) - 1.5 * (plain.lo or 0)


def test_a_reference_at_chance_has_no_ratio() -> None:
    assert trust_ratio(pairs(10, 10, 5, 75), chance=0.2).value is None
    uncertain = trust_ratio(pairs(11, 10, 5, 74), chance=0.2)
    assert uncertain.value == pytest.approx(-0.04 / 0.01)
    assert (uncertain.lo, uncertain.hi) == (None, None)
    assert trust_ratio(pairs(0, 0, 5, 95)).value is None


def test_failed_requests_are_no_answers_but_truncated_ones_are() -> None:
    answers = {
        "a": [answer(True, tokens=10), answer(False, outcome="error")],
        "b": [answer(False, outcome="truncated", tokens=30)],
        "c": [answer(False, outcome="error")],
    }
    assert item_means(answers) == {"a": 1.0, "b": 0.0}
    assert outcome_rate(answers, "truncated") == 0.5
    assert mean_output_tokens(answers) == 20
    assert outcome_rate({}, "truncated") is None
    assert mean_output_tokens({"a": [answer(True)]}) is None


def test_only_shared_items_are_paired() -> None:
    both = pair_items({"a": [answer(True)], "b": [answer(True)]}, {"b": [answer(False)], "c": [answer(True)]})
    assert both.item_ids == ("b",)
    with pytest.raises(ValueError, match="share no answered item"):
        pair_items({"a": [answer(True)]}, {"b": [answer(True)]})


def asked(prompt: str = "p" * 64, max_tokens: int | None = 512, **sampling: object) -> ItemRequest:
    return ItemRequest(prompt_sha=prompt, max_tokens=max_tokens, sampling={"temperature": 0, **sampling})


def test_pairing_is_refused_where_the_question_was_another() -> None:
    reference = {"a": asked(), "b": asked()}
    assert pairing_refusal({"a": asked(), "b": asked()}, reference) is None
    assert pairing_refusal({"a": asked(), "z": asked("other")}, reference) is None
    prompts = pairing_refusal({"a": asked(), "b": asked("q" * 64)}, reference)
    assert prompts is not None
    assert "prompts differ on 1 of 2 items, as on b (prompt qqqqqqqq against pppppppp)" in prompts
    limits = pairing_refusal({"a": asked(max_tokens=256), "b": asked()}, reference)
    assert limits is not None
    assert "token limits differ on 1 of 2 items, as on a (256 against 512 tokens)" in limits
    sampling = pairing_refusal({"a": asked(temperature=0.6, top_k=20), "b": asked()}, reference)
    assert sampling is not None
    assert "as on a (temperature 0.6 against 0, top_k 20 against None)" in sampling
    nothing = pairing_refusal({"z": asked()}, reference)
    assert nothing is not None
    assert "no item in common" in nothing


def test_t_si_is_bonett_and_prices() -> None:
    """Airway hyper-responsiveness (Bentur 2009; 1, 1, 7, 12), by Wilson's limits worked out by hand: n* = 9, of which 2
    and 8; z = 1.96 sqrt(10 / 27) / (sqrt(8 / 11 / 3) + sqrt(2 / 11 / 9)) = 1.8787."""
    ratio = trust_ratio(pairs(1, 7, 1, 12))
    z = 1.959964 * (10 / 27) ** 0.5 / ((8 / 11 / 3) ** 0.5 + (2 / 11 / 9) ** 0.5)

    def end(right: int, sign: int) -> float:
        return (2 * right + z * z + sign * z * (z * z + 4 * right * (1 - right / 9)) ** 0.5) / (2 * (9 + z * z))

    assert ratio.value == pytest.approx(0.25)
    assert (ratio.lo, ratio.hi) == pytest.approx((end(2, -1) / end(8, 1), end(2, 1) / end(8, -1)))


def test_t_si_has_an_interval_where_no_answer_changed() -> None:
    ratio = trust_ratio(pairs(40, 0, 0, 24))
    assert ratio.lo is not None and ratio.hi is not None
    assert ratio.lo < 0.97 < 1 < 1.03 < ratio.hi
