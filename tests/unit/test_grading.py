"""The headline verdict on a number: what an answer states, in whatever notation, compared exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.workload.grading import Grade, Grader, grade
from loadgen.workload.grading.number import notation_of, read_number, same_number, value_of
from loadgen.workload.item import ItemFacts


def verdict(text: str, gold: str = "18", *, finish_reason: str = "stop", accepted: tuple[str, ...] = ()) -> Grade:
    return grade(text, ItemFacts(gold=gold, accepted=accepted), protocol="gsm8k", finish_reason=finish_reason)


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("#### 18.", "18"),
        ("#### 1,450,000", "1450000"),
        ("#### 18.00", "18"),
        ("#### $18", "18"),
        ("####18", "18"),
        ("####\n18", "18"),
        ("#### **18**", "18"),
        ("#### 18 #### ", "18"),
        ("#### \N{MINUS SIGN}3", "-3"),
        ("#### \N{EN DASH}3", "-3"),
        ("#### -$3", "-3"),
        ("#### $-3", "-3"),
        ("#### 5-3=2", "2"),
        ("#### 3 x 6 = 18 eggs", "18"),
        ("#### 18 = 3 x 6", "18"),
        ("#### <<9*2=18>>18", "18"),
        ("#### 18, wait. #### 19", "19"),
        ("#### 2 345", "2345"),
        ("#### 36/2", "18"),
        ("18.#### 18", "18"),
    ],
)
def test_the_last_number_after_hashes_is_the_answer(text: str, gold: str) -> None:
    read = verdict(f"First 7, then 8.\n{text}", gold)
    assert (read.outcome, read.extractor) == ("correct", "hashes")


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        (r"\boxed{18}", "18"),
        (r"$$\boxed{\$1{,}875}$$ for 4", "1875"),
        (r"\boxed{1\,875}", "1875"),
        (r"\boxed{18\text{ dollars}}", "18"),
        (r"\boxed{\text{about } 18}", "18"),
        (r"\boxed{x = 18}", "18"),
        (r"\boxed{\dfrac{37}{2}}", "18.5"),
        (r"\boxed{-\frac{1}{2}}", "-0.5"),
        (r"\boxed{18\%}", "18"),
        (r"\boxed{3} so {in all} \boxed{18} of \boxed{20", "18"),
        (r"The answer is: $\boxed{18}$, not 5", "18"),
    ],
)
def test_without_hashes_it_is_the_last_closed_box(text: str, gold: str) -> None:
    read = verdict(text, gold)
    assert (read.outcome, read.extractor) == ("correct", "boxed")


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("The answer is $18.00.", "18"),
        ("The answer is -0.5.", "-0.5"),
        ("So the answer is **18** dollars, 9 a head.", "18"),
        ("The answer is 18. There are 2 boys.", "18"),
        ("The final answer is: about 18 (of 20)", "18"),
        ("**Final Answer:**\n\n**18**\n\nof 20", "18"),
        ("Answer: 18 (3 x 6)", "18"),
        ("The answer is 17. No, the answer is 18, 9 each.", "18"),
        ("The answer is 3 x 6 = 18.", "18"),
        ("The answer is x = 18.", "18"),
        ("The answer is 1,875 litres in 3 days", "1875"),
        ("The answer is Rs. 18 for 3", "18"),
    ],
)
def test_without_a_box_it_is_what_the_answer_is_said_to_be(text: str, gold: str) -> None:
    read = verdict(text, gold)
    assert (read.outcome, read.extractor) == ("correct", "answer_is")


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("That is .5 of it", "0.5"),
        ("x = 18...", "18"),
        ("so it's ...18", "18"),
        ("They left.18", "18"),
        ("(5 + 4)-18", "-9"),
        ("36 -18", "18"),
        ("x-18", "18"),
        ("--18", "18"),
        ("It is -18", "-18"),
        ("She has 1,875 left", "1875"),
        ("1\N{NARROW NO-BREAK SPACE}875 in all", "1875"),
        ("1'875", "1875"),
        ("It is 1/2", "0.5"),
        ("7 1/2 hours", "7.5"),
        ("7½ hours", "7.5"),
        ("1.8e1", "18"),
        ("1.8 x 10^1 m", "18"),
        (r"\(1.8 \times 10^{1}\)", "18"),
        ("25%", "25"),
        (r"25\%", "25"),
        ("an area of 18 cm²", "18"),
        ("an area of 18 m^{2}", "18"),
        ("$18$", "18"),
        ("-$18", "-18"),
        ("18 €", "18"),
        ("rs . 18", "18"),
        ("\N{FULLWIDTH DIGIT ONE}\N{FULLWIDTH DIGIT EIGHT}", "18"),
        ("#### 1. Count them\nThere are 18", "18"),
        ("Answer:\n1. Count them\nThere are 18", "18"),
        ("Answer: 16 - 3 = 13 eggs.\nThen 18 in all.", "18"),
        ("The answer is the sum of 3 and 15, which is 18.", "18"),
        ("18 after 7 #### of", "18"),
    ],
)
def test_else_it_is_the_last_number_of_the_text(text: str, gold: str) -> None:
    read = verdict(text, gold)
    assert (read.outcome, read.extractor) == ("correct", "last_number")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("#### 19", "19"),
        ("#### -18", "-18"),
        ("#### 18.01", "18.01"),
        ("#### 180", "180"),
        ("18 of them are red, 2 are not.", "2"),
        ("It is 1/3", "1/3"),
        ("0.180", "0.18"),
        ("5²", "25"),
        ("1 1/8", "1.125"),
    ],
)
def test_another_number_is_wrong_and_is_shown_in_one_notation(text: str, read: str) -> None:
    assert (verdict(text).outcome, verdict(text).answer) == ("wrong", read)


@pytest.mark.parametrize("text", ["no idea", "####", "x2y", "H2O", "5 - $18", "9" * 100, "\nQuestion: How many of 18?"])
def test_a_text_without_a_number_is_unparsed(text: str) -> None:
    read = verdict(text)
    assert (read.outcome, read.answer, read.extractor, read.correct) == ("unparsed", None, None, False)


@pytest.mark.parametrize("text", ["", " \n\t", "<think>It is 18.</think>", "It is 18.</think>\n"])
def test_no_text_is_empty_and_not_unparsed(text: str) -> None:
    assert verdict(text).outcome == "empty"


@pytest.mark.parametrize(
    "text",
    ["#### 18\n\nQuestion: How many of the 7\nAnswer: #### 7", "She has 18\n\nQ: How many of 7?", "18\nQuestion:"],
)
def test_what_follows_the_next_question_is_not_read(text: str) -> None:
    assert verdict(text).outcome == "correct"


def test_only_what_follows_the_reasoning_is_read() -> None:
    assert verdict("<think>7, #### 7</think>It is 18").outcome == "correct"
    assert verdict("7, #### 7</think>It is 18").outcome == "correct"  # the template had opened it
    unclosed = verdict("<think>It is 18. #### 18\n")
    assert (unclosed.outcome, unclosed.answer, unclosed.correct) == ("truncated", None, False)


@pytest.mark.parametrize(
    "text", ["", "12 + 6 = 18", "12 + 6 = 18\nso", "#### 1,8", "####", "so 18\n", "#### 1. Add 18\n", "\nQ: 18"]
)
def test_an_answer_cut_off_before_its_marked_line_is_truncated_and_not_read(text: str) -> None:
    read = verdict(text, finish_reason="length")
    assert (read.outcome, read.answer, read.correct, read.correct_but_truncated) == ("truncated", None, False, False)


@pytest.mark.parametrize("text", ["#### 18", "so #### 18.", "18\nThe answer is 18", r"a box: \boxed{18}"])
def test_a_right_answer_marked_at_the_very_cut_is_noted_but_does_not_count(text: str) -> None:
    read = verdict(text, finish_reason="length")
    assert (read.outcome, read.answer, read.correct, read.correct_but_truncated) == ("truncated", None, False, True)
    assert not verdict(text, "19", finish_reason="length").correct_but_truncated


@pytest.mark.parametrize(
    "text",
    ["#### 18\n\nQuestion: A", "#### 18\n\nso #### 1", "The answer is 18.\nBut", "\\boxed{18}\n", "#### 18\nQ: 7\n"],
)
def test_an_answer_cut_off_after_its_marked_line_counts(text: str) -> None:
    read = verdict(text, finish_reason="length")
    assert (read.outcome, read.correct_but_truncated) == ("correct", False)
    assert verdict(text, "7", finish_reason="length").outcome == "wrong"


def test_every_accepted_answer_is_right() -> None:
    assert verdict("#### 19", "18", accepted=("18", "19.0")).outcome == "correct"


@pytest.mark.parametrize(
    ("value", "gold", "same"),
    [
        (Fraction(18), "18.00", True),
        (Fraction(1801, 100), "18", False),
        (Fraction(18) + Fraction(1, 10**30), "18", False),
        (Fraction(1, 3), "0.33", True),
        (Fraction(333, 1000), "0.33", True),
        (Fraction(34, 100), "0.33", False),
        (Fraction(46, 100), "0.5", False),
        (Fraction(18004, 1000), "18.00", False),
    ],
)
def test_comparison_is_exact_but_for_a_gold_that_is_itself_rounded(value: Fraction, gold: str, same: bool) -> None:
    assert same_number(value, gold) is same


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_a_decimal_is_read_as_it_was_written(digits: int, places: int) -> None:
    value = Fraction(digits, 10**places)
    written = notation_of(value)
    assert Fraction(written) == value
    assert not written.endswith((".0", "."))
    for text in (f"It is {written}.", f"#### {written}", rf"\boxed{{{written}}}", f"The answer is ${written}"):
        assert verdict(text, written).outcome == "correct"


@given(st.integers(0, 10**12))
def test_thousands_separators_change_nothing(number: int) -> None:
    for separator in (",", r"\,", "{,}", "'", "\N{NO-BREAK SPACE}", ",\\!"):
        assert verdict(f"in all {number:,} of 7 kinds #### {number:,}".replace(",", separator), str(number)).correct


def test_a_text_that_says_one_number_has_a_value() -> None:
    stated = {"rs . 400": 400, "38 %": 38, "12 km / hr": 12, "1 : 2": None, "6 / π": None, "none": None}
    assert {text: value_of(text) for text in stated} == stated


@given(st.text())
def test_no_text_breaks_the_grader(text: str) -> None:
    for finish_reason in ("stop", "length"):
        read = verdict(text, finish_reason=finish_reason)
        assert (read.answer is not None) == (read.outcome in ("correct", "wrong"))


PIECES = [
    "#", "####", "#### ", "####\n", "\\boxed{", "\\boxed{\\boxed", "{", "}", "answer is ", "answer:", "answer: =", "=",
    "0", "1,", "1,234", "1,234,", "1/", "1/0", "1 1/", "0.", ".", "-", "$", "-$", "\\", "\\frac{", "\\frac{1}{",
    "<think>", "</think>", "\nQuestion", "\nQ", "\n", " ", "\t", "e1", "1e9", "1e99 ", "1 x 10^9", "\N{NO-BREAK SPACE}",
    "½", "²", "(", "(A", "A or ", "A", "a )", "option is ", "The answer is (", "\\text{", "The answer is 1", "ﷺ",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_a_hundred_kilobytes_of_anything_are_graded(piece: str) -> None:
    """By patterns that look at each character a bounded number of times; a quadratic one would hang here."""
    text = piece * (100_000 // len(piece))
    for finish_reason in ("stop", "length"):
        verdict(text, finish_reason=finish_reason)
        letters = ItemFacts(gold="A", options=("1", "1 : 2", "3", "none", "rs . 5"))
        grade(text, letters, protocol="mathqa_gen_v1", finish_reason=finish_reason)


@pytest.mark.parametrize("text", ["1e99", "1 x 10^99", "1/" + "9" * 40, "7 1/" + "9" * 40, "0." + "1" * 38])
def test_huge_numbers_are_read_exactly(text: str) -> None:
    assert read_number(text, marked=False) is not None


def test_a_grader_has_no_verdict_on_items_it_does_not_know() -> None:
    grader = Grader({"a": ItemFacts(gold="18")}, "gsm8k")
    assert grader.grade("b", "#### 18", "stop") is None
    assert grader.grade("a", "#### 18", "stop") == verdict("#### 18")
