"""A multiple-choice set of one's own, in the shapes that such sets are published in: ARC, MMLU-Pro, GPQA and plain."""

from __future__ import annotations

import hashlib
import string
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import UsageError
from loadgen.workload.item import Item
from loadgen.workload.records import records

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
    for number, record in records(path):
        try:
            row = msgspec.json.decode(record) if isinstance(record, bytes) else record
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}, is not JSON ({error}); {_SHAPE}") from None
        read = _read(row) if isinstance(row, dict) else None
        if read is None:
            raise UsageError(f"{path}, line {number}, is not a question with choices; {_SHAPE}")
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
        labels = listed.get("label")
        listed = listed.get("text")
    if not isinstance(listed, list) or not 2 <= len(listed) <= len(LETTERS):
        return None
    options = tuple(" ".join(str(text).split()) for text in listed)
    answer = next((row[name] for name in _ANSWER if row.get(name) is not None), None)
    gold = _place(answer, options, labels if isinstance(labels, list) else None)
    return None if gold is None else (question, options, gold)


def _place(answer: object, options: tuple[str, ...], labels: list[Any] | None) -> int | None:
    """The place of the right choice: of a label, a letter, a number from 0, or the choice's text."""
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        return None
    if isinstance(answer, int):
        return answer if 0 <= answer < len(options) else None
    said = " ".join(answer.split())
    if labels and said in map(str, labels):
        place = [str(label) for label in labels].index(said)
    elif said in options:
        place = options.index(said)
    else:
        letter = said.strip("().").upper()
        place = LETTERS.find(letter) if len(letter) == 1 else -1
    return place if 0 <= place < len(options) else None


def _of_right_and_wrong(question: str, row: dict[str, Any]) -> tuple[str, tuple[str, ...], int] | None:
    right = " ".join(str(row[_RIGHT]).split())
    wrong = [" ".join(str(row[name]).split()) for name in sorted(row) if name.startswith(_WRONG) and row[name]]
    if not right or not wrong:
        return None
    mixed = sorted([right, *wrong], key=lambda text: hashlib.sha256(f"{question}\0{text}".encode()).digest())
    return question, tuple(mixed[: len(LETTERS)]), mixed.index(right)
