"""GSM8K in its published schema: JSON lines of `question` and `answer`, the answer ending in `#### N`.

Source: github.com/openai/grade-school-math (MIT), 1319 test and 7473 train rows.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from loadgen.errors import UsageError
from loadgen.workload.item import Item
from loadgen.workload.jsonl import gold_of, rows, solution_lines
from loadgen.workload.published import PublishedFile

_FOLDER = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
TEST = PublishedFile(
    "gsm8k_test.jsonl",
    f"{_FOLDER}/test.jsonl",
    "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    749_738,
)
TRAIN = PublishedFile(
    "gsm8k_train.jsonl",
    f"{_FOLDER}/train.jsonl",
    "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    4_166_206,
)


class Row(msgspec.Struct):
    question: str
    answer: str


def read_gsm8k(path: Path, *, split: str) -> list[Item]:
    """The file's rows in their order, ids `gsm8k-<split>-<row>`, a blank line counting as a row.

    `steps` are the solution's lines, `annotated_steps` its `<<...>>` calculations. Raises UsageError naming the line
    that is not in the published schema.
    """
    items = []
    for number, row in rows(path, Row, 'a GSM8K row; each line must be {"question": ..., "answer": "... #### N"}'):
        if "####" not in row.answer:
            raise UsageError(f"{path}, line {number}: the answer has no '#### N' at its end; is this GSM8K?")
        gold = gold_of(row.answer)
        if gold is None:
            after = row.answer.rpartition("####")[2].strip()
            raise UsageError(f"{path}, line {number}: {after!r} after '####' is no number; is this GSM8K?")
        items.append(
            Item(
                id=f"gsm8k-{split}-{number - 1:04d}",
                question=row.question,
                solution=row.answer,
                gold=gold,
                steps=solution_lines(row.answer),
                annotated_steps=row.answer.count("<<"),
            )
        )
    if not items:
        raise UsageError(f"{path} holds no question; give GSM8K's published JSONL")
    return items
