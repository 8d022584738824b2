"""A question set of one's own: JSON lines of `question` and `answer`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from loadgen.errors import UsageError
from loadgen.workload.item import Item

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_R = TypeVar("_R", bound=msgspec.Struct)


class Row(msgspec.Struct):
    """A number, or a worked answer whose last line is `#### N`; further fields are ignored."""

    question: str
    answer: int | float | str


def read_jsonl(path: Path) -> list[Item]:
    """The file's rows in their order, ids `jsonl-<row>`; a blank line counts as a row and is skipped.

    `steps` are the lines of a worked answer, None where the answer is a number alone.
    Raises UsageError naming the line.
    """
    items = []
    for number, row in rows(path, Row, 'a row of --dataset jsonl; each line must be {"question": ..., "answer": ...}'):
        answer = str(row.answer).strip()
        worked = "####" in answer
        gold = gold_of(answer) if worked else plain_number(answer)
        if gold is None:
            raise UsageError(
                f"{path}, line {number}: the answer {answer[-40:]!r} is no number and has none after '####' at its end"
            )
        items.append(
            Item(
                id=f"jsonl-{number - 1:04d}",
                question=row.question,
                solution=answer if worked else f"#### {gold}",
                gold=gold,
                steps=solution_lines(answer) if worked else None,
            )
        )
    if not items:
        raise UsageError(f"{path} holds no question; give JSON lines of question and answer")
    return items


def rows(path: Path, kind: type[_R], what: str) -> Iterator[tuple[int, _R]]:
    """Line numbers from 1 and rows; blank lines are skipped. Raises UsageError: line N is not `what`."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                yield number, decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise UsageError(f"{path}, line {number}, is not {what} ({error})") from None


def gold_of(worked: str) -> str | None:
    """The number after the last `####`; None where there is none."""
    _, marker, gold = worked.rpartition("####")
    return plain_number(gold) if marker else None


def plain_number(text: str) -> str | None:
    """The number without spaces around it and commas in it; None for anything else."""
    number = text.strip().replace(",", "")
    return number if _NUMBER.fullmatch(number) else None


def solution_lines(worked: str) -> int:
    """Reasoning steps of a worked answer: its lines that are neither blank nor the `####` line."""
    return sum(1 for line in worked.splitlines() if line.strip() and not line.lstrip().startswith("####"))
