"""Whether an answer is right, kind by kind, in both directions: right stays right and wrong stays wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from grading_cases import CHOICES, NUMBERS, OPTIONS
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from loadgen.bounds import MOST_GRADED
from loadgen.workload.grading import VERSION, grade
from loadgen.workload.grading.marks import answer_part, marks
from loadgen.workload.item import ItemFacts

ROWS = [(kind, (), "gsm8k_cot_zeroshot", *row) for kind, rows in NUMBERS.items() for row in rows] + [
    (kind, OPTIONS, "mathqa_gen_v1", *row) for kind, rows in CHOICES.items() for row in rows
]


VERDICTS = {2: "88b61947a4646c22"}
"""By version of the grader, a digest of what it makes of every case. Another digest asks for another version."""


def test_other_verdicts_are_another_version_of_the_grader() -> None:
    digest = hashlib.sha256()
    for _, options, protocol, text, gold, _ in ROWS:
        read = grade(text, ItemFacts(gold=gold, options=options), protocol=protocol, finish_reason="stop")
        digest.update(f"{text}\0{read.outcome}\0{read.answer}\0{read.extractor}\n".encode())
    assert {VERSION: digest.hexdigest()[:16]} == VERDICTS


@pytest.mark.parametrize("kind", [*NUMBERS, *CHOICES])
def test_a_kind_of_answer_is_graded_as_a_careful_person_would(kind: str) -> None:
    wrongly = [
        (text, gold, right, verdict.answer)
        for row_kind, options, protocol, text, gold, right in ROWS
        if row_kind == kind
        for verdict in [grade(text, ItemFacts(gold=gold, options=options), protocol=protocol, finish_reason="stop")]
        if (verdict.outcome == "correct") != right
    ]
    assert wrongly == []


@pytest.mark.parametrize(
    "opened", ["<think>", "<thinking>", "[THINK]", "\u25c1think\u25b7", "<seed:think>", "<think>\n"]
)
def test_a_thought_that_never_ends_is_truncated(opened: str) -> None:
    item = ItemFacts(gold="27")
    for text in (f"{opened}So 27", f"Sure.\n{opened}The answer is 27.", f"<think>9</think>{opened}27"):
        assert grade(text, item, protocol="gsm8k", finish_reason="stop").outcome == "truncated", text
    for text in (f"The {opened.strip()} tag is unused. The answer is 27.", f"`{opened.strip()}` is a tag: 27"):
        assert grade(text, item, protocol="gsm8k", finish_reason="stop").outcome == "correct", text


@pytest.mark.parametrize("kind", [*NUMBERS, *CHOICES])
def test_each_kind_is_a_line_of_the_decision_table(kind: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "grading.md").read_text(encoding="utf-8")
    assert f"\n| {kind} | " in page


@pytest.mark.parametrize(
    ("begin", "end", "outcome"),
    [("", "\n#### 5", "correct"), ("#### 5\n", "\nSo it is 6.", "wrong"), ("<think>", "\n#### 5", "truncated")],
)
def test_of_a_very_long_answer_the_beginning_and_the_end_are_read(begin: str, end: str, outcome: str) -> None:
    text = begin + "word " * (MOST_GRADED // 4) + end
    assert grade(text, ItemFacts(gold="5"), protocol="gsm8k", finish_reason="stop").outcome == outcome


def test_how_much_of_an_answer_is_read_has_a_bound() -> None:
    """A strict match in the middle, which the harness finds, is not looked for."""
    text = "word " * MOST_GRADED + "#### 5 " + "word " * MOST_GRADED
    assert grade(text, ItemFacts(gold="5"), protocol="gsm8k", finish_reason="stop").strict is False


MARKING_PIECES = [
    *("####", "#", " ", "\t", "\n", "answer", "Answers", "ans", "Ans:", "means", "A:", "a :", "Solution:", "<result>"),
    *("<answer>", "[final]", "is ", "is the ", "our ", "final ", "correct ", "18", "-5", "=", ":", "of x", "isn't "),
    *("cannot ", "(", "*", "antwort", "respuesta", "\\boxed{", "}", "_", ".", ","),
]
MARKING = st.lists(st.sampled_from(MARKING_PIECES)).map("".join)


@given(MARKING)
def test_the_marks_of_a_text_are_the_same_beside_a_letter_that_is_not_ascii(text: str) -> None:
    """ASCII texts are searched on some lines alone, others everywhere."""
    beside = [replace(mark, begin=mark.begin - 2) for mark in marks(f"é\n{text}")]
    assert list(marks(text)) == beside


@pytest.mark.parametrize("word", ["answer", "Answers", "ans", "Antwort", "RESPUESTA", "resposta", "Risposta"])
def test_an_answer_is_told_in_several_languages(word: str) -> None:
    assert [mark.line for mark in marks(f"So it is.\n{word}: 18")] == ["18"]


OPENINGS = [
    *("Question:", "Q:", "Problem 2.", "Exercise:", "Example 3:", "Task:", "Human:", "User:", "Input:", "Instruction:"),
    *("Next task:", "New example:", "Another exercise:", "Assistant:", "Given the following problem:", "<|im_end|>"),
    *("</s>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>"),
]


@pytest.mark.parametrize("opening", OPENINGS)
def test_an_answer_ends_where_the_next_question_begins(opening: str) -> None:
    part, goes_on = answer_part(f"#### 18\n{opening} more", lambda _: True, lambda _: True)
    assert (part.rstrip(), goes_on) == ("#### 18", True)
