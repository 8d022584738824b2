"""Letter: which option of a multiple-choice question an answer names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache

from loadgen.workload.grading.marks import CHOICE_MARKS, COLON_KINDS, Mark, marks
from loadgen.workload.grading.notation import plain
from loadgen.workload.grading.number import conclusion, slack_of, value_of
from loadgen.workload.grading.outcome import Extractor, Found
from loadgen.workload.grading.statement import Refused, Stated, last_stated, read_statement

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
UNKNOWN_OPTIONS = "ABCDE"
LAST_LINES = 1_000
"""Characters at the end of a text in which an unmarked choice is searched."""

_LEAD = (
    r"(?:\\[A-Za-z]+\s?|(?i:\b(?:option|choice|letter|answer|alternative|statement|the|therefore|thus|hence"
    r"|so|then|clearly|"
    r"definitely|probably|likely|now|indeed|simply|just|correct|right|best|one|is|be|to|either)\b)|[^0-9A-Za-z.\n])*?"
)
_LETTER = (
    r"(?:(?P<upper>[%U])(?![0-9A-Za-z_]|['’-][A-Za-z])(?!(?<=A) (?!because|since|as|and|or|with|which|for|due"
    r"|is|are|km|m|cm|kg|only|by)[a-z])"
    r"|(?<![0-9A-Za-z])\(?(?P<closed>[%L])\s?[)\]}]"
    r"|(?<![A-Za-z])(?P<ends>[%L])(?=[ \t]*[.,;:'\"`$)\]}*]*[ \t]*(?:\n|\Z)|[ \t]*[:=]))"
)
_HEDGE = (
    r"[\s)\]}\"'*$.,]*?(?:\b(?i:or|and)\b(?! not\b)|/|&|,)\s*(?:maybe|perhaps|possibly|also|option|choice"
    r"|even)?\s*[(\[\"'*$]*(?P<other>[%U](?![0-9A-Za-z_]|['’][A-Za-z])|[%L]\s?\))(?!\s+(?:is|was|are|would"
    r"|isn't|cannot|can't)\b)"
)
_NEGATED = re.compile(
    r"[^0-9A-Za-z\n]*(?:\w+[ \t]+){0,2}?(?:not|neither|never|isn't|cannot|can't)\b(?P<rest>[^\n]*)", re.IGNORECASE
)
_INSTEAD = re.compile(r"\b(?:but(?:[ \t]+rather)?|rather|instead|it[ \t]+is|it's)\b[^\n]*", re.IGNORECASE)
_DISMISSED = (
    r"[)\]}\"'*$.]*\s*(?:(?:is|was|are|would\s+be|looks|seems)\s+)?(?:also\s+)?(?:wrong|incorrect|not\b"
    r"|a\s+(?:trap|distractor|common|decoy)|false|too\s+|impossible|excluded|eliminated|ruled|isn't|cannot"
    r"|can't|n't|doesn't|does\s+not|\?\s*(?:(?i:no|wait)\b|[A-Z]\b))"
)
_RULED_OUT = re.compile(
    r"(?:n't\s+(?:think|believe)(?:\s+that)?|\b(?:not|cannot|can't|isn't|never|neither|nor|exclud\w+"
    r"|eliminat\w+|rul\w+\s+out|reject\w*|unlike|wrong|incorrect|except|anything\s+but|none\s+of|doubt)\b)"
    r"(?:\s+(?:be|the|option|choice|answer|is|it|it's|options|[A-J](?:\s?,|\s+and|\s+or|\s+nor)))*[\s(\"'*$]*\Z",
    re.IGNORECASE,
)
_CLAUSE_BEFORE = re.compile(
    r"(?:\A|[.:;!?,\n(\[*>✅✔☑→∴\"'=—-]\s*|\b(?:is|be|so|therefore|thus|hence|pick|picks?|choose|chose|select"
    r"|go\s+with|option|choice|"
    r"answer|say|it's|becomes|of|to|matches|gives?|guess)\b[\s:(\[\"'*$]*)\Z",
    re.IGNORECASE,
)
_CLAUSE_AFTER = re.compile(
    r"[\s)\]}\"'*$]*(?:\Z|[.,;:!)\n—–-]|is\b(?=\s+(?:the|correct|right|our|my|best))|remains\b|it\s+is|as\b"
    r"|because\b|since\b|which\b|fits|works|matches)"
)
_LONE = r"(?<![0-9A-Za-z_'’-])(?P<upper>[%U])(?![0-9A-Za-z_]|['’-][A-Za-z0-9]|\s?[=+*/<>^])(?!(?<=A) [a-z])"
_LISTED = r"(?m:^|(?<=[.;,\s]))\(?(?P<letter>[%U])\s?[).:]"
_PATTERNS = {
    "letter": _LEAD + _LETTER,
    "hedge": _HEDGE,
    "lone": _LONE,
    "dismissed": _DISMISSED,
    "option_line": r"(?m:^)[ \t]*(?:[-*•][ \t]+)?(?:\(?[%U%L]\s?[).:]|[%U%L]\s?[).:-])[ \t]+[^\n]*(?:\n|\Z)",
    "listed_letter": _LISTED,
    "affirmed": _LISTED
    + r"[^\n.;()]{0,60}?(?<!not )(?:\bfits\b|\byes\b|[✓✔✅]|(?<!in)\bcorrect\b|\bworks\b|\bmatches\b"
    r"|\bis\s+right\b)",
    "whole": r"[^0-9A-Za-z]*(?:(?i:option|choice|letter)\s+)?[^0-9A-Za-z]*"
    r"(?P<upper>[%U%L])(?:\s?[).:\]]\s?(?:[^\n.;()]|\.(?=[0-9])){0,60})?[^0-9A-Za-z]*",
}
"""With the question's letters as %U, in small letters as %L."""
_SPACED = re.compile(r"(?<=[0-9]) (?=[./] ?[0-9])|(?<=[0-9] [./]) (?=[0-9])|(?<=[0-9]) ?(?=, ?[0-9]{3}(?![0-9]))")
_LOOSE = re.compile(r"(?<=[0-9],) (?=[0-9]{3}(?![0-9]))|(?<=^[-−–]) (?=[0-9])|(?<=[0-9][./]) (?=[0-9])")
_NONE = re.compile(
    r"\bnone\s+of\s+(?:the|these|those|them|above)\b(?:\s+(?:above|these|those|options?|choices?|answers?"
    r"|given|listed|others?))*|\bno(?:ne|t)\s+(?:given|listed)\b"
)
_BOTH = re.compile(r"\b(?:both|either)\b[^.\n]{0,12}\Z", re.IGNORECASE)
_RATIO = re.compile(r"(?<![0-9.])([0-9]+(?:\.[0-9]+)?)\s?(?::|to)\s?([0-9]+(?:\.[0-9]+)?)(?![0-9.])")


def read_letter(text: str, options: Sequence[str], *, marked: bool) -> Found[str] | None:
    r"""What the last mark states: a letter, or an option's text or value.

    Unless `marked`, else the last letter that is a clause by itself, else the option whose text or value the last line
    states, else the last lone upper-case letter. None if nothing is named, or two at once.
    """
    text = plain(text)
    choices = _choices(tuple(options))
    last = last_stated(marks(text, CHOICE_MARKS), choices.stated)
    if last is not None or marked:
        return None if isinstance(last, Refused) else last
    return choices.concluded(text)


@lru_cache
def _patterns(letters: str) -> dict[str, re.Pattern[str]]:
    return {
        name: re.compile(pattern.replace("%U", letters).replace("%L", letters.lower()))
        for name, pattern in _PATTERNS.items()
    }


class _Choices:
    """The options of one question, as answers name them."""

    def __init__(self, options: Sequence[str]) -> None:
        self._letters = ALPHABET[: len(options)] or UNKNOWN_OPTIONS
        self._patterns = _patterns(self._letters)
        self._texts = {letter: squeezed(plain(option)) for letter, option in zip(ALPHABET, options, strict=False)}
        unspaced_options = {letter: unspaced(option) for letter, option in zip(ALPHABET, options, strict=False)}
        self._values = {letter: _option_value(option) for letter, option in unspaced_options.items()}
        self._worded = {letter: text for letter, text in self._texts.items() if self._values[letter] is None}
        self._percent = {letter for letter, option in unspaced_options.items() if "%" in option}
        self._listed = [
            re.compile(
                rf"\(?(?<![0-9A-Za-z]){letter}\s?[).:]\s*{_spaced_as_may_be(option)}(?![0-9A-Za-z])", re.IGNORECASE
            )
            for letter, option in unspaced_options.items()
            if option.strip()
        ]

    def stated(self, mark: Mark) -> Found[str] | Refused | None:
        extractor: Extractor = "answer_colon" if mark.kind in COLON_KINDS else mark.extractor
        line = mark.line
        if mark.kind == "is_answer":  # C of "C is the answer"
            letter = line.lstrip("([")[:1].upper()
            return Found(letter, "answer_is") if letter in self._letters else None
        negated = _NEGATED.match(line)
        if negated and not self._patterns["letter"].match(line[: negated.start("rest")]):
            if named := _named(self._worded, squeezed(line)):
                return Found(named, extractor)
            instead = _INSTEAD.search(negated["rest"])
            if instead is None:
                return Refused()
            line = re.sub(r"^(?:but(?:\s+rather)?|rather|instead|it\s+is|it's)\b", "", instead[0])
        found = self._patterns["letter"].match(line)
        if found:
            letter = (found["upper"] or found["closed"] or found["ends"]).upper()
            if self._is_hedged(line, found.end(), letter):
                return Refused(hedged=True)
            if self._patterns["dismissed"].match(line, found.end()):
                return None
            return Found(letter, extractor)
        if mark.kind in ("choice", "beside_letter"):
            return None
        return self._named_option(line, extractor, extractor, anywhere=False)

    def concluded(self, text: str) -> Found[str] | None:
        whole = self._patterns["whole"].fullmatch(text[:200].strip()) if len(text) < 200 else None
        if whole:
            return Found(whole["upper"].upper(), "last_letter")
        if affirmed := self._affirmed(text[-LAST_LINES:]):
            return Found(affirmed, "last_letter")
        text = text[-4 * LAST_LINES :]
        if len(self._patterns["option_line"].findall(text)) > 1:
            text = self._patterns["option_line"].sub("\n", text)
        text = self._without_options(text)
        end = text[-LAST_LINES:].rstrip()
        clause = self._clause(end)
        if clause is not None:
            return Found(clause, "last_letter") if clause else None
        named = self._named_option(end.rpartition("\n")[2], "option_text", "option_value", anywhere=True)
        if isinstance(named, Found):
            return named
        found = [match for match in self._patterns["lone"].finditer(end) if not self._ruled_out(end, match)]
        usable = [match for match in found if match["upper"] != "I"]
        if usable and _offered_before(end[: usable[-1].start()], self._letters):
            return None
        return Found(usable[-1]["upper"], "last_letter") if usable else None

    def _affirmed(self, text: str) -> str | None:
        """The only option of a list of them that is said to fit."""
        if len({found["letter"].upper() for found in self._patterns["listed_letter"].finditer(text)}) < 2:
            return None
        letters = {found["letter"].upper() for found in self._patterns["affirmed"].finditer(text)}
        return letters.pop() if len(letters) == 1 else None

    def _without_options(self, text: str) -> str:
        """Without a list that repeats the options."""
        if sum(pattern.search(text) is not None for pattern in self._listed) < 3:
            return text
        for pattern in self._listed:
            text = pattern.sub(" ", text)
        return text

    def _clause(self, text: str) -> str | None:
        """The last letter that is a clause by itself; "" if two are offered there."""
        for found in reversed(list(self._patterns["lone"].finditer(text))):
            before = text[max(0, found.start() - 40) : found.start()]
            letter = found["upper"]
            if letter == "I" or self._ruled_out(text, found):
                continue
            if _CLAUSE_BEFORE.search(before) and _CLAUSE_AFTER.match(text, found.end()):
                if letter == "A" and re.match(r"[\s]+(?!is|because|as|since)[a-z]", text[found.end() :]):
                    continue
                offered = _offered_before(text[: found.start()], self._letters) or _BOTH.search(before)
                return "" if offered or self._is_hedged(text, found.end(), letter) else letter
        return None

    def _is_hedged(self, text: str, end: int, letter: str) -> bool:
        """Another letter is offered behind this one."""
        hedge = self._patterns["hedge"].match(text, end)
        return hedge is not None and hedge["other"][0].upper() != letter

    def _ruled_out(self, text: str, found: re.Match[str]) -> bool:
        return bool(
            self._patterns["dismissed"].match(text, found.end())
            or _RULED_OUT.search(text[max(0, found.start() - 50) : found.start()])
        )

    def _named_option(
        self, line: str, by_text: Extractor, by_value: Extractor, *, anywhere: bool
    ) -> Found[str] | Refused | None:
        flat = squeezed(line)
        if named := _named(self._worded, flat) or _named_none(self._worded, flat):
            return Found(named, by_text)
        if ratio := _ratio_named(self._texts, line):
            return Found(ratio, by_value)
        line = unspaced(line)
        if anywhere:
            values = conclusion(line)
        else:
            stated = read_statement(line, boxed=by_value == "boxed")
            if isinstance(stated, Refused):
                return stated
            values = stated.values if stated else None
        own = [(letter, number) for letter, number in self._values.items() if number is not None]
        for value in values or ():
            same = [letter for letter, number in own if number == value]
            same = same or [letter for letter, number in own if self._is_near(letter, number, value)]
            if same:
                exact = [letter for letter in same if self._texts[letter] and self._texts[letter] in squeezed(line)]
                best = exact if len(exact) == 1 else same
                return Found(best[0], by_value, tuple(best[1:]))
        return None

    def _is_near(self, letter: str, own: Fraction, value: Fraction) -> bool:
        """0.25 is the option `25 %`; 0.33 and 33.33% are a third and `33 1 / 3 %`, rounded."""
        if letter in self._percent and own == value * 100:
            return True
        ends = 10 ** own.denominator.bit_length() % own.denominator == 0  # it has finitely many decimals
        slack = None if ends else slack_of(value, 8)
        return slack is not None and abs(own - value) <= slack


_choices = lru_cache(maxsize=1 << 14)(_Choices)


def _spaced_as_may_be(option: str) -> str:
    return r"\s*".join(re.escape(part) for part in plain(option[:120]).split())


def unspaced(text: str) -> str:
    """MathQA sets a space around every sign, and so do models that saw it: `- 12 . 5`, `1 / 2`, `2 , 261,760`."""
    return _LOOSE.sub("", _SPACED.sub("", text))


def squeezed(text: str) -> str:
    """Lower case, no spaces but between words."""
    return re.sub(r" ?([^0-9a-z ]) ?", r"\1", " ".join(text.lower().replace("can not", "cannot").split()))


def _option_value(option: str) -> Fraction | None:
    value = value_of(option)
    if value is not None:
        return value
    option = plain(option)
    stated = read_statement(option)
    return stated.values[0] if isinstance(stated, Stated) and not option[stated.end :].strip(" .%°") else None


def _offered_before(text: str, letters: str) -> bool:
    return bool(re.search(rf"(?<![0-9A-Za-z])[{letters}][)\s\"'*]*(?:or|and|/|&)[\s(\"'*]*\Z", text[-20:]))


def _named(options: Mapping[str, str], line: str) -> str | None:
    """The letter of the only option that the line names; one that is part of another named one does not count."""
    named: dict[str, str] = {}
    for letter, wanted in options.items():
        if wanted and re.search(rf"(?<![0-9a-z]){re.escape(wanted)}(?![0-9a-z])", line):
            named.setdefault(wanted, letter)
    longest = max(named, key=len, default="")
    return named[longest] if named and all(other in longest for other in named) else None


def _named_none(options: Mapping[str, str], line: str) -> str | None:
    """ "None of the above" is "none of these"."""
    if not _NONE.search(line) and line.strip(" .!*") != "none":
        return None
    return next((letter for letter, text in options.items() if _NONE.search(text) or text in ("none", "n.o.t")), None)


def _ratio_named(options: Mapping[str, str], line: str) -> str | None:
    """A ratio in other words: `2 to 4` is `1:2`."""
    stated = [ratio for found in _RATIO.finditer(line) if (ratio := _ratio(found)) is not None]
    if not stated:
        return None
    return next((letter for letter, text in options.items() if _ratio(_RATIO.fullmatch(text)) == stated[-1]), None)


def _ratio(found: re.Match[str] | None) -> Fraction | None:
    return Fraction(found[1]) / Fraction(found[2]) if found and Fraction(found[2]) else None
