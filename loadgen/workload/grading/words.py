"""Words: an answer that is a text, compared as such but for case, white space and the punctuation around it; and an
answer that the user's own regular expression finds.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache

import msgspec

from loadgen.errors import UsageError
from loadgen.secret import without_secrets
from loadgen.workload.grading.letter import read_letter
from loadgen.workload.grading.marks import COLON_KINDS, READ, marks
from loadgen.workload.grading.notation import last_match, plain
from loadgen.workload.grading.outcome import Extractor, Found
from loadgen.workload.grading.statement import Stated, read_statement

LONGEST = 2_000
"""Characters of the line behind a mark that are read."""
_AROUND = " \t\n\r.,;:!?\"'`*_“”‘’«»()[]{}$"
_SENTENCE = re.compile(r"(?<=[^\s.][^\s.])[.!?;](?=\s)")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed)\s?\{([^{}\n]{0,200})\}")


def read_words(text: str, *, marked: bool) -> Found[str] | None:
    """What the last mark states; unless `marked`, else the whole text where it is one line, else its last line.

    None if there is nothing but punctuation.
    """
    text = text[-READ:]
    for mark in marks(text):
        if mark.weak or not mark.line.strip():
            continue
        inside = mark.kind in ("boxed", "tag")
        line = mark.line if inside else text[mark.begin : mark.begin + LONGEST].partition("\n")[0]
        if (found := found_words(line, "answer_colon" if mark.kind in COLON_KINDS else mark.extractor)) is not None:
            return found
    lines = [line for line in text.splitlines() if normal(line)]
    if marked or not lines:
        return None
    return found_words(lines[-1], "text" if len(lines) == 1 else "last_line")


def normal(text: str) -> str:
    """Folded case, one space between words, no quotes, brackets or punctuation around."""
    text = _WRAPPED.sub(r"\1", unicodedata.normalize("NFKC", text))
    return " ".join(text.split()).casefold().strip(_AROUND)


def found_words(text: str, extractor: Extractor = "pattern") -> Found[str] | None:
    """The text that a rule found; None if it is nothing but punctuation."""
    if not normal(text):
        return None
    text = _WRAPPED.sub(r"\1", text)
    first = _SENTENCE.split(text, maxsplit=1)[0]
    return Found(text.strip(_AROUND), extractor, (first.strip(_AROUND),) if first != text else ())


TRIED_S = 5.0
"""How long a pattern may take on all of the trial texts, the start of an interpreter included."""
MATCH_S = 1.0
"""How much of a core's time it may take on one answer, of which READ characters at most are searched."""
_TRIAL = """
import re, sys
pattern = re.compile(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"))
for part in ("a", "A", "1", " ", ".", "\\n", "=", "$", "1,234 ", "The answer is 18. ", "x = 3\\n"):
    for end in ("", "!", "\\x00"):
        sum(1 for _ in pattern.finditer(part * (2000 // len(part)) + end))
"""


@lru_cache(maxsize=8)
def compiled(regex: str) -> re.Pattern[str]:
    """The pattern. Raises UsageError for one that does not compile, matches the empty text or has several groups."""
    shown = f"--answer-regex {regex!r}"
    try:
        pattern = re.compile(regex)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise UsageError(f"{shown} is not a regular expression ({error}); write one in Python's syntax") from None
    if pattern.groups > 1:
        raise UsageError(
            f"{shown} has {pattern.groups} groups; use one at most, which holds the answer, and (?:...) for the others"
        )
    if pattern.search(""):
        raise UsageError(f"{shown} matches the empty text, so it finds an answer everywhere; make it more specific")
    return pattern


def check_speed(regex: str, within_s: float = TRIED_S) -> None:
    """Raises UsageError for a pattern that takes longer than `within_s` on texts of 2,000 characters.

    The trial runs in a separate process: a pattern such as `(a+)+b` may take years, and Python cannot interrupt it.
    """
    argv, sent = [sys.executable, "-I", "-S", "-c", _TRIAL], regex.encode("utf-8", "surrogatepass")
    try:
        env = without_secrets(os.environ)
        subprocess.run(argv, input=sent, timeout=within_s, capture_output=True, check=False, env=env)
    except subprocess.TimeoutExpired:
        raise _too_slow(regex, within_s, "a text of 2,000 characters") from None


def last_found(text: str, pattern: re.Pattern[str]) -> str | None:
    """The last match in the text: its group where it has one that took part, else all of it; None without a match.

    Raises UsageError if that takes longer than MATCH_S: a received run has somebody else's pattern and texts.
    """
    with _limited(pattern.pattern, MATCH_S):
        match = last_match(pattern, text)
    if match is None:
        return None
    return match[0] if not pattern.groups or match[1] is None else str(match[1])


def _too_slow(regex: str, within_s: float, where: str) -> UsageError:
    how = "avoid a repeat inside a repeat, as in (a+)+"
    return UsageError(f"--answer-regex {regex!r} takes more than {within_s:g} s on {where}; {how}")


@contextlib.contextmanager
def _limited(regex: str, within_s: float) -> Iterator[None]:
    """Python handles signals while it matches, but only in a process's main thread: in others there is no limit."""

    def late(*_: object) -> None:
        raise _too_slow(regex[:200], within_s, "one of the answers")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGVTALRM, late)
    left_s, period_s = signal.setitimer(signal.ITIMER_VIRTUAL, within_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, left_s, period_s)
        signal.signal(signal.SIGVTALRM, handler)


def found_number(text: str) -> Found[Fraction] | None:
    """The number that a matched text states; None if it states none, or two."""
    stated = read_statement(plain(text.strip()), boxed=True)
    return Found(stated.values[0], "pattern", stated.values[1:]) if isinstance(stated, Stated) else None


def found_letter(text: str, options: Sequence[str]) -> Found[str] | None:
    """The option that a matched text names by its letter, text or value; None if it names none, or two."""
    found = read_letter(f"Answer: {text.strip()}", options, marked=True)
    return msgspec.structs.replace(found, extractor="pattern") if found else None
