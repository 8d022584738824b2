"""Term: a number as it is written, or a sum of such, worked out in exact arithmetic; unit: what a number counts."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from fractions import Fraction

import msgspec

from loadgen.workload.grading.marks import READ
from loadgen.workload.grading.notation import DOZEN, SCALES, SHORT_SCALES, plain, spelt

DIGITS = 40
"""A number of more digits is not an answer, and exact arithmetic with it is slow."""
LARGEST = 10**60
DEPTH = 12

_WHOLE = (
    r"(?:[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{1,2}(?![0-9,])|[0-9]{1,3}(?:\.[0-9]{3}){2,}(?![0-9])"
    r"|[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])(?:\.[0-9]+)?"
    r"|[0-9]+,[0-9]{1,2}(?![0-9,.])|[0-9]+(?:\.[0-9]+)?)"
)
_BELOW = r"(?=0*[1-9])(?P<{}>[0-9]{{1,40}})(?![0-9/]|\.[0-9])"
NUMBER = (
    rf"(?P<number>(?<![0-9A-Za-z_^])(?<![0-9]\.){_WHOLE}|(?<![0-9A-Za-z_).^])\.[0-9]+)"
    r"(?!(?i:st|nd|rd|th)\b)"
    rf"(?:\ (?P<part>[0-9]{{1,40}})/{_BELOW.format('parts')}"
    rf"|/{_BELOW.format('below')}"
    r"|[eE](?P<exponent>[-+]?[0-9]{1,2})(?![0-9A-Za-z])"
    r"|\s?[*x]\s?10\s?\^\s?\{?(?P<power>-?[0-9]{1,2})(?![0-9]))?"
)
"""An unsigned number: grouped in any of the usual ways, mixed (`7 1/2`), a fraction, or with a power of ten."""
SIGNED = rf"(?<!\^\{{)(?<!\^-)(?:(?<![0-9A-Za-z_)\]}}%^-])(?<![0-9)] )(?P<sign>[-+]))?{NUMBER}"
"""With the sign in front of it, which no digit, letter or closing bracket precedes."""

_NUMBER = re.compile(NUMBER)
_SPACE = re.compile(r"[ \t$]*")
_SCALE = re.compile(rf"[ \t]*(?P<word>{'|'.join(sorted(SCALES, key=len, reverse=True))})\b", re.IGNORECASE)
_SHORT = re.compile(rf"(?P<short>{'|'.join(SHORT_SCALES)}|M|B)(?![0-9A-Za-z])")
_DOZEN = re.compile(r"[ \t]*(?P<dozen>dozens?)\b", re.IGNORECASE)
_AND_A_HALF = re.compile(
    r"[ \t]+and[ \t]+(?:a[ \t]+|one[ -]+)?(?:(?P<half>half)|(?P<quarter>quarter))\b"
    r"|[ \t]+and[ \t]+(?P<part>[1-9][0-9]?)/(?P<parts>[1-9][0-9]?)(?![0-9/])"
)
_PLUS = re.compile(r"\s*(?:([+-])|(plus|minus)\b)\s*(?=[0-9.(√-])", re.IGNORECASE)
_TIMES = re.compile(
    r"\s*(?:([*/])|(?<=[\s0-9)])(x)|(times|multiplied[ \t]+by)\b|(divided[ \t]+by|over)\b)\s*(?=[0-9.(√-])"
    r"|(?<=[0-9])(?=\(\s?[0-9.]{1,12}\s?[-+*/])",
    re.IGNORECASE,
)
_POWER = re.compile(r"\^\s?\(?(-?[0-9]{1,3})\)?(?![0-9])")
_POWER_WORD = re.compile(r"[ \t]+(squared|cubed)\b(?![ \t]+(?:met|cent|inch|feet|foot|yard|mile|unit|km|cm|m)\w*)")
_MINUS_WORD = re.compile(r"(?:minus|negative)[ \t]+(?=[0-9.])", re.IGNORECASE)
_OPAQUE = re.compile(r"\s?(?:[π√]|pi\b)|[xyz](?![A-Za-z0-9])(?=\s*[-+=*/^]|\s*$)")


class Unreadable(Exception):
    """A root, a multiple of π or of a variable, a division by zero, a huge number: no number to be compared."""


class Term(msgspec.Struct, frozen=True):
    """The value of a term and where it ends."""

    values: tuple[Fraction, ...]
    """The value; after it other readings of the same words (`18 dozen` may answer "how many dozen")."""
    end: int
    bare: bool
    """A number alone, no sum."""


def read_term(text: str, begin: int = 0, *, factorial: bool = False) -> Term | None:
    """The term that begins at a place, None if none does. Raises Unreadable for one that is not a number."""
    try:
        return _Reader(text, factorial).sum(begin, 0)
    except (OverflowError, ZeroDivisionError):
        raise Unreadable from None


def readable_term(text: str, begin: int = 0) -> Term | None:
    """As `read_term`, but None where that raises Unreadable."""
    try:
        return read_term(text, begin)
    except Unreadable:
        return None


def value_of_match(found: re.Match[str]) -> Fraction | None:
    """The value of a match of `NUMBER` or `SIGNED`; None if it has more than `DIGITS` digits."""
    number = _decimal(found["number"])
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
    return -value if found.groupdict().get("sign") == "-" else value


def scaled(text: str, end: int, value: Fraction) -> tuple[tuple[Fraction, ...], int]:
    """The value with the word of magnitude that follows it, in each of its readings, and where that ends."""
    short = _SHORT.match(text, end)
    if short and short["short"] in SHORT_SCALES:
        return (value * SHORT_SCALES[short["short"]],), short.end()
    if short:
        return (value * (10**6 if short["short"] == "M" else 10**9), value), short.end()
    word = _SCALE.match(text, end)
    while word:
        value, end = value * SCALES[word["word"].lower()], word.end()
        word = _SCALE.match(text, end)
    dozen = _DOZEN.match(text, end)
    if dozen:
        return (value * DOZEN["dozen"], value), dozen.end()
    return (value,), end


def _decimal(number: str) -> str:
    """Without thousands separators, a decimal comma as a point."""
    comma, point = number.rfind(","), number.rfind(".")
    if comma > point >= 0:
        return number.replace(".", "").replace(",", ".")
    if number.count(".") > 1:
        return number.replace(".", "")
    return number.replace(",", "." if point < 0 and len(number) - comma - 1 < 3 else "")


class _Reader:
    def __init__(self, text: str, factorial: bool) -> None:
        self._text = text
        self._factorial = factorial

    def sum(self, place: int, depth: int) -> Term | None:
        left = self._product(place, depth)
        while left is not None and (found := _PLUS.match(self._text, left.end)):
            if left.bare and found[1] == "-" and not found[0].isspace() and self._ends_range(left, found):
                break
            right = self._product(found.end(), depth)
            if right is None:
                break
            sign = -1 if (found[1] or found[2].lower()) in ("-", "minus") else 1
            left = Term((_bounded(left.values[0] + sign * right.values[0]),), right.end, False)
        return left

    def _ends_range(self, left: Term, found: re.Match[str]) -> bool:
        """True for `10-12`, which is not a difference; `12-10` and `10-12 = ` are."""
        right = _NUMBER.match(self._text, found.end())
        value = value_of_match(right) if right else None
        goes_on = right and self._text[right.end() :].lstrip()[:1] in ("=", "+", "*", "/", "-")
        return value is not None and value > left.values[0] > 0 and not goes_on

    def _product(self, place: int, depth: int) -> Term | None:
        left = self._power(place, depth)
        while left is not None and (found := _TIMES.match(self._text, left.end)):
            right = self._power(found.end(), depth)
            if right is None:
                break
            divides = found[1] == "/" or found[4]
            value = left.values[0] / right.values[0] if divides else left.values[0] * right.values[0]
            left = Term((_bounded(value),), right.end, False)
        return left

    def _power(self, place: int, depth: int) -> Term | None:
        base = self._atom(place, depth)
        if base is None:
            return None
        word = _POWER_WORD.match(self._text, base.end)
        if word:
            return Term((_bounded(base.values[0] ** (2 if word[1] == "squared" else 3)),), word.end(), False)
        found = _POWER.match(self._text, base.end)
        if found:
            exponent = int(found[1])
            if abs(exponent) > 64 or (abs(base.values[0]) > 10**6 and exponent > 8):
                raise Unreadable
            base = Term((_bounded(base.values[0] ** exponent),), found.end(), False)
        if self._factorial and self._text.startswith("!", base.end):
            value = base.values[0]
            if value.denominator != 1 or not 0 <= value <= 40:
                raise Unreadable
            base = Term((Fraction(math.factorial(int(value))),), base.end + 1, False)
        if _OPAQUE.match(self._text, base.end):
            raise Unreadable
        return base

    def _atom(self, place: int, depth: int) -> Term | None:
        text = self._text
        place = _space(text, place)
        if depth > DEPTH or place >= len(text):
            return None
        minus = _MINUS_WORD.match(text, place)
        if minus or text[place] in "+-":
            inner = self._power(minus.end() if minus else place + 1, depth + 1)
            if inner is None or text[place] == "+":
                return inner
            return Term(tuple(-value for value in inner.values), inner.end, inner.bare)
        if text[place] in "({[":
            inner = self.sum(place + 1, depth + 1)
            end = _space(text, inner.end) if inner else 0
            return Term(inner.values, end + 1, inner.bare) if inner and text[end : end + 1] in (")", "}", "]") else None
        if text[place] in "∛∜":
            raise Unreadable
        if text[place] == "√":
            inner = self._atom(place + 1, depth + 1)
            if inner is None:
                raise Unreadable
            value = inner.values[0]
            above, below = math.isqrt(max(value.numerator, 0)), math.isqrt(value.denominator)
            if Fraction(above**2, below**2) != value:
                raise Unreadable
            return Term((Fraction(above, below),), inner.end, False)
        return self._number(place)

    def _number(self, place: int) -> Term | None:
        found = _NUMBER.match(self._text, place)
        if found is None:
            words = spelt(self._text, place)
            return Term((words[0],), words[1], True) if words else None
        value = value_of_match(found)
        if value is None:
            raise Unreadable
        end = found.end()
        half = _AND_A_HALF.match(self._text, end)
        if half and value.denominator == 1:
            above, below = (half["part"], half["parts"]) if half["part"] else (1, 2 if half["half"] else 4)
            part = Fraction(int(above), int(below))
            if part < 1:
                value, end = value + part, half.end()
        values, end = scaled(self._text, end, value)
        return Term(values, end, True)


def _bounded(value: Fraction) -> Fraction:
    if abs(value.numerator) > LARGEST or value.denominator > LARGEST:
        raise Unreadable
    return value


def _space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


_NAMES = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "inch": "inches in", "ft": "foot feet", "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram",
    "kg": "kilogram kilo", "t": "ton tonne", "lb": "pound", "oz": "ounce", "ms": "millisecond", "s": "sec second",
    "min": "minute", "h": "hr hour", "day": "", "week": "", "month": "", "year": "", "ml": "milliliter millilitre",
    "l": "liter litre", "gal": "gallon", "qt": "quart", "km/h": "kmh kph", "mi/h": "mph",
    "%": "percent", "°": "degree", "°C": "celsius", "°F": "fahrenheit", "dollar": "usd", "euro": "eur",
    "cent": "¢", "rupee": "inr rs", "yen": "jpy", "w": "watt", "kw": "kilowatt", "kwh": "", "j": "joule", "v": "volt",
    "m^2": "m2 sqm", "cm^2": "cm2", "km^2": "km2", "m^3": "m3", "cm^3": "cm3 cc", "hz": "hertz",
    "kb": "", "mb": "", "gb": "",
}  # fmt: skip
_SIGNS = {"$": "dollar", "€": "euro", "£": "lb", "¥": "yen", "₹": "rupee"}
UNITS = {
    form.lower(): unit
    for unit, names in _NAMES.items()
    for name in (unit, *names.split())
    for form in (name, f"{name}s")
}
"""Every way in which a known unit is written, in small letters, and the unit."""
_PROSE = frozenset({"in", "ins", "a", "as", "is", "°", "degree", "degrees"})
"""Units in a data file only: `18 in total`, and degrees, which do not say of what."""
_SCALES = frozenset({"hundred", "thousand", "lakh", "crore", "million", "billion", "trillion", "dozen", "k"})
_ORDINAL = frozenset({"st", "nd", "rd", "th"})
_WORDS = "|".join(sorted(map(re.escape, UNITS.keys() - _PROSE), key=len, reverse=True))
_WORD = rf"(?:{_WORDS})(?![0-9A-Za-z^])"
_NAMED = rf"(?:(?:square|sq\.?|cubic) )?{_WORD}(?:(?: per | an? |/){_WORD})?"
_COUNTED = re.compile(rf"{SIGNED}(?:[ \t]{{0,2}}-?(?P<unit>{_NAMED}))?", re.IGNORECASE)
_GOLD = re.compile(
    r"(?P<money>-?[$€£¥₹] ?-?)?(?P<number>[-+]?[0-9][0-9,]*(?:\.[0-9]+)?)"
    r"(?: ?(?P<unit>[$€£¥₹]|[A-Za-z%°¢][A-Za-z/^0-9²³]*(?: [a-z]+){0,2}))?"
)
_MONEY = re.compile(r"([$€£¥₹]?)\s?((?<![0-9.,])[0-9][0-9,]*(?:\.[0-9]+)?)(?![^\n$]{0,40}\$)")


def is_counted(text: str) -> bool:
    """Whether the text is a number with something around it that could be its unit."""
    return _GOLD.fullmatch(" ".join(text.split())) is not None


def with_unit(gold: str) -> tuple[str, str] | None:
    """Number and unit of a published answer such as `18 km`, `$1,250` or `5 red apples`; None for anything else.

    A unit that is not known is one to three words in small letters.
    """
    found = _GOLD.fullmatch(" ".join(gold.split()))
    if found is None or bool(found["money"]) == bool(found["unit"]):
        return None
    number = found["number"]
    if found["money"]:
        sign = found["money"].replace(" ", "")
        return "-" * ("-" in sign) + number, _SIGNS[sign.strip("-")]
    unit = _SIGNS.get(found["unit"]) or _known(found["unit"])
    first = found["unit"].split()[0]
    if unit is None and (not first.isalpha() or not first.islower() or first in _SCALES | _ORDINAL):
        return None
    return number, unit or found["unit"]


def other_unit(text: str, values: Collection[Fraction], unit: str) -> bool:
    """Whether the text counts something else than `unit` where it last has one of the values."""
    counted: str | None = None
    for found in _COUNTED.finditer(plain(text[-READ:])):
        if value_of_match(found) in values:
            counted = _known(found["unit"]) if found["unit"] else None
    if counted is None:
        for sign, number in _MONEY.findall(text[-READ:]):
            if len(number) <= DIGITS and Fraction(number.replace(",", "")) in values:
                counted = _SIGNS.get(sign)
    return counted is not None and counted != unit and not (unit == "°" and counted[0] == "°")


def _known(name: str) -> str | None:
    """The unit that a name means, None if it is not known: `km per hour` is `km/h`, `square metres` are `m^2`."""
    name = re.sub(" per | an? ", "/", name.lower().replace("²", "^2").replace("³", "^3"))
    power = re.match(r"(square|sq\.?|cubic) ", name)
    parts = [UNITS.get(part) for part in (name[power.end() :] if power else name).split("/")]
    if UNITS.get(name) or None in parts:
        return UNITS.get(name)
    joined = "/".join(filter(None, parts))
    return joined + ("" if power is None else "^3" if power[1] == "cubic" else "^2")
