"""Spelt: numbers written in words, and the words that multiply a number."""

from __future__ import annotations

import re
from fractions import Fraction

UNITS = dict(
    zip(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ],
        range(20),
        strict=True,
    )
)
TENS = {
    word: 10 * k
    for k, word in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2)
}
SCALES = {
    "hundred": 100,
    "thousand": 1_000,
    "lakh": 100_000,
    "lakhs": 100_000,
    "million": 10**6,
    "crore": 10**7,
    "crores": 10**7,
    "billion": 10**9,
    "trillion": 10**12,
}
SHORT_SCALES = {"k": 1_000, "K": 1_000, "mn": 10**6, "mil": 10**6, "mln": 10**6, "bn": 10**9}
"""Glued to a number: `70k`."""
DOZEN = {"dozen": 12, "dozens": 12, "score": 20}
PARTS = {
    "half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fourth": 4, "fourths": 4,
    "fifth": 5, "fifths": 5, "sixth": 6, "sixths": 6, "eighth": 8, "eighths": 8, "tenth": 10, "tenths": 10,
}  # fmt: skip

_SPELT = frozenset([*UNITS, *TENS, *SCALES, *DOZEN, *PARTS, "a", "an", "and", "point", "negative", "minus"])
_WORD = re.compile(r"[ \t]*-?[ \t]*([A-Za-z]+)")


def spelt(text: str, begin: int = 0) -> tuple[Fraction, int] | None:
    """The number that the words at `begin` spell and where they end; None if they spell none.

    `twenty-four`, `two and a half`, `one hundred and five`, `half a dozen`; an article alone is no number.
    """
    words: list[tuple[str, int]] = []
    place = begin
    while len(words) < 16:
        found = _WORD.match(text, place)
        if found is None or found[1].lower() not in _SPELT:
            break
        words.append((found[1].lower(), found.end()))
        place = found.end()
    while words:
        value = _value([word for word, _ in words])
        if value is not None:
            return value, words[-1][1]
        words.pop()
    return None


def _value(words: list[str]) -> Fraction | None:
    if words[0] in ("negative", "minus"):
        inner = _value(words[1:]) if len(words) > 1 else None
        return None if inner is None else -inner
    if words in (["half", "a", "dozen"], ["a", "half", "dozen"], ["half", "dozen"]):
        return Fraction(6)
    if len(words) > 2 and words[-2:] == ["a", "half"] and words[-3] == "and":
        whole = _whole(words[:-3])
        return None if whole is None else whole + Fraction(1, 2)
    if len(words) > 1 and words[-1] in PARTS:
        return _parts(words)
    if "point" in words:
        at = words.index("point")
        whole, tail = _whole(words[:at]), words[at + 1 :]
        if whole is None or not tail or any(UNITS.get(word, 10) > 9 for word in tail):
            return None
        return whole + Fraction(int("".join(str(UNITS[word]) for word in tail)), 10 ** len(tail))
    whole = _whole(words)
    return None if whole is None else Fraction(whole)


def _parts(words: list[str]) -> Fraction | None:
    """`one half`, `three quarters`, `a third`, `two and three quarters`."""
    below = PARTS[words[-1]]
    if words[:-1] in (["a"], ["one"]):
        return Fraction(1, below)
    if "and" in words:
        at = len(words) - 1 - words[::-1].index("and")
        whole, part = _whole(words[:at]), _parts(words[at + 1 :]) if len(words) - at > 2 else None
        return whole + part if whole is not None and part is not None else None
    above = _whole(words[:-1])
    return Fraction(above, below) if above and above < 20 and words[-1] != "half" else None


def _whole(words: list[str]) -> int | None:
    if not words or words[-1] in ("and", "a", "an") or words[0] == "and":
        return None
    total = current = 0
    tens_open = units_open = True
    for k, word in enumerate(words):
        if word in ("a", "an"):
            if k or len(words) == 1 or words[1] not in {**SCALES, **DOZEN}:
                return None
            current, units_open, tens_open = 1, False, False
        elif word == "and":
            if words[k - 1] not in SCALES:
                return None
        elif word in UNITS:
            if not units_open or (not tens_open and UNITS[word] > 9):
                return None
            current, units_open, tens_open = current + UNITS[word], False, False
        elif word in TENS:
            if not tens_open or not units_open:
                return None
            current, tens_open = current + TENS[word], False
        elif word in DOZEN:
            current = (current or 1) * DOZEN[word]
            tens_open = units_open = False
        elif word in SCALES:
            scale = SCALES[word]
            if k == 0 or (scale > 100 and not current):
                return None
            if scale == 100:
                current *= 100
            else:
                total, current = total + current * scale, 0
            tens_open = units_open = True
        else:
            return None
    return total + current
