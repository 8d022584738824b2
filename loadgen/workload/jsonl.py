"""A question set of one's own: rows of `question` and `answer`, in any file that `records` reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import msgspec

from loadgen.errors import UsageError
from loadgen.workload.item import Item
from loadgen.workload.records import records

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?:\.\d+)?", re.ASCII)
"""Commas only where they group thousands (or lakhs): `3,5` is no number, as nobody can tell 35 from 3.5."""
_R = TypeVar("_R", bound=msgspec.Struct)


class Row(msgspec.Struct):
    """A number, or a worked answer whose last line is `#### N`; further fields are ignored."""

    question: str
    answer: int | float | str
    accept: list[int | float | str] = []
    """Further answers that are right as well."""


def read_jsonl(path: Path) -> list[Item]:
    """The file's rows in their order, ids `jsonl-<row>`; a blank line counts as a row and is skipped.

    `steps` are the lines of a worked answer, None where the answer is a number alone.
    Raises UsageError naming the line.
    """
    items = []
    for number, row in rows(path, Row, 'a row of --dataset jsonl; each line must be {"question": ..., "answer": ...}'):
        answer = _written(row.answer)
        worked = "####" in answer
        gold = gold_of(answer) if worked else plain_number(answer)
        if gold is None:
            raise UsageError(
                f"{path}, line {number}: the answer {answer[-40:]!r} is not a number and has none after '####' at its "
                "end; write 1234.5 or 1,234.5 (a comma only between thousands)"
            )
        also = [plain_number(_written(other)) for other in row.accept]
        if None in also:
            raise UsageError(f"{path}, line {number}: 'accept' lists {row.accept!r}, and not all of these are numbers")
        items.append(
            Item(
                id=f"jsonl-{number - 1:04d}",
                question=row.question,
                solution=answer if worked else f"#### {gold}",
                gold=gold,
                accepted=tuple(dict.fromkeys([gold, *filter(None, also)])) if also else (),
                steps=solution_lines(answer) if worked else None,
            )
        )
    if not items:
        raise UsageError(f"{path} holds no question; give JSON lines of question and answer")
    return items


def rows(path: Path, kind: type[_R], what: str) -> Iterator[tuple[int, _R]]:
    """Row numbers from 1 (of JSON lines, the lines') and rows. Raises UsageError: line N is not `what`."""
    decoder = msgspec.json.Decoder(kind)
    for number, record in records(path):
        try:
            yield number, decoder.decode(record) if isinstance(record, bytes) else msgspec.convert(record, kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}, is not {what} ({error})") from None


def gold_of(worked: str) -> str | None:
    """The number after the last `####`; None where there is none."""
    _, marker, gold = worked.rpartition("####")
    return plain_number(gold) if marker else None


def plain_number(text: str) -> str | None:
    """The number without spaces around it and thousands separators; None for anything else."""
    number = text.strip()
    return number.replace(",", "").removeprefix("+") if _NUMBER.fullmatch(number) else None


def _written(answer: float | str) -> str:
    """A float is written out in full, with the digits that tell it from its neighbours: `1e22` has 23."""
    return format(Decimal(repr(answer)), "f") if isinstance(answer, float) else str(answer).strip()


def solution_lines(worked: str) -> int:
    """Reasoning steps of a worked answer: its lines that are neither blank nor the `####` line."""
    return sum(1 for line in worked.splitlines() if line.strip() and not line.lstrip().startswith("####"))
