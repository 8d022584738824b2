"""Number: which number an answer states, in exact arithmetic; which one an unmarked answer ends on, a guess."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from loadgen.workload.grading.marks import Mark, marks
from loadgen.workload.grading.notation import last_match, plain, spelt
from loadgen.workload.grading.outcome import Found
from loadgen.workload.grading.statement import SENTENCE_END, Refused, Stated, last_stated, read_statement
from loadgen.workload.grading.term import SIGNED, readable_term, scaled, value_of_match

LAST_LINE = 1200
"""Characters of the last line with a number that are read."""

_ANYWHERE = re.compile(SIGNED)
_ASIDE = re.compile(r"\((?=[^()\n]{0,120}[0-9])[^()\n]{0,120}\)(?!\s*[-+*/^=])")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\s*_\"')]+(?=[A-Z(*\"'])")
_CONCLUDES = re.compile(
    r"\b(?:so|therefore|thus|hence|total|altogether|in\s+all|finally|answer|left|remain(?:s|ing)?|conclusion|result|combined|overall)\b"
    r"|[∴=]|⇒",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"\W*(?:(?:he|she|it|they|i|we|that|this)\s+(?:\w+\s+)?(?:started|began|had|used|took|needed|originally|initially|checked|verified|rounded)\b"
    r"|(?:originally|initially|note|recall|remember|check|verif|i\s+used|there\s+(?:are|were)|this\s+(?:is\s+because|used|took|answer)|"
    r"for\s+reference|the\s+(?:original|initial|given)|as\s+given|[^.]*\bsteps?\b))",
    re.IGNORECASE,
)
_CUE = re.compile(
    r"(?:∴|\b(?:so|therefore|thus|hence|total(?:\s+(?:is|of))?|answer|result)\b)[\s,:=]*(?=[-+(√]?\s?[0-9.])",
    re.IGNORECASE,
)
_AFTERTHOUGHT = re.compile(
    r"(?:[ \t]+[A-Za-z'-]+){0,4}?[ \t]+(?:over|for|in|after|within|among|amongst|during|from|per"
    r"|of[ \t]+the|to[ \t]+(?:read|make|cover|feed)"
    r"|(?:more|less|fewer|greater|older|younger|bigger|smaller|higher|lower)[ \t]+than)[ \t]+"
    r"(?:(?:the|a|his|her|their|its|all|each|every|"
    r"original|other|these|those|first|last|next)[ \t]+){0,3}(?=[0-9])"
)
_REFUSING = re.compile(
    r"(?:\bnot|n't|\bneither|\bnever|\bat\s+(?:least|most)|\b(?:more|less|fewer|greater)\s+than|[<>≤≥]"
    r"|\bbetween\s+-?[0-9][0-9,.]*(?:\s+[A-Za-z]+)?\s+and|[0-9](?:\s+[A-Za-z]+)?,?\s+or|±)"
    r"(?:\s+(?:be|the|a|about|exactly|just|only|maybe|perhaps|possibly|even))*\s*\Z",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"(?:[ \t]+[A-Za-z]+){0,2}?[ \t]+(?:over|for|in|after|within|per|on|at|during|from|by|with)\b[^0-9]{0,30}[0-9]"
)
_OUT_OF = re.compile(
    r"(?:[ \t]+[A-Za-z]+)?[ \t]+out[ \t]+of[ \t]+(?:the[ \t]+|a[ \t]+total[ \t]+of[ \t]+)?[0-9][0-9,.]*"
)
_SCORED = re.compile(
    r"\b(?:scor\w*|got|gets?|earn\w*|receiv\w*|grade\w*|mark\w*|answered|correct|rated?|rating)\b[^.\n]{0,40}\Z",
    re.IGNORECASE,
)
_RATIO_BEFORE = re.compile(r"[0-9]\s?:\s?\Z")
_RATIO_AFTER = re.compile(r"\s?:\s?[0-9]")
_OPAQUE = re.compile(r"\s?[π√]|\s?pi\b")
_SUM_BEFORE = re.compile(r"[0-9)]\s*[-+*/x]\s*\(?\Z")
_CENTS = re.compile(r"\s?(?:¢|cents?\b)", re.IGNORECASE)


def conclusion(text: str) -> tuple[Fraction, ...] | None:
    """The number a text in plain notation ends on, in each of its readings; None if there is none.

    That is the last number of its last line with one, asides in brackets and remarks behind the conclusion left out
    ("He started with 50."); in an equation, the side that is not a sum.
    """
    found = last_match(_ANYWHERE, text)
    if found is None:
        return _in_words(text)
    begin = max(text.rfind("\n", 0, found.start()) + 1, found.end() - LAST_LINE)
    line = text[begin : text.find("\n", found.end()) if "\n" in text[found.end() :] else len(text)][: LAST_LINE * 2]
    without = _ASIDE.sub(" ", line)
    line = without if _ANYWHERE.search(without) else line
    sentences = [part for part in _SENTENCE_END.split(line) if part]
    while len(sentences) > 1 and (
        not _ANYWHERE.search(sentences[-1]) or (_REMARK.match(sentences[-1]) and not _CONCLUDES.search(sentences[-1]))
    ):
        if _ANYWHERE.search(sentences[-1]) and not any(
            _CONCLUDES.search(part) and _ANYWHERE.search(part) for part in sentences[:-1]
        ):
            break
        sentences.pop()
    return _of_sentence(sentences[-1] if sentences else line, len(text.strip()))


def _of_sentence(sentence: str, whole_length: int) -> tuple[Fraction, ...] | None:
    if "." in sentence and not _ANYWHERE.search(sentence):
        return None
    sentence = _OUT_OF.sub(_whole_of, sentence)
    numbers = list(_ANYWHERE.finditer(sentence))
    if not numbers:
        return None
    if isinstance(read_statement(sentence), Refused) and "=" not in sentence:
        return None
    whole = readable_term(sentence)
    if whole and not whole.bare and not sentence[whole.end :].strip(" .$!*"):
        return whole.values
    cue = last_match(_CUE, sentence)
    if cue and len(numbers) == 2:
        first = _ANYWHERE.match(sentence, cue.end())
        if first and _TAIL.match(sentence, first.end()):
            return _reading(sentence, first)
    if len(numbers) > 1 and (len(sentence) == whole_length or _CONCLUDES.search(sentence)):
        end = numbers[-2].end()
        tail = _AFTERTHOUGHT.match(sentence, end)
        if tail and tail.end() == numbers[-1].start() and not _SUM_BEFORE.search(sentence[end : tail.end()]):
            return _reading(sentence, numbers[-2])
    last = numbers[-1]
    if _REFUSING.search(sentence[max(0, last.start() - 60) : last.start()]):
        return None
    if "=" in sentence and _SUM_BEFORE.search(sentence[: last.start()]):
        side = _side(sentence)
        if side:
            return side
    return _reading(sentence, last)


def _whole_of(found: re.Match[str]) -> str:
    """`18 out of 20` is 18; without a number before it stays."""
    before = found.string[max(0, found.start() - 1) : found.start()]
    return "" if before.isdigit() else found[0]


def _side(sentence: str) -> tuple[Fraction, ...] | None:
    """`8 = 5 + 3` is 8; of `Total = 5 + 3` the sum is worked out."""
    head, _, tail = sentence.rpartition("=")
    number = last_match(_ANYWHERE, head)
    if number and number.end() == len(head.rstrip()) and not _SUM_BEFORE.search(head[: number.start()]):
        return _reading(head, number)
    term = readable_term(tail)
    return term.values if term and not tail[term.end :].strip(" .$!") else None


def _reading(sentence: str, found: re.Match[str]) -> tuple[Fraction, ...] | None:
    value = value_of_match(found)
    before, end = sentence[: found.start()], found.end()
    if value is None or _OPAQUE.match(sentence, end) or before.rstrip().endswith("√"):
        return None
    if _RATIO_BEFORE.search(before[-4:]) or _RATIO_AFTER.match(sentence, end):  # `5:30` is hours, a ratio no number
        stated = read_statement(sentence[len(re.split(r"[0-9]+\s?:\s?\Z", before)[0]) :])
        return stated.values if isinstance(stated, Stated) else None
    if found["below"] and _SCORED.search(before[-60:]):
        return Fraction(found["number"].replace(",", "")), value
    if sentence.startswith("^", end):
        term = readable_term(sentence, found.start("number"))
        return term.values if term else None
    values, end = scaled(sentence, end, value)
    return (*values, values[0] / 100) if _CENTS.match(sentence, end) else values


def _in_words(text: str) -> tuple[Fraction, ...] | None:
    """The number that the last sentence spells, if it is one and no article or "one of"."""
    sentence = [part for part in re.split(r"[.!?\n]", text[-LAST_LINE:]) if part.strip()][-1:]
    value, place = None, 0
    for word in re.finditer(r"[A-Za-z]+", sentence[0] if sentence else ""):
        if word.start() >= place and word[0].lower() not in ("one", "a", "an", "and"):
            value, place = spelt(sentence[0], word.start()) or (value, place)
    return None if value is None else (value,)


ROUNDED_FROM = 2
"""Decimals from which on a published answer is taken for a rounded one."""
FLOAT_DIGITS = 15
"""Significant digits from which on a published answer is a binary float, written out: `33.333333333333336`."""
FLOAT_TOLERANCE = Fraction(1, 10**12)

_ANYWHERE_number = re.compile(SIGNED)
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
    found = list(_ANYWHERE_number.finditer(text))
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
