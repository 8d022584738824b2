"""Grade: what became of one answer."""

from __future__ import annotations

from fractions import Fraction
from typing import Generic, Literal, TypeVar, get_args

import msgspec

VERSION = 2
"""The rules' version. 1: `####`, else a box, else "the answer is". 2: the last mark of any kind, terms worked out;
hedges and ranges are no answer. It grows with every change of a grade; a test pins the grades of its cases."""

Outcome = Literal["correct", "wrong", "unparsed", "truncated", "empty", "error"]
_Marked = Literal["hashes", "boxed", "answer_is", "answer_colon", "tag", "pattern", "text"]
_Guessed = Literal["last_number", "last_line", "last_letter", "option_text", "option_value"]
Extractor = Literal[_Marked, _Guessed]
"""The rule that found the answer; `last_*` and `option_*` are guesses at what an unmarked answer meant."""
GUESSES: frozenset[Extractor] = frozenset(get_args(_Guessed))


V = TypeVar("V", str, Fraction)


class Found(msgspec.Struct, Generic[V], frozen=True):
    """An answer that was read, and the rule that found it."""

    value: V
    """A letter, a text or a number."""
    extractor: Extractor
    others: tuple[V, ...] = ()
    """What the same words can also mean: other options of that value, the first sentence of a text; `50 cents` is 50 or
    0.5, `18 dozen` 216 or 18."""


class Grade(msgspec.Struct, frozen=True, kw_only=True):
    """One outcome, and lm-evaluation-harness's two verdicts."""

    outcome: Outcome
    answer: str | None = None
    """What was read: a letter, or a number in plain decimal notation (`18`, `0.5`, `-3`, `1/3`)."""
    extractor: Extractor | None = None
    """None where nothing was read."""
    correct_but_truncated: bool = False
    """`truncated`, though the right answer was marked at the very end. No accuracy counts it."""
    strict: bool | None = None
    """The harness's `strict-match`; None where it has no task of this protocol."""
    flexible: bool | None = None
    """The harness's `flexible-extract`; None where it has no task of this protocol."""

    @property
    def correct(self) -> bool | None:
        """The headline: everything but `correct` is not; None where the request failed."""
        return None if self.outcome == "error" else self.outcome == "correct"


FAILED = Grade(outcome="error")
"""The grade of a request that brought no answer."""
