"""Items that were asked often: counted answers say what the same answers one by one say, and limits agree."""

from __future__ import annotations

from itertools import combinations, product

import msgspec
import numpy as np
import pytest
from trust_answers import answer, paired

from loadgen.analysis.trust import significance
from loadgen.analysis.trust.answers import (
    GradedAnswer,
    across,
    count,
    item_means,
    mean_output_tokens,
    outcome_rate,
    within,
)
from loadgen.analysis.trust.significance import mcnemar_p, resampled_means

KINDS = [
    answer(True, tokens=10, text="a"),
    answer(False, tokens=20, text="b"),
    answer(False, outcome="truncated", tokens=30, text="c"),
    answer(True, text=""),
    answer(False, outcome="error"),
]


def some(times: tuple[int, ...]) -> tuple[list[GradedAnswer], list[GradedAnswer]]:
    """So many of each kind: counted, and one by one."""
    given = [(kind, n) for kind, n in zip(KINDS, times, strict=True) if n]
    counted = [msgspec.structs.replace(kind, times=n) for kind, n in given]
    return counted, [kind for kind, n in given for _ in range(n)]


COUNTED, SINGLE = zip(some((3, 2, 1, 2, 1)), some((1, 0, 2, 1, 0)), strict=True)


def test_shares_and_lengths_weigh_every_answer() -> None:
    for counted, single in zip(COUNTED, SINGLE, strict=True):
        assert item_means({"q": counted}) == item_means({"q": single})
        assert outcome_rate({"q": counted}, "truncated") == outcome_rate({"q": single}, "truncated")
        assert mean_output_tokens({"q": counted}) == mean_output_tokens({"q": single})
        assert count(counted) == len(single)
    assert item_means({"q": COUNTED[0]}) == {"q": 5 / 8}, "failed requests are no answers"
    assert mean_output_tokens({"q": COUNTED[0]}) == (3 * 10 + 2 * 20 + 30) / 6


def test_agreement_is_that_of_all_pairs() -> None:
    """Against the definition, pair by pair."""
    ours, theirs = ([a for a in side if a.outcome != "error"] for side in SINGLE)
    for pairs, found in (
        (list(product(ours, theirs)), across({"q": COUNTED[0]}, {"q": COUNTED[1]})),
        (list(combinations(ours, 2)), within([{"q": COUNTED[0]}])),
    ):
        known = [(a, b) for a, b in pairs if a.text_sha and b.text_sha]
        assert found.items == 1
        assert found.flip_rate == sum(a.correct != b.correct for a, b in pairs) / len(pairs)
        assert found.text_identity_rate == sum(a.text_sha == b.text_sha for a, b in known) / len(known)


def test_of_many_sizes_of_change_the_normal_limit_is_the_sign_flip_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 items, each asked 30 to 60 times on either side: both ways agree (100,000 draws: +-0.0014 at p = .05)."""
    rng = np.random.default_rng(5)
    chance, asked = rng.random(400), rng.integers(30, 60, 400)
    reference, target = (rng.binomial(asked, np.clip(chance - lost, 0, 1)) / asked for lost in (0.0, 0.006))
    pairs = paired(reference, target)
    limit = mcnemar_p(pairs)
    monkeypatch.setattr(significance, "MANY_SIZES", 10_000)
    drawn = mcnemar_p(pairs)
    assert 0.001 < limit < 0.5
    assert limit == pytest.approx(drawn, abs=0.005)
    assert limit != drawn, "they are two ways"


def test_drawing_items_one_by_one_is_drawing_equal_rows_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean and standard error of a column: p and sqrt(p (1 - p) / n) of its own scatter."""
    rng = np.random.default_rng(1)
    columns = rng.random((300, 2))
    one_by_one = resampled_means(columns)
    monkeypatch.setattr(significance, "MANY_ROWS", 10_000)
    together = resampled_means(columns)
    for means in (one_by_one, together):
        assert means.mean(axis=0) == pytest.approx(columns.mean(axis=0), abs=0.001)
        assert means.std(axis=0) == pytest.approx(columns.std(axis=0) / np.sqrt(300), rel=0.03)
        assert np.cov(means.T) * 300 == pytest.approx(np.cov(columns.T), abs=0.005)
