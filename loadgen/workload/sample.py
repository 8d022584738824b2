"""`sample`: word problems written for this project and shipped with it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from loadgen.workload.item import Item
from loadgen.workload.jsonl import solution_lines

HERE = Path(__file__).parent
SAMPLE_FILE = HERE / "sample.jsonl"
OWN_SHOTS_FILE = HERE / "own_shots.jsonl"
WARMUP_ITEMS = 8


class Row(msgspec.Struct):
    question: str
    solution: str
    gold: str
    options: tuple[str, ...] = ()


def _read(path: Path, prefix: str) -> list[Item]:
    rows = [msgspec.json.decode(line, type=Row) for line in path.read_bytes().splitlines()]
    return [
        Item(
            id=f"{prefix}-{number:04d}",
            question=row.question,
            solution=row.solution,
            gold=row.gold,
            options=row.options,
            steps=solution_lines(row.solution),
        )
        for number, row in enumerate(rows)
    ]


def sample_items() -> list[Item]:
    """The shipped questions that are measured: all but the last 8."""
    return _read(SAMPLE_FILE, "sample")[:-WARMUP_ITEMS]


def warmup_items() -> list[Item]:
    """The 8 shipped questions that only ever warm a server up, whatever dataset is measured."""
    return _read(SAMPLE_FILE, "sample")[-WARMUP_ITEMS:]


def own_shots() -> list[Item]:
    """Eight worked examples written for this project, for machines without published ones.

    `gold` is a number and `solution` ends in its `####` line; `options` are for a protocol that asks for a letter.
    """
    return _read(OWN_SHOTS_FILE, "own-shot")
