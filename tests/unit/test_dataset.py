"""Datasets by name: a file of one's own, what a run may take them for, and which file is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadgen.errors import UsageError
from loadgen.workload import dataset as datasets
from loadgen.workload.dataset import DATASETS, FILES, items_of_file, load_dataset
from loadgen.workload.published import PublishedFile, sha256_of


def lines(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("answer", "gold", "steps"),
    [
        (12, "12", None),
        (-0.5, "-0.5", None),
        (" 1,250 ", "1250", None),
        ("2 + 2 = 4\n4 * 3 = 12\n#### 12", "12", 2),
        ("#### 7", "7", 0),
        ("1,23,456", "123456", None),
        (33.333333333333336, "33.333333333333336", None),
        (1e22, "10000000000000000000000", None),
    ],
)
def test_an_answer_is_a_number_or_a_worked_text(tmp_path: Path, answer: object, gold: str, steps: int | None) -> None:
    dataset = load_dataset("jsonl", data_file=lines(tmp_path, {"question": "q", "answer": answer, "source": "me"}))
    (item,) = dataset.items
    assert (item.id, item.question, item.gold, item.steps) == ("jsonl-0000", "q", gold, steps)
    assert item.solution.endswith(f"#### {gold}")
    assert (dataset.name, dataset.published, dataset.answer) == ("jsonl", False, "number")


@pytest.mark.parametrize("answer", ["many", "", "#### many", "1/2", "NaN", "3 million", "3,5", "12,34", "#### 3,5"])
def test_an_answer_that_is_no_number_is_refused_before_the_run(tmp_path: Path, answer: object) -> None:
    path = lines(tmp_path, {"question": "q", "answer": 1}, {"question": "q", "answer": answer})
    with pytest.raises(UsageError, match=r"own\.jsonl, line 2: the answer .* is not a number") as caught:
        load_dataset("jsonl", data_file=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "row", [{"question": "q"}, {"question": 1, "answer": 1}, [], {"question": "q", "answer": None}]
)
def test_a_line_of_another_schema_is_named(tmp_path: Path, row: object) -> None:
    with pytest.raises(UsageError, match=r"own\.jsonl, line 1, is not a row of --dataset jsonl"):
        load_dataset("jsonl", data_file=lines(tmp_path, row))


def test_a_file_of_ones_own_must_be_named_and_hold_a_question(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dataset jsonl needs --data-file"):
        load_dataset("jsonl")
    with pytest.raises(UsageError, match="holds no question"):
        load_dataset("jsonl", data_file=lines(tmp_path))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match="unknown dataset 'mathqa:dirty'; did you mean mathqa\\? known: gsm8k, mathqa, mathqa:all, "
    ):
        load_dataset("mathqa:dirty")


FETCHED = [name for name in DATASETS if name not in ("sample", "jsonl", "choices", "gsm8k:platinum")]


@pytest.mark.parametrize("name", FETCHED)
def test_without_a_data_file_the_published_test_split_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("LOADGEN_CACHE", str(tmp_path / "cache"))
    row = {
        "Problem": "p", "Rationale": "r", "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5", "correct": "c",
        "annotated_formula": "add(1, 2)", "linear_formula": "add(n0,n1)|",
    }  # fmt: skip
    source = tmp_path / "source"
    source.write_text('{"question": "q", "answer": "#### 3"}\n' if name == "gsm8k" else json.dumps([row]))
    file = PublishedFile("test", source.as_uri(), sha256_of(source), source.stat().st_size)
    family = name.partition(":")[0]
    monkeypatch.setitem(datasets.FILES, family, (file, FILES[family][1]))
    monkeypatch.setattr(datasets.mathqa, "CLEAN_TEST_IDS_SHA256", datasets.mathqa.ids_sha256(items_of_file(source)))
    loaded = load_dataset(name)
    assert (len(loaded.items), loaded.published, loaded.sha256) == (1, True, file.sha256)
    source.unlink()
    assert load_dataset(name) == loaded, "the second time it comes from the cache"


def test_the_schema_of_a_data_file_is_seen_from_its_first_character(tmp_path: Path) -> None:
    (item,) = items_of_file(lines(tmp_path, {"question": "q", "answer": 4}))
    assert item.gold == "4"
    path = tmp_path / "array.json"
    path.write_text('\n [{"Problem": "p"}]')
    with pytest.raises(UsageError, match="is not MathQA"):
        items_of_file(path)
    with pytest.raises(UsageError, match=r"--data-file .*none: there is no such file"):
        items_of_file(tmp_path / "none")
