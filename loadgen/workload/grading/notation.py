"""One notation for the many ways in which models write numbers: Unicode, LaTeX, Markdown, currencies."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterator

STATEMENT = 120
"""How many characters after a mark are looked at."""

_SUPERSCRIPT = re.compile("⁻?[⁰¹²³⁴-⁹]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "‐": "-", "‑": "-", "⁄": "/", "∕": "/", "×": "*", "⋅": "*", "·": "*", "≈": "="}
)
_ESCAPED = re.compile(r"\\([$%#])")
_NAMED = re.compile(r"\\(times|cdot|approx)(?![A-Za-z])")
_NAMES = {"times": "*", "cdot": "*", "approx": "="}
_GROUPING = re.compile(
    r"[{,\\'’\u00a0\u2007\u2009\u202f](?<=[0-9].)"
    r"(?:(?<=\{),\}|(?<=,)\\[,;:! ]|(?<=\\)[,;:! ]|(?<=['’\u00a0\u2007\u2009\u202f]))(?=[0-9]{3}(?![0-9]))"
)
"""What stands between a digit and three more: `{,}`, `\\,` and its like, `,\\,`, an apostrophe, a space that does not
break. Its first character is looked at first, which is four times as fast as the digit before."""
_FRACTION = re.compile(r"\\[dtc]?frac\s?\{\s?(-?[0-9.,]{1,40})\s?\}\s?\{\s?([0-9.,]{1,40})\s?\}")
_NEGATIVE_MONEY = re.compile(r"-(?<![0-9A-Za-z)\]}%]-)[$€£¥₹]\s?")
_MONEY = re.compile(r"[$€£¥₹]")
_MONEY_WORD = re.compile(r"(?=[RrIiUuEeGg])\b(?i:rs|inr|usd|eur|gbp)\s?\.?\s?(?=[0-9])")
"""Its first character is looked at first, which is four times as fast."""
_BRACE = re.compile(r"\\boxed\s?\{|\\[{}]|[{}]")


def plain(text: str) -> str:
    r"""The text with ASCII digits and signs, `1{,}875` and its like as `1,875`, `\frac{1}{2}` as `1/2`, no currencies.

    `½` becomes ` 1/2` and `²` becomes `^2`, so that neither joins the digits before it. Linear in the text's length.
    """
    text = text.replace("**", " ").replace("__", " ")
    text = _ESCAPED.sub(r"\1", text)
    text = _GROUPING.sub(",", text)
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda found: "^" + _compatible(found[0]), text)
        text = _VULGAR.sub(lambda found: " " + _compatible(found[0]), text)
        text = _compatible(text)
    text = _NAMED.sub(lambda found: _NAMES[found[1]], text)
    text = _FRACTION.sub(_solidus, text)
    return _MONEY.sub(" ", _MONEY_WORD.sub(" ", _NEGATIVE_MONEY.sub("-", text)))


def last_match(pattern: re.Pattern[str], text: str, begin: int = 0) -> re.Match[str] | None:
    """The last match from a place on, None if there is none."""
    return next(iter(deque(pattern.finditer(text, begin), maxlen=1)), None)


def boxes(text: str) -> Iterator[str]:
    r"""What each closed `\boxed{...}` begins with, the last closed first."""
    opened: list[int | None] = []
    closed: list[tuple[int, int]] = []
    for brace in _BRACE.finditer(text):
        if brace[0] == "}":
            start = opened.pop() if opened else None
            if start is not None:
                closed.append((start, brace.start()))
        elif brace[0][-1] == "{" and brace[0] != r"\{":
            opened.append(brace.end() if brace[0] != "{" else None)
    for start, end in reversed(closed):
        yield text[start : min(end, start + STATEMENT)]


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_SIGNS)


def _solidus(found: re.Match[str]) -> str:
    joined = found.start() > 0 and found.string[found.start() - 1] in "0123456789"
    return f"{' ' * joined}{found[1]}/{found[2]}"
