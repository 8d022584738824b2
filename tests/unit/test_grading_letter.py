"""The verdict on a multiple-choice answer: which letter it names, and by which rule that was found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.workload.grading import Grade, grade
from loadgen.workload.item import ItemFacts

TERMS = ("6 / π", "- 6", "6", "2 1 / 2", "2 , 500 . 5")
OPTIONS = ("38", "27.675", "1 : 2", "data inadequate", "rs . 12 , 500")


def verdict(
    text: str,
    gold: str = "C",
    *,
    options: tuple[str, ...] = OPTIONS,
    accepted: tuple[str, ...] = (),
    finish_reason: str = "stop",
) -> Grade:
    item = ItemFacts(gold=gold, options=options, accepted=accepted)
    return grade(text, item, protocol="mathqa_gen_v1", finish_reason=finish_reason)


@pytest.mark.parametrize(
    ("text", "extractor"),
    [
        ("(A) is 38 and (B) not. The answer is (C).", "answer_is"),
        ("The answer is (A). No, the answer is (C), as B is 2", "answer_is"),
        ("The answer is C", "answer_is"),
        ("the answer is **C** (1 : 2)", "answer_is"),
        ("The answer is: option C) 1 : 2", "answer_is"),
        ("The correct option is C.", "answer_is"),
        (r"The answer is $\boxed{C}$.", "boxed"),
        (r"the answer is \(\text{C}\)", "answer_is"),
        ("the answer is (c), not a half", "answer_is"),
        ("the answer is c )", "answer_is"),
        ("the answer is c.\n", "answer_is"),
        ("The answer is\n\n(C)", "answer_is"),
        ("The answer is \N{FULLWIDTH LEFT PARENTHESIS}C\N{FULLWIDTH RIGHT PARENTHESIS}", "answer_is"),
        ("Answer: C", "answer_colon"),
        ("**Answer:** (C) 1 : 2", "answer_colon"),
        ("Final Answer\n\nC", "answer_colon"),
        ("answer : c", "answer_colon"),
        (r"$\boxed{C}$ and not A", "boxed"),
        (r"\boxed{\text{(C)}}", "boxed"),
        (r"\boxed{A} or rather \boxed{\textbf{C: } 1 : 2}", "boxed"),
        ("So it must be C, a ratio of 38 to 76", "last_letter"),
        ("Neither A nor B. C.", "last_letter"),
        ("A train is 38 m long and another 76 m: (C) it is", "last_letter"),
        ("so the ratio is 1:2", "option_text"),
        ("so the ratio is\n1 : 2.\n", "option_text"),
    ],
)
def test_the_letter_is_found_by_the_first_rule_that_holds(text: str, extractor: str) -> None:
    read = verdict(text)
    assert (read.outcome, read.answer, read.extractor) == ("correct", "C", extractor)


@pytest.mark.parametrize(
    ("text", "letter", "extractor"),
    [
        ("it comes to 38", "A", "option_value"),
        ("The answer is 38.0 %", "A", "answer_is"),
        ("3 * 9.225 = 27.675", "B", "option_value"),
        ("#### 12500", "E", "hashes"),
        ("it costs $12,500.00", "E", "option_value"),
        ("Hence the data inadequate", "D", "option_text"),
    ],
)
def test_an_answer_without_a_letter_may_state_an_options_value_or_text(text: str, letter: str, extractor: str) -> None:
    read = verdict(text, letter)
    assert (read.outcome, read.answer, read.extractor) == ("correct", letter, extractor)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("it is 6 / π", "A"),
        ("it is -6", "B"),
        ("it is 6", "C"),
        ("it is 2.5", "D"),
        ("it is 2 1 / 2", "D"),
        ("it is 2500.5", "E"),
    ],
)
def test_options_are_read_through_the_datasets_spaces(text: str, letter: str) -> None:
    assert verdict(text, letter, options=TERMS).answer == letter


@pytest.mark.parametrize(
    "text",
    [
        "no idea",
        "a bird in the hand",
        "A bird in the hand",
        "A = 5 and B = 7",
        "it comes to 39",
        "The answer is A or C.",
        "The answer is (A) and (C).",
        r"\boxed{A/C}",
        "C3PO and I",
        "C's",
    ],
)
def test_no_letter_or_two_at_once_is_unparsed(text: str) -> None:
    assert (verdict(text).outcome, verdict(text).answer) == ("unparsed", None)


def test_another_letter_is_wrong_and_a_lower_case_a_is_an_english_word() -> None:
    assert (verdict("The answer is (B).").outcome, verdict("The answer is (B).").answer) == ("wrong", "B")
    assert verdict("The answer is a ratio. The answer is (C).").answer == "C"
    assert verdict("The answer is a ratio.", "A").outcome == "unparsed"


def test_any_letter_of_an_option_that_stands_twice_is_right() -> None:
    for letter, outcome in {"A": "correct", "B": "wrong", "D": "correct"}.items():
        assert verdict(f"The answer is ({letter}).", "A", accepted=("A", "D")).outcome == outcome


def test_a_letter_without_an_option_is_no_answer() -> None:
    assert verdict("The answer is (E).", "A", options=("1", "2", "3")).outcome == "unparsed"
    assert verdict("The answer is (E).", "A", options=()).answer == "E"


@pytest.mark.parametrize("text", ["", "so it is C", "it is C\n", "it is 38\n", "1 : 2\nso"])
def test_a_letter_is_not_guessed_from_an_answer_that_was_cut_off(text: str) -> None:
    read = verdict(text, finish_reason="length")
    assert (read.outcome, read.answer, read.correct_but_truncated) == ("truncated", None, False)


def test_a_marked_letter_counts_once_its_line_has_ended() -> None:
    assert verdict("The answer is (C).\n\nQuestion", finish_reason="length").outcome == "correct"
    cut = verdict("The answer is (C)", finish_reason="length")
    assert (cut.outcome, cut.correct, cut.correct_but_truncated) == ("truncated", False, True)


def test_the_harness_has_no_verdict_on_generated_letters() -> None:
    read = verdict("The answer is (C).")
    assert (read.strict, read.flexible) == (None, None)
    item = ItemFacts(gold="C", options=OPTIONS)
    read = grade("#### C", item, protocol="gsm8k", finish_reason="stop")
    assert (read.strict, read.flexible) == (None, None)


@given(st.text(alphabet=st.sampled_from("ABCabc()or. :=\\boxed{}answeri\n12"), max_size=60))
def test_whatever_is_read_is_a_letter_of_an_option(text: str) -> None:
    read = verdict(text, options=("1", "2", "1 : 2"))
    assert read.answer in (None, "A", "B", "C")
