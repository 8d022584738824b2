"""A question set of one's own: rows of `question` and `answer`, in any file that `records` reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import msgspec

from loadgen.errors import UsageError
from loadgen.workload.grading.exact import normal
from loadgen.workload.grading.unit import is_counted, with_unit
from loadgen.workload.item import Item
from loadgen.workload.records import records

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?:\.\d+)?", re.ASCII)
"""Commas only where they group thousands (or lakhs): `3,5` is no number, as nobody can tell 35 from 3.5."""
_R = TypeVar("_R", bound=msgspec.Struct)


class Row(msgspec.Struct):
    """A number, a worked answer whose last line is `#### N`, or a text; further fields are ignored."""

    question: str
    answer: int | float | str
    accept: list[int | float | str] = []
    """Further answers that are right as well."""


def read_jsonl(path: Path) -> list[Item]:
    """The file's rows in their order, ids `jsonl-<row>`; a blank line counts as a row and is skipped.

    The first row's answer says whether the set's are texts or numbers, which may have a unit (`18 km`).
    `steps` are the lines of a worked answer, None where the answer is a number alone.
    Raises UsageError naming the line.
    """
    items: list[Item] = []
    texts = False
    for number, row in rows(path, Row, 'a row of --dataset jsonl; each line must be {"question": ..., "answer": ...}'):
        answer = _written(row.answer)
        texts = texts if items else _is_text(answer)
        items.append((_text_item if texts else _number_item)(f"{path}, line {number}", number, row, answer))
    if not items:
        raise UsageError(f"{path} holds no question; give JSON lines of question and answer")
    return items


def _is_text(answer: str) -> bool:
    """Words, and neither a number with its unit nor a worked answer; `NaN` is no word."""
    if "####" in answer or is_counted(answer) or answer.lower() in ("nan", "inf", "infinity", "none", "null"):
        return False
    return any(character.isalpha() for character in answer)


def _text_item(where: str, number: int, row: Row, answer: str) -> Item:
    also = [_written(other) for other in row.accept]
    if not all(map(normal, [answer, *also])):
        raise UsageError(f"{where}: an answer of a set of texts is blank or nothing but punctuation; write words")
    return Item(
        id=f"jsonl-{number - 1:04d}",
        question=row.question,
        solution=f"The answer is {answer}.",
        gold=answer,
        accepted=tuple(dict.fromkeys([answer, *also])) if also else (),
        exact=True,
    )


def _number_item(where: str, number: int, row: Row, answer: str) -> Item:
    worked = "####" in answer
    stated = answer.rpartition("####")[2].strip()
    gold, unit = _number_and_unit(stated)
    if gold is None:
        raise UsageError(
            f"{where}: the answer {answer[-40:]!r} is not a number and has none after '####' at its end; write 1234.5, "
            "1,234.5 (a comma only between thousands) or 18 km, or begin the file with a text if its answers are texts"
        )
    also = [_number_and_unit(_written(other)) for other in row.accept]
    if any(other is None or (unit and named not in ("", unit)) for other, named in also):
        raise UsageError(
            f"{where}: 'accept' lists {row.accept!r}, and not all of these are numbers{' in ' * bool(unit)}{unit}"
        )
    return Item(
        id=f"jsonl-{number - 1:04d}",
        question=row.question,
        solution=answer if worked else f"#### {gold}",
        gold=gold,
        accepted=tuple(dict.fromkeys([gold, *(other for other, _ in also if other)])) if also else (),
        unit=unit,
        steps=solution_lines(answer) if worked else None,
    )


def _number_and_unit(text: str) -> tuple[str | None, str]:
    found = with_unit(text)
    return (plain_number(text), "") if found is None else (plain_number(found[0]), found[1])


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
