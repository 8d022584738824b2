"""Records: the rows of a data file, whatever its format: JSON lines, a JSON array, CSV, Parquet, gzip around any.

Questions: sets of a user's own, of question and answer or with choices (ARC, MMLU-Pro, GPQA and plain shapes); and
`sample`: word problems written for this project and shipped with it.
"""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import io
import re
import string
import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from loadgen.bounds import MOST_DATA_BYTES, shown_bytes
from loadgen.errors import UsageError
from loadgen.folder import read_file
from loadgen.workload.grading.term import is_counted, with_unit
from loadgen.workload.grading.words import normal
from loadgen.workload.item import Item

_GZIP, _PARQUET, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_HUB = ("data", "rows", "test")
"""Names under which a JSON object of the hub's viewers and exports keeps its rows."""


def records(path: Path) -> Iterator[tuple[int, bytes | dict[str, Any]]]:
    """Rows with their numbers from 1; the format by content, CSV's by the name's suffix; a line of JSON as its bytes.

    A byte order mark is dropped, blank lines are skipped. Raises UsageError for a file that is damaged.
    """
    try:
        data = read_file(path, MOST_DATA_BYTES)
        if data.startswith(_GZIP):
            data = _unpacked(data)
        data = data.removeprefix(_BOM)
        if data.startswith(_PARQUET):
            yield from enumerate(pq.read_table(pa.BufferReader(data)).to_pylist(), start=1)
            return
        if path.name.lower().removesuffix(".gz").endswith(".csv"):
            text = io.StringIO(data.decode(), newline="")
            yield from enumerate((dict(row) for row in csv.DictReader(text)), start=1)
            return
        listed = _listed(data)
        if listed is not None:
            yield from enumerate(listed, start=1)
            return
    except (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read ({reason}); is it damaged? Give JSON lines, CSV or Parquet") from None
    yield from ((number, line) for number, line in enumerate(data.splitlines(), start=1) if line.strip())


def _unpacked(data: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        content = file.read(MOST_DATA_BYTES + 1)
    if len(content) > MOST_DATA_BYTES:
        raise OSError(errno.EINVAL, f"unpacked it is longer than {shown_bytes(MOST_DATA_BYTES)}")
    return content


def _listed(data: bytes) -> list[dict[str, Any]] | None:
    """The rows of one JSON array, or of an object that holds one; None for JSON lines."""
    begun = data.lstrip()[:1]
    if begun not in (b"[", b"{"):
        return None
    try:
        whole = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(whole, dict):
        whole = next((whole[name] for name in _HUB if isinstance(whole.get(name), list)), None)
    if not isinstance(whole, list) or not all(isinstance(row, dict) for row in whole):
        return None
    inner = [row["row"] if isinstance(row.get("row"), dict) else row for row in whole]
    return inner or None


_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?:\.\d+)?", re.ASCII)
"""Commas only where they group thousands (or lakhs): `3,5` may be 35 or 3.5."""
_R = TypeVar("_R")


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
    """Words, and neither a number with its unit nor a worked answer; `NaN` is not a word."""
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


LETTERS = string.ascii_uppercase
_QUESTION = ("question", "Question", "problem", "Problem", "prompt")
_CHOICES = ("choices", "options", "Choices", "Options")
_ANSWER = ("answer", "answerKey", "answer_key", "Answer", "label", "target", "answer_index")
_RIGHT, _WRONG = "Correct Answer", "Incorrect Answer "
_SHAPE = "give question, choices (2 to 26 texts) and answer (a letter, the place from 0, or the text of a choice)"


def has_choices(row: object) -> bool:
    """Whether a row of a data file is a question with choices."""
    return isinstance(row, dict) and (any(name in row for name in _CHOICES) or _RIGHT in row)


def read_choices(path: Path) -> list[Item]:
    """The file's rows in their order, ids `choices-<row>`, `gold` an upper-case letter.

    `choices` may be a list or ARC's `{"text": [...], "label": [...]}`; GPQA's right and wrong answers are put in an
    order that the question alone decides. Raises UsageError naming the row.
    """
    items = []
    what = f"a question with choices; {_SHAPE}"
    for number, row in rows(path, dict[str, Any], what):
        read = _read(row)
        if read is None:
            raise UsageError(f"{path}, line {number}, is not {what}")
        question, options, gold = read
        same = tuple(letter for letter, text in zip(LETTERS, options, strict=False) if text == options[gold])
        items.append(
            Item(
                id=f"choices-{number - 1:04d}",
                question=question,
                solution=f"The answer is ({LETTERS[gold]}).",
                gold=LETTERS[gold],
                options=options,
                accepted=same if len(same) > 1 else (),
                flaws=("identical options",) if len(set(options)) < len(options) else (),
            )
        )
    if not items:
        raise UsageError(f"{path} holds no question; {_SHAPE}")
    return items


def _read(row: dict[str, Any]) -> tuple[str, tuple[str, ...], int] | None:
    question = next((row[name] for name in _QUESTION if isinstance(row.get(name), str)), None)
    if question is None:
        return None
    if _RIGHT in row:
        return _of_right_and_wrong(question, row)
    listed: Any = next((row[name] for name in _CHOICES if name in row), None)
    labels: Any = None
    if isinstance(listed, dict):
        labels, listed = listed.get("label"), listed.get("text")
    if not isinstance(listed, list) or not 2 <= len(listed) <= len(LETTERS):
        return None
    options = tuple(" ".join(str(text).split()) for text in listed)
    answer = next((row[name] for name in _ANSWER if row.get(name) is not None), None)
    gold = _place(answer, options, labels if isinstance(labels, list) else None)
    return None if gold is None else (question, options, gold)


def _place(answer: object, options: tuple[str, ...], labels: list[Any] | None) -> int | None:
    """The right choice's place by its label, its letter, a number from 0, or its text."""
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        return None
    if isinstance(answer, int):
        return answer if 0 <= answer < len(options) else None
    text = " ".join(answer.split())
    if labels and text in map(str, labels):
        place = [str(label) for label in labels].index(text)
    elif text in options:
        place = options.index(text)
    else:
        letter = text.strip("().").upper()
        place = LETTERS.find(letter) if len(letter) == 1 else -1
    return place if 0 <= place < len(options) else None


def _of_right_and_wrong(question: str, row: dict[str, Any]) -> tuple[str, tuple[str, ...], int] | None:
    right = " ".join(str(row[_RIGHT]).split())
    wrong = [" ".join(str(row[name]).split()) for name in sorted(row) if name.startswith(_WRONG) and row[name]]
    if not right or not wrong:
        return None
    mixed = sorted([right, *wrong], key=lambda text: hashlib.sha256(f"{question}\0{text}".encode()).digest())
    return question, tuple(mixed[: len(LETTERS)]), mixed.index(right)


HERE = Path(__file__).parent
SAMPLE_FILE = HERE / "sample.jsonl"
OWN_SHOTS_FILE = HERE / "own_shots.jsonl"
WARMUP_ITEMS = 8


def _read_shipped(path: Path, prefix: str) -> list[Item]:
    rows = enumerate(map(msgspec.json.decode, path.read_bytes().splitlines()))
    return [
        msgspec.convert({**row, "id": f"{prefix}-{number:04d}", "steps": solution_lines(row["solution"])}, Item)
        for number, row in rows
    ]


def sample_items() -> list[Item]:
    """The shipped questions that are measured: all but the last 8."""
    return _read_shipped(SAMPLE_FILE, "sample")[:-WARMUP_ITEMS]


def warmup_items() -> list[Item]:
    """The 8 shipped questions that only ever warm a server up, whatever dataset is measured."""
    return _read_shipped(SAMPLE_FILE, "sample")[-WARMUP_ITEMS:]


def own_shots() -> list[Item]:
    """Eight worked examples written for this project, for machines without published ones.

    `gold` is a number and `solution` ends in its `####` line; `options` are for a protocol that asks for a letter.
    """
    return _read_shipped(OWN_SHOTS_FILE, "own-shot")
