"""Exact: an answer that is a text, compared as such but for case, white space and the marks around it."""

from __future__ import annotations

import re
import unicodedata

import msgspec

from loadgen.workload.grading.content import READ
from loadgen.workload.grading.mark import marks
from loadgen.workload.grading.verdict import Extractor

LONGEST = 2_000
"""Characters of the line behind a mark that are read."""
_AROUND = " \t\n\r.,;:!?\"'`*_“”‘’«»()[]{}$"
_SENTENCE = re.compile(r"(?<=[^\s.][^\s.])[.!?;](?=\s)")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\s?\{([^{}\n]{0,200})\}")
_COLON_KINDS = ("colon", "heading", "initial")


class Words(msgspec.Struct, frozen=True):
    """A text and the rule that found it."""

    value: str
    extractor: Extractor
    others: tuple[str, ...] = ()
    """What else may be meant: the sentence that the text begins with."""

    def __str__(self) -> str:
        return self.value


def read_words(text: str, *, marked: bool) -> Words | None:
    """What the last mark states; unless `marked`, else the whole text where it is one line, else its last line.

    None if there is nothing but punctuation.
    """
    text = text[-READ:]
    for mark in marks(text):
        if mark.weak or not mark.line.strip():
            continue
        inside = mark.kind in ("boxed", "tag")
        line = mark.line if inside else text[mark.begin : mark.begin + LONGEST].partition("\n")[0]
        if (found := _words(line, "answer_colon" if mark.kind in _COLON_KINDS else mark.extractor)) is not None:
            return found
    lines = [line for line in text.splitlines() if normal(line)]
    if marked or not lines:
        return None
    return _words(lines[-1], "text" if len(lines) == 1 else "last_line")


def found_words(said: str) -> Words | None:
    """A text that a pattern matched; None if it is nothing but punctuation."""
    return _words(said, "pattern")


def same_words(found: Words, gold: str) -> bool:
    """Whether the texts agree but for case, white space and the punctuation around them."""
    return normal(gold) in {normal(text) for text in (found.value, *found.others)}


def normal(text: str) -> str:
    """Folded case, one space between words, no quotes, brackets or punctuation around."""
    text = _WRAPPED.sub(r"\1", unicodedata.normalize("NFKC", text))
    folded = " ".join(text.split()).casefold()
    return folded.strip(_AROUND)


def _words(said: str, extractor: Extractor) -> Words | None:
    if not normal(said):
        return None
    said = _WRAPPED.sub(r"\1", said)
    first = _SENTENCE.split(said, maxsplit=1)[0]
    return Words(said.strip(_AROUND), extractor, (first.strip(_AROUND),) if first != said else ())
