"""Unit: what a number counts: `18 km`, `$18`, `18 apples`."""

from __future__ import annotations

import re
from collections.abc import Collection
from fractions import Fraction

from loadgen.workload.grading.content import READ
from loadgen.workload.grading.notation import plain
from loadgen.workload.grading.term import DIGITS, SIGNED, value_of_match

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
    """Whether the text, where it says one of the values for the last time, counts something else than `unit`."""
    said: str | None = None
    for found in _COUNTED.finditer(plain(text[-READ:])):
        if value_of_match(found) in values:
            said = _known(found["unit"]) if found["unit"] else None
    if said is None:
        for sign, number in _MONEY.findall(text[-READ:]):
            if len(number) <= DIGITS and Fraction(number.replace(",", "")) in values:
                said = _SIGNS.get(sign)
    return said is not None and said != unit and not (unit == "°" and said[0] == "°")


def _known(name: str) -> str | None:
    """The unit that a name means, None if it is not known: `km per hour` is `km/h`, `square metres` are `m^2`."""
    name = name.lower().replace("²", "^2").replace("³", "^3").replace(" per ", "/").replace(" an ", "/")
    name = name.replace(" a ", "/")
    power = re.match(r"(square|sq\.?|cubic) ", name)
    parts = [UNITS.get(part) for part in (name[power.end() :] if power else name).split("/")]
    if UNITS.get(name) or None in parts:
        return UNITS.get(name)
    joined = "/".join(filter(None, parts))
    return joined + ("" if power is None else "^3" if power[1] == "cubic" else "^2")
