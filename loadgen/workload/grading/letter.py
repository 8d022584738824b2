"""Letter: which option of a multiple-choice question an answer names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec

from loadgen.workload.grading.notation import boxes, last_match, plain
from loadgen.workload.grading.number import read_number, value_of
from loadgen.workload.grading.verdict import Extractor

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
UNKNOWN_OPTIONS = "ABCDE"

_LEAD = r"(?:\\[A-Za-z]+\{|(?i:\b(?:option|choice|letter)\b)|[^0-9A-Za-z.])*?"
_LETTER = (
    r"(?:(?P<upper>[%U])(?![0-9A-Za-z_'])|\(?(?P<closed>[%L])\s?\)|(?P<ends>[%L])(?=[ \t]*\.?[ \t]*(?:\n|\Z)))"
    r"(?P<hedge>\s?\)?\s?(?:or|and|/|&)\s?\(?[%U]\b)?"
)
_LONE = r"(?<![0-9A-Za-z_'-])(?P<upper>[%U])(?![0-9A-Za-z_'-]|\s?[=+*/<>^])(?!(?<=A) [a-z])"
_MARKS: tuple[tuple[Extractor, str], ...] = (
    ("answer_is", r"(?i:\b(?:answer|option|choice)[ \t]+is\b)"),
    ("answer_colon", r"(?i:\banswer[ \t]*[:\n])"),
)
_SPACED = re.compile(r"(?<=[0-9]) (?=[./] ?[0-9])|(?<=[0-9] [./]) (?=[0-9])|(?<=[0-9]) ?(?=, ?[0-9]{3}(?![0-9]))")
_LOOSE = re.compile(r"(?<=[0-9],) (?=[0-9]{3}(?![0-9]))|(?<=^[-−–]) (?=[0-9])")


class Letter(msgspec.Struct, frozen=True):
    """An upper-case letter and the rule that found it."""

    value: str
    extractor: Extractor

    def __str__(self) -> str:
        return self.value


def read_letter(text: str, options: Sequence[str], *, marked: bool) -> Letter | None:
    r"""The last "answer is (X)", else the last "Answer: X", else the last `\boxed{X}`.

    Unless `marked`, then the last upper-case letter that stands alone, else the only option whose text stands in the
    last line, else the one whose value the answer states. None if nothing is named, or two at once.
    """
    text = plain(text)
    patterns = _patterns(ALPHABET[: len(options)] or UNKNOWN_OPTIONS)
    for extractor, pattern in patterns.marks:
        found = last_match(pattern, text)
        if found:
            return None if found["hedge"] else Letter(_letter(found), extractor)
    for content in boxes(text):
        boxed = patterns.boxed.match(content)
        if boxed:
            return None if boxed["hedge"] else Letter(_letter(boxed), "boxed")
    return None if marked else _guess(text, options, patterns.lone)


class _Patterns(msgspec.Struct, frozen=True):
    marks: tuple[tuple[Extractor, re.Pattern[str]], ...]
    boxed: re.Pattern[str]
    lone: re.Pattern[str]


@lru_cache
def _patterns(letters: str) -> _Patterns:
    def of(pattern: str) -> re.Pattern[str]:
        return re.compile(pattern.replace("%U", letters).replace("%L", letters.lower()))

    return _Patterns(
        marks=tuple((extractor, of(mark + _LEAD + _LETTER)) for extractor, mark in _MARKS),
        boxed=of(_LEAD + _LETTER),
        lone=of(_LONE),
    )


def _letter(found: re.Match[str]) -> str:
    return (found["upper"] or found["closed"] or found["ends"]).upper()


def _guess(text: str, options: Sequence[str], lone: re.Pattern[str]) -> Letter | None:
    found = last_match(lone, text)
    if found:
        return Letter(found["upper"], "last_letter")
    lettered = dict(zip(ALPHABET, options, strict=False))
    values = {letter: value_of(_unspaced(option)) for letter, option in lettered.items()}
    worded = {letter: option for letter, option in lettered.items() if values[letter] is None}
    named = _named(worded, text.rstrip().rpartition("\n")[2])
    if named:
        return Letter(named, "option_text")
    number = read_number(_unspaced(text), marked=False)
    same = [letter for letter, value in values.items() if number is not None and value == number.value]
    return Letter(same[0], "option_value") if same else None


def _unspaced(text: str) -> str:
    """MathQA sets a space around every sign, and so do models that saw it: `- 12 . 5`, `1 / 2`, `2 , 261,760`."""
    return _LOOSE.sub("", _SPACED.sub("", text))


def _named(options: Mapping[str, str], line: str) -> str | None:
    """The letter of the only option that the line names; one that is part of another named one does not count."""
    line = _squeezed(line)
    named: dict[str, str] = {}
    for letter, option in options.items():
        wanted = _squeezed(plain(option))
        if wanted and re.search(rf"(?<![0-9a-z]){re.escape(wanted)}(?![0-9a-z])", line):
            named.setdefault(wanted, letter)
    longest = max(named, key=len, default="")
    return named[longest] if named and all(other in longest for other in named) else None


def _squeezed(text: str) -> str:
    """Lower case, no spaces but between words."""
    return re.sub(r" ?([^0-9a-z ]) ?", r"\1", " ".join(text.lower().split()))
