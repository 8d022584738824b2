"""Number: which number an answer states, in exact arithmetic."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import msgspec

from loadgen.workload.grading.notation import STATEMENT, boxes, last_match, plain
from loadgen.workload.grading.verdict import Extractor

DIGITS = 40
"""A number of more digits is no answer, and exact arithmetic with it no pleasure."""
ROUNDED_FROM = 2
"""Decimals from which on a published answer is taken for a rounded one."""

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_BELOW = r"(?=0*[1-9])(?P<{}>[0-9]{{1,40}})(?![0-9/]|\.[0-9])"
_VALUE = (
    r"(?<!\^\{)(?<!\^-)(?:(?<![0-9A-Za-z_)\]}%^-])(?<![0-9)] )(?P<sign>[-+]))?"
    rf"(?P<number>(?<![0-9A-Za-z_^])(?<![0-9]\.){_WHOLE}(?:\.[0-9]+)?|(?<![0-9A-Za-z_).^])\.[0-9]+)"
    rf"(?:\ (?P<part>[0-9]{{1,40}})/{_BELOW.format('parts')}"
    rf"|/{_BELOW.format('below')}"
    r"|[eE](?P<exponent>[-+]?[0-9]{1,2})(?![0-9A-Za-z])"
    r"|\s?[*x]\s?10\s?\^\s?\{?(?P<power>-?[0-9]{1,2})(?![0-9]))?"
)
_ANYWHERE = re.compile(_VALUE)
_STATED = re.compile(
    r"(?:\\[A-Za-z]+|(?:about|approximately|exactly|only|just)\b|[^0-9A-Za-z])*?" + _VALUE, re.IGNORECASE
)
_GOES_ON = re.compile(r"\s*%?\s*(?:[-+*/^x]\s*[(\\0-9]|=)")
_TERM = re.compile(r"[-+*/^√] ?0|0 ?[*/^√π]")
_LISTED = re.compile(r"[.)]\s+[A-Za-z]")
_HASHES = re.compile(r"####+\s*")
_ANSWER_IS = re.compile(
    r"\banswer(?:[ \t]+(?:is|equals|(?:would|should|must)[ \t]be)\b|[ \t]*[:=\n])\s*", re.IGNORECASE
)
_SPACED_GROUP = re.compile(r"(?<=[0-9]) (?=[0-9]{3}(?![0-9/]))")


class Number(msgspec.Struct, frozen=True):
    """A number and the rule that found it."""

    value: Fraction
    extractor: Extractor

    def __str__(self) -> str:
        return notation_of(self.value)


def read_number(text: str, *, marked: bool) -> Number | None:
    r"""What the text states after its last `####`, in its last `\boxed{}`, after its last "the answer is" (or
    "answer:"), else its last number; with `marked`, not that. None if it states none.
    """
    text = plain(text)
    return (
        _first(_after_marks(_HASHES, text), "hashes")
        or _first(_in_boxes(text), "boxed")
        or _first(_after_marks(_ANSWER_IS, text, prose=True), "answer_is")
        or (None if marked else _last_number(text))
    )


def value_of(text: str) -> Fraction | None:
    """The number that is all a text says, units aside; None if it says none, several or a term (`6 / π`)."""
    text = plain(text)
    found = list(_ANYWHERE.finditer(text))
    if len(found) != 1 or _TERM.search(f"{text[: found[0].start()]}0{text[found[0].end() :]}"):
        return None
    return _value(found[0])


def same_number(value: Fraction, gold: str) -> bool:
    """Whether `value` is `gold`, a plain decimal: exactly, or rounded to its decimals if it has at least two.

    Raises ValueError if `gold` is no number.
    """
    published, slack = _published(gold)
    return value == published or (bool(slack) and abs(value - published) <= slack)


def notation_of(value: Fraction) -> str:
    """`18`, `-0.5`; `1/3` for what no decimal ends."""
    if value.denominator == 1:
        return str(value)
    below, places = value.denominator, 0
    while below % 10 == 0:
        below, places = below // 10, places + 1
    for factor in (2, 5):
        while below % factor == 0:
            below, places = below // factor, places + 1
    if below > 1:
        return str(value)
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    cut = len(digits) - places
    decimals = digits[cut:].rstrip("0")
    return f"{'-' * (value < 0)}{digits[:cut]}{'.' * bool(decimals)}{decimals}"


@lru_cache(maxsize=1 << 14)
def _published(gold: str) -> tuple[Fraction, Fraction]:
    """The value of an answer, and how far another may lie from it."""
    value, decimals = Fraction(gold), len(gold.partition(".")[2])
    rounded = decimals >= ROUNDED_FROM and value.denominator > 1
    return value, Fraction(1, 2 * 10**decimals) if rounded else Fraction(0)


def _first(values: Iterator[Fraction], extractor: Extractor) -> Number | None:
    return next((Number(value, extractor) for value in values), None)


def _after_marks(mark: re.Pattern[str], text: str, *, prose: bool = False) -> Iterator[Fraction]:
    """What stands after each mark on its line, the last first.

    Of an equation (`16 - 3 = 13`) it is the last side that is no sum; in prose only where no number follows the line,
    which makes it the end of the answer and not a line of it.
    """
    last_digit = max(map(text.rfind, "0123456789")) if prose else 0
    for found in reversed(list(mark.finditer(text))):
        line = text[found.end() : found.end() + STATEMENT].partition("\n")[0]
        ends = found.end() + len(line)
        line = _SPACED_GROUP.sub(",", line)
        stated = _STATED.match(line)
        heading = stated and (not prose or "\n" in found[0])
        if stated and heading and len(stated["number"]) == 1 and _LISTED.match(line, stated.end()):
            continue
        if stated and _GOES_ON.match(line, stated.end()):
            stated = _side(line) or stated if not prose or last_digit < ends else None
        elif not stated and "=" in line and (not prose or last_digit < ends):
            stated = _side(line)
        value = _value(stated) if stated else None
        if value is not None:
            yield value


def _in_boxes(text: str) -> Iterator[Fraction]:
    for content in boxes(text):
        content = _SPACED_GROUP.sub(",", content)
        found = _side(content) or _ANYWHERE.search(content)
        value = _value(found) if found else None
        if value is not None:
            yield value


def _side(line: str) -> re.Match[str] | None:
    """The last side of an equation that is a number and no sum."""
    for side in reversed(line.split("=")):
        stated = _STATED.match(side)
        if stated and not _GOES_ON.match(side, stated.end()):
            return stated
    return None


def _last_number(text: str) -> Number | None:
    found = last_match(_ANYWHERE, text)
    value = _value(found) if found else None
    return None if value is None else Number(value, "last_number")


def _value(found: re.Match[str]) -> Fraction | None:
    number = found["number"].replace(",", "")
    if len(number) > DIGITS:
        return None
    value = Fraction(int(number) if number.isdecimal() else number)
    if found["parts"]:
        value += Fraction(int(found["part"]), int(found["parts"]))
    elif found["below"]:
        value /= int(found["below"])
    power = found["exponent"] or found["power"]
    if power:
        value *= Fraction(10) ** int(power)
    return -value if found["sign"] == "-" else value
