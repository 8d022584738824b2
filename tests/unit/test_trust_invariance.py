"""Trust over the batch size: Cochran's Q, equivalence, flips and identical texts, the noise floor, effect ratio."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import cochrans_q
from trust_answers import answer

from loadgen.analysis.trust.answers import GradedAnswer, across, within
from loadgen.analysis.trust.significance import cochran_q
from loadgen.analysis.trust.trends import effect_ratio, trust_invariance

Side = dict[str, list[GradedAnswer]]


def side(right: int, n: int = 1000, flipped: int = 0) -> Side:
    """`right` of n answers right; the first `flipped` right ones and as many wrong ones are swapped."""
    correct = np.arange(n) < right
    correct[:flipped] = False
    correct[right : right + flipped] = True
    return {f"item-{place}": [answer(bool(value))] for place, value in enumerate(correct)}


def test_q_is_cochrans() -> None:
    scores = (np.random.default_rng(1).random((200, 5)) < [0.5, 0.5, 0.6, 0.5, 0.4]).astype(float)
    ours, theirs = cochran_q(scores), cochrans_q(scores)
    assert ours.method == "chi2"
    assert (ours.q, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue))


def test_few_changes_are_permuted_as_enumeration_has_it() -> None:
    """Two changed items of three conditions, both right under the first only: 9 arrangements, 3 of them as uneven."""
    scores = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], dtype=float)
    rows = list(set(permutations((1, 0, 0))))
    uneven = sum(max(np.add(a, b)) == 2 for a in rows for b in rows) / 9
    assert uneven == 3 / 9
    test = cochran_q(scores)
    assert test.method == "permutation"
    assert test.p == pytest.approx(uneven, abs=0.02)
    assert test.q == pytest.approx(cochrans_q(scores).statistic)


def test_nothing_changed_at_all() -> None:
    test = cochran_q(np.ones((50, 4)))
    assert (test.q, test.p) == (0, 1)


def test_answers_that_hardly_change_are_equivalent_over_b() -> None:
    result = trust_invariance({1: side(430), 16: side(430, flipped=3), 64: side(431, flipped=4)})
    assert result is not None
    assert (result.verdict, result.items, result.smallest) == ("equivalent", 1000, 1)
    assert [batch.concurrency for batch in result.batches] == [16, 64]
    assert result.batches[0].changed.flip_rate == pytest.approx(0.006)
    assert result.accuracy_range == pytest.approx(0.001)
    assert all(batch.equivalence_p < 0.05 for batch in result.batches)


def test_accuracy_that_falls_with_b_is_different() -> None:
    result = trust_invariance({64: side(390), 1: side(430), 16: side(428)})
    assert result is not None
    assert result.verdict == "different"
    assert result.p < 1e-6
    assert result.batches[1].difference == pytest.approx(-0.04)


def test_many_flips_without_a_net_change_prove_nothing() -> None:
    result = trust_invariance({1: side(430), 64: side(430, flipped=80)})
    assert result is not None
    assert result.p > 0.9
    assert result.verdict == "inconclusive"


def test_one_batch_size_has_no_invariance() -> None:
    assert trust_invariance({1: side(430)}) is None
    assert trust_invariance({}) is None
    assert trust_invariance({1: {"a": [answer(True)]}, 2: {"b": [answer(True)]}}) is None


def test_texts_may_change_without_the_answer() -> None:
    one = {"a": [answer(True, text="x")], "b": [answer(True, text="y")], "c": [answer(True)]}
    other = {"a": [answer(True, text="x")], "b": [answer(True, text="z")], "c": [answer(False)]}
    agreement = across(other, one)
    assert (agreement.items, agreement.flip_rate, agreement.text_identity_rate) == (3, pytest.approx(1 / 3), 0.5)


def test_the_noise_floor_is_between_repeats_at_one_b() -> None:
    """One of three answers differs: two of three pairs disagree; an item asked once says nothing."""
    at_1 = {"a": [answer(True, text="x")] * 2 + [answer(False, text="w")], "b": [answer(True)]}
    at_8 = {"a": [answer(True, text="x")] * 2}
    noise = within([at_1, at_8])
    assert noise.items == 2
    assert noise.flip_rate == pytest.approx((2 / 3 + 0) / 2)
    assert noise.text_identity_rate == pytest.approx((1 / 3 + 1) / 2)
    assert within([side(5, 10)]).flip_rate is None


def test_repeats_of_an_item_are_one_cluster_in_q() -> None:
    by_b = {1: side(430), 64: side(420, flipped=10)}
    once = trust_invariance(by_b)
    thrice = trust_invariance({b: {item: a * 3 for item, a in answers.items()} for b, answers in by_b.items()})
    assert once is not None
    assert thrice is not None
    assert (thrice.q, thrice.p, thrice.items) == (once.q, once.p, once.items)


def test_the_precision_against_the_batch_size() -> None:
    """Reference 430 right at both B; target 380 and 370: effect (50 + 60) / 2 against 10."""
    ratio = effect_ratio({1: side(380), 64: side(370)}, {1: side(430), 64: side(430)})
    assert ratio is not None
    assert (ratio.precision_effect, ratio.batch_effect) == pytest.approx((0.055, 0.01))
    assert ratio.ratio == pytest.approx(5.5)
    assert ratio.lo is not None
    assert ratio.hi is not None
    assert 1 < ratio.lo < 5.5 < ratio.hi


def test_accuracy_that_never_moves_with_b_bounds_no_ratio() -> None:
    ratio = effect_ratio({1: side(380), 64: side(380)}, {1: side(430), 64: side(430)})
    assert ratio is not None
    assert (ratio.ratio, ratio.lo, ratio.hi) == (None, None, None)
    assert effect_ratio({1: side(3)}, {1: side(3)}) is None
