"""Number: which number an answer states, in exact arithmetic."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from loadgen.workload.grading.conclusion import conclusion
from loadgen.workload.grading.marks import Mark, marks
from loadgen.workload.grading.notation import plain
from loadgen.workload.grading.statement import SENTENCE_END, Refused, Stated, last_stated, read_statement
from loadgen.workload.grading.term import SIGNED, value_of_match
from loadgen.workload.grading.verdict import Found

ROUNDED_FROM = 2
"""Decimals from which on a published answer is taken for a rounded one."""
FLOAT_DIGITS = 15
"""Significant digits from which on a published answer is a binary float, written out: `33.333333333333336`."""
FLOAT_TOLERANCE = Fraction(1, 10**12)

_ANYWHERE = re.compile(SIGNED)
_TERM = re.compile(r"[-+*/^√] ?0|0 ?[*/^√π]")


def read_number(text: str, *, marked: bool) -> Found[Fraction] | None:
    r"""What the text states after its last mark (`####`, `\boxed{}`, "the answer is", `<answer>`), else its conclusion;
    with `marked`, not that. None if it states none, or two at once.
    """
    text = plain(text)
    last_digit = max(map(text.rfind, "0123456789"))

    def found(mark: Mark) -> Found[Fraction] | Refused | None:
        stated = _stated(mark)
        if not isinstance(stated, Stated):
            return stated
        answers = _is_answer(mark, stated, text, last_digit)
        return Found(stated.values[0], mark.extractor, stated.values[1:]) if answers else None

    last = last_stated(marks(text), found)
    if last is not None or marked:
        return None if isinstance(last, Refused) else last
    values = conclusion(text)
    return Found(values[0], "last_number", values[1:]) if values else None


def _stated(mark: Mark) -> Stated | Refused | None:
    kind, line = mark.kind, mark.line
    if kind == "tag":
        stated = read_statement(line, boxed=True)
        if stated is None and (values := conclusion(line)):
            return Stated(values, len(line), True, False)
        return stated
    heading = kind in ("hashes", "heading", "colon", "initial")
    return read_statement(line, boxed=kind == "boxed", heading=heading, bullet=kind in ("heading", "colon"))


def _is_answer(mark: Mark, stated: Stated, text: str, last_digit: int) -> bool:
    """Whether what was stated is the answer, and not the heading of a step or the first line of a derivation.

    Behind "the answer is", in a box or a tag it is; elsewhere only if it is nothing but a number and its unit, or no
    number follows.
    """
    kind = mark.kind
    if (
        kind in ("boxed", "tag")
        or (kind in ("is", "beside", "before", "foreign") and not mark.weak)
        or (kind == "hashes" and stated.plain)
        or (kind in ("colon", "heading") and not stated.opens_prose and not mark.weak)
    ):
        return True
    end = SENTENCE_END.search(text, mark.begin + stated.end)
    return last_digit < (end.end() if end else len(text))


def value_of(text: str) -> Fraction | None:
    """The number that a text consists of, units aside; None if it has none, several or a term (`6 / π`)."""
    text = plain(text)
    found = list(_ANYWHERE.finditer(text))
    if len(found) != 1 or _TERM.search(f"{text[: found[0].start()]}0{text[found[0].end() :]}"):
        return None
    return value_of_match(found[0])


def same_number(value: Fraction, gold: str) -> bool:
    """Whether `value` is `gold`, a plain decimal: exactly, or rounded to its decimals if it has at least two.

    A gold of `FLOAT_DIGITS` digits is a float: 100/3 is 33.333333333333336, and so is 33.33, to which it rounds.
    Raises ValueError if `gold` is not a number.
    """
    published, slack, is_float = _published(gold)
    if value == published or (bool(slack) and abs(value - published) <= slack):
        return True
    if not is_float:
        return False
    off = abs(value - published)
    if off <= FLOAT_TOLERANCE * abs(published):
        return True
    rounding = slack_of(value, FLOAT_DIGITS)
    return rounding is not None and off <= rounding


def slack_of(value: Fraction, most: int) -> Fraction | None:
    """Half of the last place of a number of at least `ROUNDED_FROM` and fewer than `most` decimals; else None."""
    decimals = next((k for k in range(ROUNDED_FROM, most) if (value * 10**k).denominator == 1), None)
    return None if decimals is None else Fraction(1, 2 * 10**decimals)


def notation_of(value: Fraction) -> str:
    """`18`, `-0.5`; `1/3` for what no decimal ends."""
    if value.denominator == 1:
        return str(value)
    below, places = value.denominator, 0
    for factor in (10, 2, 5):
        while below % factor == 0:
            below, places = below // factor, places + 1
    if below > 1:
        return str(value)
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    cut = len(digits) - places
    decimals = digits[cut:].rstrip("0")
    return f"{'-' * (value < 0)}{digits[:cut]}{'.' * bool(decimals)}{decimals}"


@lru_cache(maxsize=1 << 14)
def _published(gold: str) -> tuple[Fraction, Fraction, bool]:
    """The value of an answer, how far another may lie from it, and whether it is a float written out."""
    value, decimals = Fraction(gold), len(gold.partition(".")[2])
    is_float = decimals > 0 and len(gold.replace(".", "").strip("-0")) >= FLOAT_DIGITS
    rounded = decimals >= ROUNDED_FROM and value.denominator > 1
    return value, Fraction(1, 2 * 10**decimals) if rounded else Fraction(0), is_float
