"""Grading by the simple rule: the number after the last `####`, else the last number."""

from __future__ import annotations

import pytest

from loadgen.workload.grading import Verdict, grade


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("#### 18.", "18"),
        ("#### 1,450,000", "1450000"),
        ("#### 18.00", "18"),
        ("#### 18.0", "18"),
        ("#### $18", "18"),
        ("####18", "18"),
        ("####\n18", "18"),
        ("#### -3", "-3"),
        ("#### \N{MINUS SIGN}3", "-3"),
        ("#### -$3", "-3"),
        ("The answer is $18.00.", "18"),
        ("The answer is -0.5.", "-0.5"),
        ("That is .5 of it", "0.5"),
        (r"\boxed{18}", "18"),
        ("#### 18\n\nQuestion: How many of the 7", "18"),
        ("x = 18...", "18"),
        ("from 10-18", "18"),
        ("#### 18, wait. #### 19", "19"),
        ("She has 1,875 left", "1875"),
        ("18", "18.00"),
    ],
)
def test_what_is_read_as_the_gold_number(text: str, gold: str) -> None:
    assert grade(text, gold, finish_reason="stop").outcome == "correct"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("#### 19", "19"),
        ("#### 18 ... #### 19", "19"),
        ("18 of them are left. There are 2 boys.", "2"),
        ("#### -18", "-18"),
        ("#### 18.01", "18.01"),
        ("#### 180", "180"),
    ],
)
def test_another_number_is_wrong_and_is_shown(text: str, read: str) -> None:
    assert grade(text, "18", finish_reason="stop") == Verdict("wrong", read)


def test_the_answer_is_kept_without_dollar_and_separators() -> None:
    assert grade("#### $1,450", "1450", finish_reason="stop").answer == "1450"


@pytest.mark.parametrize("text", ["no idea", "####", "x2y", "four"])
def test_a_text_without_a_number_is_unparsed(text: str) -> None:
    assert grade(text, "4", finish_reason="stop") == Verdict("unparsed", None)


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_no_text_is_empty_and_not_unparsed(text: str) -> None:
    assert grade(text, "4", finish_reason="stop") == Verdict("empty", None)


@pytest.mark.parametrize("text", ["", "12 + 6 = 18", "12 + 6 = 18\nso", "#### 18", "#### 18.", "#### 1,8", "####"])
def test_an_answer_cut_off_before_its_final_line_ends_is_truncated(text: str) -> None:
    assert grade(text, "18", finish_reason="length") == Verdict("truncated", None)


def test_an_answer_cut_off_after_its_final_line_counts() -> None:
    assert grade("#### 18\n\nQuestion: A", "18", finish_reason="length") == Verdict("correct", "18")
    assert grade("#### 18\n\nso #### 1", "18", finish_reason="length") == Verdict("correct", "18")
