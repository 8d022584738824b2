"""Worse, better, equivalent or inconclusive; over a family; how many more items; confounded."""

from __future__ import annotations

import pytest
from made_answer import trusted
from statsmodels.stats.multitest import multipletests
from trust_answers import answer, sides

from loadgen.analysis.trust.accuracy import (
    AccuracyComparison,
    compare_accuracy,
    fewest_changes,
    items_for_difference,
    judge,
    power_of_mcnemar,
)
from loadgen.analysis.trust.significance import holm


def compared(both_right: int, lost: int, won: int, both_wrong: int) -> AccuracyComparison:
    return compare_accuracy(*sides(both_right, lost, won, both_wrong))


def test_holm_as_statsmodels_has_it() -> None:
    family = [0.01, 0.04, 0.03, 0.005, 0.9, 0.03]
    assert holm(family) == pytest.approx(list(multipletests(family, method="holm")[1]))
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_the_papers_drop_is_worse_at_12_percent_flips() -> None:
    comparison = compared(465, 104, 55, 695)
    assert (comparison.items, comparison.answers, comparison.unpaired_items) == (1319, 1319, 0)
    assert comparison.difference == pytest.approx(-49 / 1319)
    assert comparison.difference_hi < 0
    assert comparison.table.flips == pytest.approx(159 / 1319)
    assert comparison.t_si.value == pytest.approx(520 / 569)
    assert comparison.t_si_above_chance is None
    verdict = judge([comparison])[0]
    assert (verdict.verdict, verdict.within_margin, verdict.more_items) == ("worse", False, None)


def test_the_other_way_round_is_better() -> None:
    assert judge([compared(465, 55, 104, 695)])[0].verdict == "better"


def test_few_flips_of_many_items_are_equivalent() -> None:
    verdict = judge([compared(570, 13, 12, 724)])[0]
    assert (verdict.verdict, verdict.within_margin, verdict.more_items) == ("equivalent", True, None)


def test_a_proven_loss_smaller_than_the_margin_is_still_worse() -> None:
    verdict = judge([compared(570, 14, 1, 734)])[0]
    assert (verdict.verdict, verdict.within_margin) == ("worse", True)


def test_inconclusive_says_how_many_more_items() -> None:
    """5 pp lost at 20% flips of 200 items: about 660 are needed to show it."""
    comparison = compared(75, 25, 15, 85)
    verdict = judge([comparison])[0]
    assert verdict.verdict == "inconclusive"
    assert verdict.more_items is not None
    needed = 200 + verdict.more_items
    assert needed == items_for_difference(10 / 200, 42 / 202)
    assert power_of_mcnemar(needed, 10 / 200, 42 / 202) == pytest.approx(0.8, abs=0.002)


def test_without_a_difference_the_items_are_those_of_equivalence() -> None:
    """No net change at 42 of 202 (adjusted): 0.2079 x (1.645 + 1.282)^2 / 0.02^2 = 4451 items, 14 more as the score
    test's variance is the one at the margin."""
    verdict = judge([compared(80, 20, 20, 80)])[0]
    assert verdict.verdict == "inconclusive"
    assert verdict.more_items == pytest.approx(4465 - 200, abs=2)


def test_what_the_items_could_have_shown_is_said() -> None:
    """The anchors' smallest detectable difference of 1319 items at 12% flips is 2.7 pp; a family's is larger."""
    comparison = compared(490, 79, 79, 671)
    alone, family = judge([comparison])[0].detectable, judge([comparison] * 4)[0].detectable
    assert alone == pytest.approx(0.027, abs=0.0005)
    assert family is not None
    assert alone is not None
    assert family > 1.1 * alone
    assert judge([compared(3, 1, 0, 4)])[0].detectable is None


def test_more_items_are_never_fewer_than_exact_mcnemar_could_prove() -> None:
    """All 3 items lost: p = 2 / 2^3. Six changes are needed for 2 / 2^6 < .05, and eight in a family of four: .0125."""
    lost = compared(0, 3, 0, 0)
    assert judge([lost])[0].more_items == 3
    assert judge([lost] * 4)[0].more_items == 5
    assert (fewest_changes(0.05), fewest_changes(0.0125), fewest_changes(0.03125)) == (6, 8, 6)


def test_a_family_is_judged_more_strictly_than_its_members() -> None:
    """p = .027 alone, .11 as one of four."""
    lone = compared(500, 46, 27, 427)
    alone, family = judge([lone])[0], judge([lone, *[compared(500, 20, 20, 460)] * 3])[0]
    assert 0.02 < alone.p < 0.04
    assert family.p == pytest.approx(4 * alone.p)
    assert alone.verdict == "worse"
    assert family.verdict == "inconclusive"


@pytest.mark.parametrize(("truncated", "confounded"), [(0, False), (10, False), (11, True)])
def test_truncation_that_differs_by_more_than_one_point_confounds(truncated: int, confounded: bool) -> None:
    target, reference = sides(500, 20, 20, 460)
    for item in list(target)[-truncated:] if truncated else []:
        target[item] = [answer(False, outcome="truncated")]
    comparison = compare_accuracy(target, reference)
    assert comparison.truncated_rate == pytest.approx(truncated / 1000)
    assert judge([comparison])[0].confounded is confounded


def test_chance_is_corrected_when_it_is_known() -> None:
    ratio = compare_accuracy(*sides(300, 80, 30, 590), chance=0.2).t_si_above_chance
    assert ratio is not None
    assert ratio.value == pytest.approx(0.13 / 0.18)


def test_a_test_has_its_verdict_in_a_sentence_and_in_a_line() -> None:
    """fp16 right on 120 of 200 items, awq on 114 of these: 3 pp, which a family of four batches does not prove."""
    test = trusted()[1].trust[0]
    assert test.judgement is not None
    assert test.brief.startswith("\N{MINUS SIGN}3.0 pp (\N{MINUS SIGN}") and test.brief.endswith("): inconclusive")
    assert test.sentence == (
        f"{test.brief}, you need {test.judgement.more_items} more items; 6 of 200 answers changed (6 lost, 0 won)"
    )
