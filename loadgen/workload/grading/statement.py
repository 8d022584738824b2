"""Statement: what the words straight after a mark ("The answer is ...") say the answer is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import lru_cache

import msgspec

from loadgen.workload.grading.marks import Mark
from loadgen.workload.grading.outcome import Found, V
from loadgen.workload.grading.term import Term, Unreadable, read_term

_FILLER = (
    r"(?:about|around|approximately|approx\.?|roughly|nearly|almost|exactly|precisely|only|just|simply|clearly|probably|"
    r"maybe|perhaps|likely|therefore|thus|then|hence|indeed|now|also|finally|equals?|equal\s+to|given\s+by|found\s+to\s+be|"
    r"is|are|was|be|to\s+be|a\s+total\s+of|total\s+of|total|in\s+total|the\s+number|either|option|value|usd|rs|inr|eur|gbp|"
    r"cad|aud|us|it|it's|that|answer|final|so|well|of|i\s+think|calculated\s+as|computed\s+as|rounded\s+to)\b"
)
LEAD = re.compile(
    rf"(?:{_FILLER}|(?:\\[A-Za-z]+)|(?:[A-Za-z][A-Za-z_]{{0,12}}\s?=(?!=))|[^0-9A-Za-z.(√∛∜<>≤≥≠±+\-\[{{\n]|"
    r"[\[{](?![0-9.(√∛+-])|\((?=\s*(?:about|approximately|only)\b)|-(?!\s?[0-9(.√∛∜\\])|\+(?!\s?[0-9(.√]))*",
    re.IGNORECASE,
)
"""What may come between a mark and the answer: signs, LaTeX commands, a name with `=`, words such as "about"."""
_BULLET = re.compile(r"\A\s*[-+•*]\s+(?=\S)")
_NEGATED = re.compile(r"(?:\w+\s+){0,2}?(?:not|never|neither|nor|isn't|cannot|can't|wasn't)\b", re.IGNORECASE)
_INSTEAD = re.compile(
    r"(?:\bbut(?:\s+rather)?|\brather|\binstead|\bit\s+is|\bit's)\b[^0-9A-Za-z\n.(√+-]{0,6}(?:is\s+)?", re.IGNORECASE
)
_BOUND = re.compile(
    r"(?:strictly\s+|slightly\s+|no\s+|a\s+(?:bit|little)\s+)?(?:less|more|greater|fewer|larger|smaller|higher|lower|bigger)\s+than\b"
    r"|(?:at\s+(?:least|most)|up\s+to|over|under|above|below|between|from|beyond|anywhere)\b|(?:[A-Za-z]\s?)?[<>≤≥≠±]=?\s*(?=[-+0-9.(√$])",
    re.IGNORECASE,
)
_HALF_AGAIN = r"(?:about|approximately|maybe|perhaps|possibly|around|even|rather)?[\s$(]*"
_OR = re.compile(
    r"(?:[^0-9\n.;:=()]|\.(?=[0-9])){0,30}?(?:[\s,(/]|[.?](?=\s))*(?:(?<=[\s,(])or\b|\band/or\b|(?<= )/ )\s*"
    + _HALF_AGAIN,
    re.IGNORECASE,
)
_AND = re.compile(r"(?:[ \t]*%)?(?:[ \t]+[A-Za-z]+){0,2}?[ \t]*(?:\band\b|&|,(?=\s))[ \t]*", re.IGNORECASE)
_RANGE = re.compile(
    r"(?:[ \t]*%|(?:[ \t]+[A-Za-z]+)?)[ \t]*(?:-|--|—|~|\bto\b|\bthrough\b|…|\.\.\.?)[ \t]*(?=[0-9.])", re.IGNORECASE
)
_RATIO = re.compile(r"\s?:\s?(?=[0-9])|\s+to\s+(?=[0-9])")
_CLOCK = re.compile(r":([0-5][0-9])(?![0-9:])")
_CENTS = re.compile(r"\s?(?:¢|cents?\b|pence\b|paise\b|c\b(?=\s*[.]?\s*$))", re.IGNORECASE)
_COMPARED = re.compile(
    r"(?:[ \t]*%)?(?:[ \t]+[A-Za-z]+){0,3}?[ \t]+"
    r"(?:(?:more|less|fewer|greater|higher|lower|older|younger|taller|shorter|longer|larger)\b"
    r"[ \t]*(?:[A-Za-z]+[ \t]+){0,2}?than"
    r"|times[ \t]+(?:as|more|the|that|what|his|her|their)|added[ \t]+to|subtracted[ \t]+from)\b",
    re.IGNORECASE,
)
_RESULT = re.compile(
    r"(?:\bso\b|\bwhich\s+(?:is|equals?|makes|gives|comes\s+to)\b|\bi\.?\s?e\.|\bthat\s+is\b|\bnamely\b|\bmaking\b|\bgiv(?:es|ing)\b|"
    r"\bequal(?:s|ling|\s+to)\b|\bor\s+rather\b|\bhence\b|\btherefore\b|\bthus\b|→|=|∴)[^0-9\n]{0,24}?(?=[-+]?\s?[0-9.(√])",
    re.IGNORECASE,
)
_CERTAIN = re.compile(
    r"\s*%\s*(?:correct|right|sure|certain|accurate|confident|true|wrong|clear)\b|\s*(?:decimal|significant|d\.?p\b)",
    re.IGNORECASE,
)
_GIVE_OR_TAKE = re.compile(r"\s?(?:±|\+/-|\+-)")
_LISTED = re.compile(r"\s?(?:[.)]\s*\**\s*[A-Za-z]|:\s*\**[A-Za-z])")
_WORD_FOLLOWS = re.compile(r"\s*\**\s*[A-Za-z]")
_SUM_GOES_ON = re.compile(r"\s*%?\s*[-+*/^x]\s*[(\\0-9√]")
_SIDES = re.compile(r"[=→]")
_EQUATION = re.compile(r"(?:[^=→;:(\n.]|\.(?=[0-9])|\((?=[^()\n]{0,40}\)))*?[=→]")
SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n|$")
_COMPOUND = {
    "hour": (60, "minute"), "hr": (60, "min"), "h": (60, "m"), "minute": (60, "second"), "min": (60, "sec"),
    "dollar": (100, "cent"), "pound": (16, "ounce"), "lb": (16, "oz"), "foot": (12, "inch"), "feet": (12, "inch"),
    "ft": (12, "in"), "year": (12, "month"), "week": (7, "day"), "day": (24, "hour"), "meter": (100, "centimeter"),
    "metre": (100, "centimetre"), "m": (100, "cm"), "kilometer": (1000, "meter"), "km": (1000, "m"),
    "kg": (1000, "g"), "kilogram": (1000, "gram"), "gallon": (4, "quart"), "yard": (3, "feet"), "euro": (100, "cent"),
}  # fmt: skip
_IN_PARTS = re.compile(
    r"[ \t]*([A-Za-z]+?)(?:s|es)?,?[ \t]+(?:and[ \t]+)?([0-9]{1,4}(?:\.[0-9]+)?)[ \t]*([A-Za-z]+?)(?:s|es)?(?![A-Za-z])"
)


class Stated(msgspec.Struct, frozen=True):
    """A number that was stated, in each of its readings; the first is the one shown."""

    values: tuple[Fraction, ...]
    end: int
    plain: bool
    """Nothing but a number, its unit and the end of the line, or an aside."""
    opens_prose: bool
    """A sum or a sentence continues after it, which may be a line of the derivation."""


class Refused(msgspec.Struct, frozen=True):
    """What was said cannot be right: `not 18`, `less than 18`, `18 or 20`, `3π`."""

    hedged: bool = False
    """Two different answers; an earlier statement does not count either."""


def last_stated(
    found_marks: Iterable[Mark], read: Callable[[Mark], Found[V] | Refused | None]
) -> Found[V] | Refused | None:
    """What the first of the marks that states anything states: an answer, or a hedge; else Refused if one was."""
    refused = None
    for mark in found_marks:
        found = Refused(hedged=True) if mark.hedged else read(mark)
        if not isinstance(found, Refused):
            if found is not None:
                return found
        elif found.hedged:
            return found
        else:
            refused = found
    return refused


@lru_cache(maxsize=1 << 12)
def read_statement(
    line: str, *, boxed: bool = False, heading: bool = False, bullet: bool = False
) -> Stated | Refused | None:
    """What a line states from its beginning on; None where it does not begin with a number.

    `heading`: it follows `####`, or a heading, where `1. Add` is a step. `boxed`: `4!` is a factorial.
    """
    if bullet:
        line = _BULLET.sub("", line, count=1)
    place = _lead(line, 0)
    negated = _NEGATED.match(line, place)
    if negated:
        instead = _INSTEAD.search(line, negated.end())
        if not instead:
            return Refused()
        place = _lead(line, instead.end())
    if _BOUND.match(line, place):
        return Refused()
    try:
        term = read_term(line, place, factorial=boxed)
        if term is None:
            return None
        if heading and _LISTED.match(line, term.end) and term.bare and term.end - place <= 3:
            return None
        if heading and line[place : place + 1] == "(" and term.end - place <= 4 and _WORD_FOLLOWS.match(line, term.end):
            return None
        return _with_what_follows(line, place, term, boxed=boxed)
    except Unreadable:
        return Refused()


def _lead(line: str, place: int) -> int:
    found = LEAD.match(line, place)
    return found.end() if found else place


def _with_what_follows(line: str, place: int, term: Term, *, boxed: bool) -> Stated | Refused | None:
    if _CERTAIN.match(line, term.end):
        return None
    if _GIVE_OR_TAKE.match(line, term.end):
        return Refused()
    equation = _EQUATION.match(line, term.end)
    if equation and not _OR.match(line[: equation.end()], term.end):
        sides = _equation(line, place, boxed=boxed)
        if sides is not None:
            return sides
    clock = _CLOCK.match(line, term.end) if term.bare else None
    if clock and term.values[0].denominator == 1:
        return Stated((term.values[0] + Fraction(int(clock[1]), 60),), clock.end(), True, False)
    if _RATIO.match(line, term.end) and term.bare:
        return Refused()
    parts = _in_parts(line, term)
    if parts:
        return parts
    others = _others(line, term)
    if others is not None:
        return others
    compared = _COMPARED.match(line, term.end)
    if not term.bare or compared:
        end = SENTENCE_END.search(line, term.end)
        result = _RESULT.search(line, term.end, end.start() if end else len(line))
        if result:
            better = read_term(line, result.end())
            if better is not None:
                return Stated(better.values, better.end, False, False)
        if compared and line[compared.start() : compared.end()].split()[-1:] != ["than"]:
            return Refused()
    values = term.values
    cents = _CENTS.match(line, term.end)
    if cents:
        values = (*values, values[0] / 100)
    elif re.match(r"\s?(?:%|percent\b)", line[term.end :]) and values[0]:
        values = (*values, values[0] / 100) if values[0] < 1000 else values
    goes_on = not term.bare or bool(_VERB.match(line, term.end) or _NEXT_NUMBER.match(line, term.end))
    return Stated(values, term.end, _PLAIN_TAIL.match(line, term.end) is not None, goes_on)


def _equation(line: str, place: int, *, boxed: bool) -> Stated | Refused | None:
    """The last side that is a number alone, else the value of the last."""
    end = SENTENCE_END.search(line, place)
    sides = [place, *(sign.end() for sign in _SIDES.finditer(line, place, end.start() if end else len(line)))]
    last: Stated | None = None
    for start in reversed(sides[-8:]):
        at = _lead(line, start)
        try:
            term = read_term(line, at, factorial=boxed)
        except Unreadable:
            if last is None and start == sides[-1]:
                return Refused()
            continue
        if term is None:
            continue
        if term.bare and not _SUM_GOES_ON.match(line, term.end):
            return _others(line, term) or Stated(term.values, term.end, False, True)
        last = last or Stated(term.values, term.end, False, True)
    return last


def _in_parts(line: str, term: Term) -> Stated | None:
    """`18 hours 30 minutes`: in the larger unit, in the smaller one."""
    found = _IN_PARTS.match(line, term.end)
    if found is None or not term.bare:
        return None
    ratio, smaller = _COMPOUND.get(found[1].lower(), (0, ""))
    if not ratio or not found[3].lower().startswith(smaller[:4]):
        return None
    part = Fraction(found[2])
    value = term.values[0]
    return Stated((value + part / ratio, value * ratio + part), found.end(), True, False)


def _others(line: str, term: Term) -> Stated | Refused | None:
    """Refused where a second number follows the first: `18 or 20`, `18 and 20`, `10-12`, `10 to 12`.

    Both are readings where they are the same quantity: `1.5 hours or 90 minutes`.
    """
    either = _OR.match(line, term.end)
    if either:
        other = read_term(line, _lead(line, either.end()))
        if other is not None:
            same = _same_quantity(line, term, other)
            return Stated((*term.values, *other.values), other.end, True, False) if same else Refused(hedged=True)
    between = _RANGE.match(line, term.end)
    if between:
        other = read_term(line, between.end())
        if other is not None and (other.values[0] != term.values[0]):
            return Refused()
    both = _AND.match(line, term.end)
    if both:
        other = read_term(line, both.end())
        if other is not None and other.values[0] != term.values[0] and line[both.end() : both.end() + 1].isdigit():
            comma = "," in line[both.start() : both.end()]
            if not comma or re.match(r"\s*(?:[.!]?\s*$|,|and\b|or\b)", line[other.end :]):
                return Refused(hedged=True)
    return None


_PERCENT = Fraction(1, 100)
_LENGTHS: dict[str, int | Fraction] = {
    "hour": 60, "minute": 1, "second": Fraction(1, 60), "dollar": 100, "cent": 1, "percent": _PERCENT, "%": _PERCENT,
}  # fmt: skip
_UNIT_NAME = re.compile(r"\s?(%|[A-Za-z]+?)s?(?![A-Za-z])")


def _same_quantity(line: str, first: Term, second: Term) -> bool:
    """`1/2 or 0.5`, `1.5 hours or 90 minutes`."""
    if set(first.values) & set(second.values):
        return True
    named = [_UNIT_NAME.match(line, term.end) for term in (first, second)]
    units = [_LENGTHS.get(found[1].lower(), 1) if found else 1 for found in named]
    return units != [1, 1] and first.values[0] * units[0] == second.values[0] * units[1]


_PLAIN_TAIL = re.compile(
    r"[ \t]*%?(?:[ \t]*/?[ \t]*[A-Za-z°'\"¢€£$]+(?:\^-?[0-9]|[0-9])?\.?){0,3}"
    r"[\s.,;:!$)}\]`'\"*_|\\-]*(?:$|\n|\(|#|<|\[)"
)
_PREPOSITION = (
    r"(?:in|of|for|per|at|after|on|to|from|with|by|over|an?|each|every|total|altogether|more|left|remaining|because|since|as|"
    r"that|which|if|when|during|within|out|and|than|per|before|until|only|all|so|but)"
)
_VERB = re.compile(
    r"[^.!?\n;(]*?\b(?:is|are|was|were|has|have|had|holds?|makes?|costs?|needs?|gives?|gets?|lays?|takes?|buys?|sells?|eats?|"
    r"contains?|earns?|works?|walks?|runs?|drives?)\b",
    re.IGNORECASE,
)
_NEXT_NUMBER = re.compile(rf"(?:[ \t]+(?!{_PREPOSITION}\b)[A-Za-z]+)+[ \t]+[0-9]", re.IGNORECASE)
