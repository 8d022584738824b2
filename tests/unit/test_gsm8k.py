"""GSM8K in its published schema; every question here was written for this test."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import published

from loadgen.analysis.trust.answers import flaw_warnings
from loadgen.errors import UsageError
from loadgen.workload.dataset import load_dataset
from loadgen.workload.grading import grade
from loadgen.workload.gsm8k import RELABELLED, REMOVED, TEST, TRAIN, read_gsm8k
from loadgen.workload.item import facts_of
from loadgen.workload.protocol import default_protocol
from loadgen.workload.published import sha256_of

PLATINUM = ("question", "answer", "cleaning_status")


def row(question: str = "How many?", answer: str = "1 + 1 = <<1+1=2>>2\n#### 2") -> str:
    return json.dumps({"question": question, "answer": answer})


def jsonl(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_row_becomes_an_item_with_its_published_words(tmp_path: Path) -> None:
    (item,) = read_gsm8k(jsonl(tmp_path, row()), split="test")
    assert (item.question, item.solution, item.gold) == ("How many?", "1 + 1 = <<1+1=2>>2\n#### 2", "2")


def test_depth_is_solution_lines_and_annotated_calculations_are_counted_apart(tmp_path: Path) -> None:
    answer = "She has 3.\n\nThen 3 + 2 = <<3+2=5>>5\n5 * 2 = <<5*2=10>>10, <<10-1=9>>9\n#### 9"
    (item,) = read_gsm8k(jsonl(tmp_path, row(answer=answer)), split="test")
    assert (item.steps, item.annotated_steps) == (3, 3)
    assert (item.options, item.accepted) == ((), ())


def test_ids_name_dataset_split_and_row_and_count_skipped_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path, row(), "", row())
    assert [item.id for item in read_gsm8k(path, split="train")] == ["gsm8k-train-0000", "gsm8k-train-0002"]


@pytest.mark.parametrize(
    ("published", "gold"), [("#### 1,234,567", "1234567"), ("#### -5", "-5"), ("a #### 3 b\n#### 0.5", "0.5")]
)
def test_the_gold_answer_is_the_last_marked_number_without_commas(tmp_path: Path, published: str, gold: str) -> None:
    assert read_gsm8k(jsonl(tmp_path, row(answer=published)), split="test")[0].gold == gold


@pytest.mark.parametrize(
    "bad",
    ["{not json", '{"question": "How many?"}', '{"question": 3, "answer": "#### 3"}', "[]"],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, bad: str) -> None:
    with pytest.raises(UsageError, match=r"rows\.jsonl, line 2, is not a GSM8K row") as caught:
        read_gsm8k(jsonl(tmp_path, row(), bad), split="test")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(row().encode() + b'\n{"question": "\xff", "answer": "#### 1"}\n')
    with pytest.raises(UsageError, match="line 2, is not a GSM8K row"):
        read_gsm8k(path, split="test")


def test_an_answer_without_its_marker_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 1: the answer has no '#### N'"):
        read_gsm8k(jsonl(tmp_path, row(answer="it is 2")), split="test")


@pytest.mark.parametrize("gold", ["many", "", "1/2", "NaN"])
def test_a_gold_answer_that_is_not_a_number_is_refused_before_the_run(tmp_path: Path, gold: str) -> None:
    with pytest.raises(UsageError, match=r"line 1: .* after '####' is not a number"):
        read_gsm8k(jsonl(tmp_path, row(answer=f"#### {gold}")), split="test")


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no question"):
        read_gsm8k(jsonl(tmp_path, ""), split="test")


def test_another_file_than_the_published_one_is_said_to_be_so(tmp_path: Path) -> None:
    dataset = load_dataset("gsm8k", data_file=jsonl(tmp_path, row(), row(), row()), limit=2)
    assert (len(dataset.items), dataset.published) == (2, False)


def test_the_published_test_split_is_the_pinned_one_and_grades_its_own_solutions_correct() -> None:
    path = published("gsm8k_test.jsonl")
    assert sha256_of(path) == TEST.sha256
    dataset = load_dataset("gsm8k", data_file=path)
    assert dataset.published
    assert len(dataset.items) == 1319
    outcomes = [grade(item.solution, item, protocol="gsm8k", finish_reason="stop").outcome for item in dataset.items]
    assert outcomes == ["correct"] * 1319


def test_depths_of_the_published_test_split() -> None:
    items = load_dataset("gsm8k", data_file=published("gsm8k_test.jsonl")).items
    lines = Counter(item.steps for item in items)
    assert lines == {2: 326, 3: 371, 4: 297, 5: 175, 6: 87, 7: 40, 8: 20, 9: 2, 11: 1}
    marks = Counter(item.annotated_steps for item in items)
    assert marks == {0: 18, 1: 65, 2: 357, 3: 364, 4: 290, 5: 138, 6: 57, 7: 21, 8: 9}


def test_the_published_train_split_is_the_pinned_one() -> None:
    path = published("gsm8k_train.jsonl")
    assert sha256_of(path) == TRAIN.sha256
    assert len(read_gsm8k(path, split="train")) == 7473


def platinum(tmp_path: Path, *rows: tuple[str, str, str]) -> Path:
    path = tmp_path / "platinum.parquet"
    pq.write_table(pa.Table.from_pylist([dict(zip(PLATINUM, row, strict=True)) for row in rows]), path)
    return path


def test_platinum_is_read_as_the_hub_keeps_it(tmp_path: Path) -> None:
    path = platinum(
        tmp_path, ("a", "#### 2", "consensus"), ("b", "#### 3", "rejected"), ("c", "1 + 3 = 4\n#### 4", "revised")
    )
    dataset = load_dataset("gsm8k:platinum", data_file=path)
    assert [(item.id, item.gold) for item in dataset.items] == [
        ("gsm8k-platinum-0000", "2"),
        ("gsm8k-platinum-0002", "4"),
    ]
    assert (dataset.published, default_protocol("gsm8k:platinum")) == (False, "gsm8k")
    with pytest.raises(UsageError, match="needs --data-file: loadgen does not download it; get it from hugg"):
        load_dataset("gsm8k:platinum")
    with pytest.raises(UsageError, match="line 1, is not a row of GSM8K-Platinum"):
        load_dataset("gsm8k:platinum", data_file=jsonl(tmp_path, row()))


def test_what_platinum_removed_or_relabelled_is_marked_in_plain_gsm8k(tmp_path: Path) -> None:
    asked = jsonl(tmp_path, row("a", "#### 2"), row("b", "#### 3"), row("c", "#### 5"), row("d ?", "#### 1,000"))
    file = platinum(
        tmp_path, ("a", "#### 2", "consensus"), ("c", "#### 4", "revised"), ("d  ?", "#### 1000", "verified")
    )
    items = load_dataset("gsm8k", data_file=asked, platinum_file=file).items
    assert [item.flaws for item in items] == [(), (REMOVED,), (RELABELLED,), ()]
    (told,) = flaw_warnings({item.id: facts_of(item) for item in items})
    assert told.startswith("2 of 4 questions are marked as flawed (1 removed by GSM8K-Platinum, 1 relabelled by")
    assert flaw_warnings({}) == []
    other = platinum(tmp_path, ("z", "#### 2", "consensus"))
    with pytest.raises(UsageError, match="--platinum-file has no question of this GSM8K file"):
        load_dataset("gsm8k", data_file=asked, platinum_file=other)
    with pytest.raises(UsageError, match="--platinum-file none: there is no such file"):
        load_dataset("gsm8k", data_file=asked, platinum_file=Path("none"))
    with pytest.raises(UsageError, match="marks the items of --dataset gsm8k, and this is sample"):
        load_dataset("sample", platinum_file=other)
