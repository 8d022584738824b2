"""Grading: the final number of an answer against the published one."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal

import msgspec

Outcome = Literal["correct", "wrong", "unparsed", "truncated", "empty"]

_NUMBER = re.compile(r"(?<![\d.\w])-?\$?\d[\d,]*(?:\.\d+)?|(?<![\d\w])-?\$?\.\d+")
_MARKED = re.compile(r"####\s*(-?\$?\d[\d,]*(?:\.\d+)?)")


class Verdict(msgspec.Struct, frozen=True):
    """What became of one answer."""

    outcome: Outcome
    answer: str | None
    """The number that was read, as written but without `$` and thousands separators."""


def grade(text: str, gold: str, *, finish_reason: str | None) -> Verdict:
    """The number after the last `####`, else the last number of the text, compared exactly with `gold`.

    An answer cut off by the token limit counts only by a complete `####` line; without one it is `truncated`.
    """
    cut = finish_reason == "length"
    text = text.replace("\N{MINUS SIGN}", "-")
    if not text.strip():
        return Verdict("truncated" if cut else "empty", None)
    marked = [m for m in _MARKED.finditer(text) if not cut or "\n" in text[m.end() :]]
    if marked:
        found = marked[-1].group(1)
    elif cut:
        return Verdict("truncated", None)
    else:
        numbers = _NUMBER.findall(text)
        if not numbers:
            return Verdict("unparsed", None)
        found = numbers[-1]
    answer = found.replace(",", "").replace("$", "")
    return Verdict("correct" if Decimal(answer) == Decimal(gold) else "wrong", answer)
