"""`--answer-regex`: the user's own pattern says where an answer stands."""

from __future__ import annotations

import pytest

from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.workload.grading import Grade, Grader
from loadgen.workload.grading.words import check_speed, compiled, last_found
from loadgen.workload.item import ItemFacts

OPTIONS = ("12 km", "15 km", "18 km")


def verdict(text: str, regex: str, gold: str = "18", finish: str = "stop") -> Grade:
    facts = ItemFacts(gold=gold, options=OPTIONS if gold.isalpha() else ())
    found = Grader({"a": facts}, "gsm8k_cot_zeroshot", regex).grade("a", text, finish)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "regex", "gold", "outcome", "answer"),
    [
        ("RESULT=3\nRESULT=18\nThe answer is 4.", r"RESULT=(\d+)", "18", "correct", "18"),
        ("RESULT=18\nRESULT=3", r"RESULT=(\d+)", "18", "wrong", "3"),
        ("so [[ $1,800 ]] it is", r"\[\[.*?\]\]", "1800", "correct", "1800"),
        ("so [[ 36/2 ]]", r"\[\[(.*?)\]\]", "18", "correct", "18"),
        ("so [[ 18 or 20 ]]", r"\[\[(.*?)\]\]", "18", "unparsed", None),
        ("The answer is 18.", r"RESULT=(\d+)", "18", "unparsed", None),
        ("choice -> c\nOr A.", r"choice -> (\w)", "C", "correct", "C"),
        ("choice -> 18 km\nOr A.", r"choice -> (.*)", "C", "correct", "C"),
        ("choice -> A or C", r"choice -> (.*)", "C", "unparsed", None),
        ("A:18 B:", r"A:(\d+)|B:", "18", "unparsed", None),
        ("<think>RESULT=3</think>RESULT=18", r"RESULT=(\d+)", "18", "correct", "18"),
        ("RESULT=18\nQuestion: next?\nRESULT=3", r"RESULT=(\d+)", "18", "correct", "18"),
    ],
)
def test_the_last_match_is_the_answer(text: str, regex: str, gold: str, outcome: str, answer: str | None) -> None:
    found = verdict(text, regex, gold)
    assert (found.outcome, found.answer) == (outcome, answer)
    assert found.extractor == (None if answer is None else "pattern")


def test_an_answer_that_was_cut_off_counts_by_a_match_on_an_ended_line() -> None:
    assert verdict("RESULT=18\nLet me", r"RESULT=(\d+)", finish="length").outcome == "correct"
    cut = verdict("so RESULT=18", r"RESULT=(\d+)", finish="length")
    assert (cut.outcome, cut.correct_but_truncated) == ("truncated", True)


def test_only_the_end_of_a_long_answer_is_searched() -> None:
    assert verdict("RESULT=18" + " so" * 10_000, r"RESULT=(\d+)").outcome == "unparsed"


@pytest.mark.parametrize(
    ("regex", "said"),
    [
        ("(", "is not a regular expression"),
        (r"(\d+)(k)", "has 2 groups; use one at most"),
        (r"\d*", "matches the empty text"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(regex: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        configure(answer_regex=regex)
    assert said in str(caught.value)
    assert f"--answer-regex {regex!r}" in str(caught.value)


def test_a_pattern_that_takes_for_ever_is_refused_before_the_sweep() -> None:
    compiled(r"(?:\d+)+x")
    with pytest.raises(UsageError, match="avoid a repeat inside a repeat"):
        check_speed(r"(?:\d+)+x", within_s=0.5)
    check_speed(r".*answer: (\d+)")


def test_the_pattern_is_kept_with_the_run() -> None:
    assert configure(answer_regex=r"ANS=(\d+)").answer_regex == r"ANS=(\d+)"
    assert configure().answer_regex is None


def test_a_pattern_that_is_slow_on_an_answer_alone_is_given_up() -> None:
    """The trial does not know a received run's texts: of 60 letters b, `(?:b+)+c` tries 2^59 divisions."""
    pattern = compiled("(?:b+)+c")
    check_speed(pattern.pattern)
    assert last_found("bbc and bc", pattern) == "bc"
    with pytest.raises(UsageError, match="on one of the answers"):
        last_found("b" * 60, pattern)


def test_a_pattern_of_any_characters_is_tried() -> None:
    check_speed("\0|\ud800")
