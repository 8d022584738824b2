"""Notation: one form for the many ways in which models write numbers: Unicode, LaTeX, Markdown, currencies, words."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from fractions import Fraction

STATEMENT = 160
"""Characters after a mark that are read."""
LONGEST = 40_000
"""Characters, from the end, that are kept of a text that grows with its notation (`ﷺ` is 18 letters)."""
BOXES = 64
"""Boxes, from the last, that are read."""

_SUPERSCRIPT = re.compile("⁻?[⁰¹²³⁴-⁹]+")
_VULGAR = re.compile(" ?[¼-¾⅐-⅞↉]")
_KEYCAP_ITEM = re.compile("(?m)^([#*\\s]*)[0-9]\ufe0f?\u20e3(?!\\s?[0-9]\ufe0f?\u20e3)(?=[ \\t]*[A-Za-z])")
_KEYCAP = re.compile("\ufe0f?\u20e3")
_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "‐": "-", "‑": "-", "⁄": "/", "∕": "/", "÷": "/", "×": "*", "⋅": "*", "·": "*", "∙": "*"}
    | {"≈": "=", "≅": "=", "≃": "=", "＝": "=", "‘": "'", "’": "'", "“": '"', "”": '"', "‚": ",", "√": "√"}
)
_ANNOTATED = re.compile(r"<<[^<>\n]{0,200}>>(?=\s?-?\$?[0-9.])")
_ANNOTATION = re.compile(r"<<(?:[^<>\n]{0,200}=)?([^<>=\n]{0,60})>>")
_ELEMENT = re.compile(r"</?(?:b|i|u|em|strong|span|p|br|div|code|sub|mark|center|h[1-6])\s?/?>")
_ESCAPED = re.compile(r"\\([$%#&_])")
_CUBE_ROOT = re.compile(r"\\sqrt\s?\[[0-9n]\]")
_NAMED = re.compile(
    r"\\(times|cdot|ast|approx|simeq|cong|div|pi|sqrt|leq?|geq?|lt|gt|pm|degree|circ|left|right|displaystyle|cents?"
    r"|quad|qquad|neq?|therefore|dots|ldots|cdots|bigl?|bigr?|Bigl?|Bigr?|rightarrow|to|implies|Rightarrow)(?![A-Za-z])"
)
_ROOT = re.compile(r"√\s?\{\s?([0-9]{1,9})\s?\}")
_EMPHASIS = re.compile(r"(?<![0-9A-Za-z_])_([0-9A-Za-z.,$()-]{1,20})_(?![0-9A-Za-z_])")
_NAMES = {
    "times": "*", "cdot": "*", "ast": "*", "approx": "=", "simeq": "=", "cong": "=", "div": "/", "pi": "π",
    "sqrt": "√", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "lt": "<", "gt": ">", "pm": "±", "degree": "°",
    "circ": "°", "cent": "¢", "cents": "¢", "ne": "≠", "neq": "≠", "therefore": "∴", "dots": "…", "ldots": "…",
    "cdots": "…", "rightarrow": "→", "to": "→", "implies": "→", "Rightarrow": "→",
}  # fmt: skip
_WRAPPED = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathit|mathsf|mathbb|operatorname|underline|mbox|emph"
    r"|bold|boldsymbol|bm|bf|rm|color|overline)\s?\{([^{}\n]{0,200})\}"
)
_THIN = re.compile(r"\\[,;:! ]|(?<=[0-9])~(?=[0-9])")
_GROUPING = re.compile(
    r"[{,\\'’_\u00a0\u2007\u2009\u202f](?<=[0-9].)"
    r"(?:(?<=\{),\}|(?<=,)\\[,;:! ]|(?<=\\)[,;:! ]|(?<=['’_\u00a0\u2007\u2009\u202f]))(?=[0-9]{3}(?![0-9]))"
)
"""What separates a digit from three more: `{,}`, `\\,` and its like, `,\\,`, an apostrophe, an underscore, a space that
does not break. Matching its first character first is four times as fast as the digit before."""
_SPACED_GROUPS = re.compile(
    r"(?<![0-9A-Za-z.,_/^+*=-])(?<!\d )([1-9][0-9]{0,2})((?:[ ~][0-9]{3}){1,5})(?![0-9A-Za-z/_%]|,[0-9]"
    r"|-[A-Za-z]| ?[0-9])"
    r"|(?<=[+*=-] )([1-9][0-9]{0,2})((?:[ ~][0-9]{3}){1,5})(?![0-9A-Za-z/_%]|,[0-9]|-[A-Za-z]| ?[0-9])"
)
_SPACED = re.compile(r"[0-9][ ~][0-9]{3}")
"""What they have within them: to look for it is five times as fast."""
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac\s?([0-9])\s?([0-9])(?![0-9])")
_FRACTION = re.compile(r"\\[dtc]?frac\s?\{\s?(-?[0-9.,]{1,40})\s?\}\s?\{\s?([0-9.,]{1,40})\s?\}")
_LONG_FRACTION = re.compile(r"\\[dtc]?frac\s?\{([^{}\n]{1,80})\}\s?\{([^{}\n]{1,80})\}")
_BRACED_POWER = re.compile(r"\^\s?\{\s?(-?[0-9]{1,4}|°)\s?\}")
_NEGATIVE_MONEY = re.compile(r"-(?<![0-9A-Za-z)\]}%]-)[$€£¥₹]\s?")
_MONEY = re.compile(r"(?:\b(?:US|A|AU|C|CA|NZ|S|HK|R)(?=[$]\s?-?\.?[0-9]))?[$€£¥₹₩₽₱₦]")
_MONEY_WORD = re.compile(r"(?=[RrIiUuEeGgCcAa])\b(?i:rs|inr|usd|eur|gbp|cad|aud)\b\s?\.?\s?(?=[-0-9])")
"""Matching its first character first is four times as fast."""
_BRACE = re.compile(r"\\(?:boxed|fbox|framebox)\s?\{|\\[{}]|[{}]")
_UNBRACED = re.compile(r"\\(?:boxed|fbox)\s+(-?[0-9][0-9.,/]*|[A-Z]\b)")


def plain(text: str) -> str:
    r"""The text with ASCII digits and signs, `1{,}875` and its like as `1,875`, `\frac{1}{2}` as `1/2`, no currencies.

    `½` becomes ` 1/2` and `²` becomes `^2`, so that neither joins the digits before it. LaTeX's commands become the
    signs they mean, `<<3*6=18>>18` becomes `18`. Linear in the text's length.
    """
    text = text.replace("**", " ").replace("__", " ")
    if "_" in text:
        text = _EMPHASIS.sub(r"\1", text)
    if "<" in text:
        text = _ANNOTATION.sub(r" \1 ", _ANNOTATED.sub("", text))
        text = _ELEMENT.sub(" ", text)
    if not text.isascii():
        text = _KEYCAP.sub("", _KEYCAP_ITEM.sub(r"\1", text))
    text = _GROUPING.sub(",", text)
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda found: "^" + _compatible(found[0]), text)
        text = _VULGAR.sub(lambda found: " " + _compatible(found[0].strip()), text)
        text = _compatible(text)[-LONGEST:]
    if "\\" in text:
        text = _of_latex(text)
    if "~" in text:
        text = _THIN.sub(" ", text)
    text = _MONEY_WORD.sub(" ", _NEGATIVE_MONEY.sub("-", text))
    if "$" in text or not text.isascii():
        text = _MONEY.sub(" ", text)
    return _SPACED_GROUPS.sub(lambda found: found[0].replace(" ", ","), text) if _SPACED.search(text) else text


def last_match(pattern: re.Pattern[str], text: str, begin: int = 0) -> re.Match[str] | None:
    """The last match from a place on, None if there is none."""
    return next(iter(deque(pattern.finditer(text, begin), maxlen=1)), None)


def boxes(text: str) -> Iterator[tuple[int, str]]:
    r"""Where each closed `\boxed{...}` ends and what it begins with, the last closed first; at most `BOXES`."""
    if "\\" not in text:
        return
    opened: list[int | None] = []
    closed: deque[tuple[int, int]] = deque(maxlen=BOXES)
    for brace in _BRACE.finditer(text):
        if brace[0] == "}":
            start = opened.pop() if opened else None
            if start is not None:
                closed.append((start, brace.start()))
        elif brace[0][-1] == "{" and brace[0] != r"\{":
            opened.append(brace.end() if brace[0] != "{" else None)
    for found in _UNBRACED.finditer(text):
        closed.append((found.start(1), found.end(1)))
    for start, end in sorted(closed, key=lambda span: span[1], reverse=True):
        yield end, text[start : min(end, start + STATEMENT)]


def _of_latex(text: str) -> str:
    text = _ESCAPED.sub(r"\1", text)
    text = _THIN.sub(" ", text)
    text = _CUBE_ROOT.sub("∛", text)
    text = _NAMED.sub(lambda found: _NAMES.get(found[1], " "), text)
    for _ in range(2):
        text = _WRAPPED.sub(r" \1 ", text)
    text = _ROOT.sub(r"√\1", text)
    text = _BRACED_POWER.sub(r"^\1", text)
    text = _SHORT_FRACTION.sub(_solidus, text)
    text = _FRACTION.sub(_solidus, text)
    for _ in range(2):
        text = _LONG_FRACTION.sub(r" ((\1)/(\2)) ", text)
    return text


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_SIGNS)


def _solidus(found: re.Match[str]) -> str:
    joined = found.start() > 0 and found.string[found.start() - 1] in "0123456789"
    return f"{' ' * joined}{found[1]}/{found[2]}"


_BELOW_20 = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
UNITS = {word: number for number, word in enumerate(_BELOW_20.split())}
TENS = {word: 10 * number for number, word in enumerate(_TENS.split(), start=2)}
SCALES = {
    "hundred": 100, "thousand": 1_000, "lakh": 100_000, "lakhs": 100_000, "million": 10**6, "crore": 10**7,
    "crores": 10**7, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
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

    `twenty-four`, `two and a half`, `one hundred and five`, `half a dozen`; an article alone is not a number.
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
    if len(words) > 2 and words[-3:] == ["and", "a", "half"]:
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
    return _whole(words)


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
    return above / below if above and above < 20 and words[-1] != "half" else None


def _whole(words: list[str]) -> Fraction | None:
    if not words or words[-1] in ("and", "a", "an") or words[0] == "and":
        return None
    total, current, room = 0, 0, 100  # only a number below `room` may follow
    for k, word in enumerate(words):
        if word in ("a", "an"):
            if k or words[1] not in {**SCALES, **DOZEN}:
                return None
            current, room = 1, 0
        elif word == "and":
            if words[k - 1] not in SCALES:
                return None
        elif word in UNITS or word in TENS:
            number = UNITS[word] if word in UNITS else TENS[word]
            if number >= room:
                return None
            current, room = current + number, 0 if word in UNITS else 10
        elif word in DOZEN:
            current, room = (current or 1) * DOZEN[word], 0
        elif word in SCALES:
            if k == 0 or (SCALES[word] > 100 and not current):
                return None
            current, room = current * SCALES[word], 100
            if SCALES[word] > 100:
                total, current = total + current, 0
        else:
            return None
    return Fraction(total + current)
