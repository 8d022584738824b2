"""Multiple-choice sets of one's own are read in the shapes that such sets come in; the questions are made up here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadgen.errors import UsageError
from loadgen.workload.dataset import items_of_file, load_dataset
from loadgen.workload.grading import grade
from loadgen.workload.protocol import default_protocol, load_protocol

QUESTION = "Which of these is even?"
SHAPES: dict[str, dict[str, object]] = {
    "letter": {"question": QUESTION, "choices": ["3", "4", "5"], "answer": "B"},
    "lower case": {"question": QUESTION, "choices": ["3", "4", "5"], "answer": "(b)"},
    "place": {"question": QUESTION, "choices": ["3", "4", "5"], "answer": 1},
    "text": {"question": QUESTION, "choices": ["3", "four", "5"], "answer": "four"},
    "ARC": {"id": "x", "question": QUESTION, "choices": {"text": ["3", "4"], "label": ["1", "2"]}, "answerKey": "2"},
    "MMLU-Pro": {"question": QUESTION, "options": ["3", "4", *"abcdefgh"], "answer": "B", "answer_index": 1},
}


def written(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_read(tmp_path: Path, shape: str) -> None:
    path = written(tmp_path, SHAPES[shape])
    dataset = load_dataset("choices", data_file=path)
    (item,) = dataset.items
    assert (item.id, item.question, item.gold, dataset.answer) == ("choices-0000", QUESTION, "B", "letter")
    assert items_of_file(path) == [item]
    protocol = load_protocol(default_protocol("choices"))
    protocol.check_fits(dataset)
    assert f"(B) {item.options[1]}\n" in protocol.prompt(item)
    for text, outcome in {"The answer is (B).": "correct", "The answer is (A).": "wrong"}.items():
        assert grade(text, item, protocol=protocol.name, finish_reason="stop").outcome == outcome


def test_right_and_wrong_answers_are_mixed_by_the_question_alone(tmp_path: Path) -> None:
    rows = [
        {"Question": f"Is it {k}?", "Correct Answer": "yes", **{f"Incorrect Answer {n}": f"no {n}" for n in (1, 2, 3)}}
        for k in range(40)
    ]
    items = load_dataset("choices", data_file=written(tmp_path, *rows)).items
    assert all(item.options["ABCD".index(item.gold)] == "yes" for item in items)
    assert {item.gold for item in items} == set("ABCD")
    assert load_dataset("choices", data_file=written(tmp_path, *rows[::-1])).items[-1].options == items[0].options


def test_ten_options_are_all_in_the_prompt_and_gradable(tmp_path: Path) -> None:
    row = {"question": QUESTION, "options": [*"0123456789"], "answer": "J"}
    (item,) = load_dataset("choices", data_file=written(tmp_path, row)).items
    assert "(J) 9\n" in load_protocol("mathqa_gen_v1").prompt(item)
    assert grade("The answer is (J).", item, protocol="mathqa_gen_v1", finish_reason="stop").outcome == "correct"


@pytest.mark.parametrize(
    "row",
    [
        {"question": QUESTION, "choices": ["3", "4"], "answer": "C"},
        {"question": QUESTION, "choices": ["3", "4"], "answer": 2},
        {"question": QUESTION, "choices": ["3"], "answer": "A"},
        {"question": QUESTION, "choices": ["3", "4"]},
        {"choices": ["3", "4"], "answer": "A"},
        [1],
    ],
)
def test_anything_else_is_refused_in_one_sentence(tmp_path: Path, row: object) -> None:
    with pytest.raises(UsageError, match=r"line 2, is not a question with choices; give question, choices"):
        load_dataset("choices", data_file=written(tmp_path, SHAPES["letter"], row))
    with pytest.raises(UsageError, match="--dataset choices needs --data-file"):
        load_dataset("choices")
