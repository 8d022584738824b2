"""The rows of a data file are the same whatever they are kept in."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loadgen.errors import UsageError
from loadgen.workload.dataset import load_dataset
from loadgen.workload.grading import grade
from loadgen.workload.gsm8k import read_gsm8k

ROWS = [
    {"question": "A box holds 6 pens. How many are in 4 boxes?", "answer": "6 * 4 = 24\n#### 24"},
    {"question": "Of 30 seats, 12 are taken. How many are free?", "answer": "30 - 12 = 18\n#### 18"},
]


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def comma_separated(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LAYOUTS: dict[str, Callable[[Path], object]] = {
    "rows.jsonl": lambda path: path.write_bytes(LINES),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "viewer.json": lambda path: path.write_text(json.dumps({"rows": [{"row_idx": 0, "row": row} for row in ROWS]})),
    "test-00000-of-00001.parquet": parquet,
    "unnamed": parquet,
    "rows.csv": comma_separated,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_rows_from_any_layout(tmp_path: Path, name: str) -> None:
    LAYOUTS[name](tmp_path / name)
    items = load_dataset("jsonl", data_file=tmp_path / name).items
    assert [(item.question, item.gold, item.steps) for item in items] == [
        (ROWS[0]["question"], "24", 1),
        (ROWS[1]["question"], "18", 1),
    ]
    assert [item.gold for item in read_gsm8k(tmp_path / name, split="test")] == ["24", "18"]


@pytest.mark.parametrize("data", [b"\x1f\x8bcut", b"PAR1cut", gzip.compress(LINES)[:-20]])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "rows").write_bytes(data)
    with pytest.raises(UsageError, match="is it damaged"):
        load_dataset("jsonl", data_file=tmp_path / "rows")


def test_gzip_unpacks_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.workload.questions.MOST_DATA_BYTES", 1000)
    (tmp_path / "rows").write_bytes(gzip.compress(b" " * 1001))
    with pytest.raises(UsageError, match="unpacked it is longer than"):
        load_dataset("jsonl", data_file=tmp_path / "rows")


def test_further_answers_that_are_accepted_are_right(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "Which even number is near 25?", "answer": 24, "accept": [26, "1,024"]}))
    (item,) = load_dataset("jsonl", data_file=path).items
    assert item.accepted == ("24", "26", "1024")
    for text, outcome in {"#### 26": "correct", "#### 24": "correct", "#### 25": "wrong"}.items():
        assert grade(text, item, protocol="gsm8k", finish_reason="stop").outcome == outcome
    path.write_text(json.dumps({"question": "q", "answer": 24, "accept": ["3,5"]}))
    with pytest.raises(UsageError, match=r"line 1: 'accept' lists \['3,5'\]"):
        load_dataset("jsonl", data_file=path)
