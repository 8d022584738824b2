"""GSM8K in its published schema: JSON lines of `question` and `answer`, the answer ending in `#### N`.

Source: github.com/openai/grade-school-math (MIT), 1319 test and 7473 train rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import msgspec

from loadgen.errors import UsageError
from loadgen.workload.item import Item
from loadgen.workload.published import PublishedFile
from loadgen.workload.questions import gold_of, rows, solution_lines

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


REMOVED, RELABELLED = "removed by GSM8K-Platinum", "relabelled by GSM8K-Platinum"


class Row(msgspec.Struct):
    question: str
    answer: str


class PlatinumRow(Row):
    cleaning_status: str
    """`consensus`, `verified`, `revised`; `rejected` rows are left out."""


def read_gsm8k(path: Path, *, split: str = "test") -> list[Item]:
    """The file's rows in their order, ids `gsm8k-<split>-<row>`, a blank line counting as a row.

    `steps` are the solution's lines, `annotated_steps` its `<<...>>` calculations. Raises UsageError naming the line
    that is not in the published schema.
    """
    what = 'a GSM8K row; each line must be {"question": ..., "answer": "... #### N"}'
    return _items(path, rows(path, Row, what), split)


def read_platinum(path: Path) -> list[Item]:
    """The rows of GSM8K-Platinum's file (Vendrow et al. 2025), ids `gsm8k-platinum-<row>`.

    Raises UsageError naming the line that is not in the published schema, which has a `cleaning_status`.
    """
    what = "a row of GSM8K-Platinum, which has question, answer and cleaning_status; give the hub's test file"
    kept = ((number, row) for number, row in rows(path, PlatinumRow, what) if row.cleaning_status != "rejected")
    return _items(path, kept, "platinum")


def marked(items: Sequence[Item], platinum: Sequence[Item]) -> list[Item]:
    """The items with the flaws that GSM8K-Platinum found: rows that it removed, and rows with another answer there.

    Raises UsageError when the two have no question in common.
    """
    right = {_key(item): Fraction(item.gold) for item in platinum}
    if not any(_key(item) in right for item in items):
        raise UsageError("--platinum-file has no question of this GSM8K file; give the test split of both")
    found = []
    for item in items:
        gold = right.get(_key(item))
        flaw = REMOVED if gold is None else RELABELLED if gold != Fraction(item.gold) else None
        found.append(item if flaw is None else msgspec.structs.replace(item, flaws=(*item.flaws, flaw)))
    return found


def _key(item: Item) -> str:
    return " ".join(item.question.split())


def _items(path: Path, read: Iterable[tuple[int, Row]], split: str) -> list[Item]:
    items = []
    for number, row in read:
        if "####" not in row.answer:
            raise UsageError(f"{path}, line {number}: the answer has no '#### N' at its end; is this GSM8K?")
        gold = gold_of(row.answer)
        if gold is None:
            after = row.answer.rpartition("####")[2].strip()
            raise UsageError(f"{path}, line {number}: {after!r} after '####' is not a number; is this GSM8K?")
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
