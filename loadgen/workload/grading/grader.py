"""Grader: an answer's text to its grade, and to the two verdicts of lm-evaluation-harness 0.4.13, oddities included.

Only the content is read, never the reasoning beside it. The harness's patterns, which match counts, and its
normalisation are those of its task files `gsm8k*.yaml` (versions 3 and 4), which ignore truncation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

import msgspec
from msgspec.structs import replace

from loadgen.bounds import MOST_GRADED
from loadgen.workload.grading.letter import read_letter
from loadgen.workload.grading.marks import READ, after_thought, answer_part, open_thought
from loadgen.workload.grading.notation import last_match
from loadgen.workload.grading.number import notation_of, read_number, same_number
from loadgen.workload.grading.outcome import Found, Grade, Outcome
from loadgen.workload.grading.term import other_unit
from loadgen.workload.grading.words import (
    compiled,
    found_letter,
    found_number,
    found_words,
    last_found,
    normal,
    read_words,
)
from loadgen.workload.item import ItemFacts

_NUMBER = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
_ANYWHERE = re.compile(rf"(?=[-$0-9.,])(?:{_NUMBER})")
_LAST_RUN = re.compile(r"(?s:.*(?<![-$0-9.,]))([-$0-9.,]+)")
"""The last of the stretches that a number's characters make up: each number lies within one."""


def _last_number(text: str) -> re.Match[str] | None:
    """Quickly, as the last stretch nearly always holds one."""
    stretch = _LAST_RUN.match(text)
    if stretch is None:
        return None
    return last_match(_ANYWHERE, text, stretch.start(1)) or last_match(_ANYWHERE, text)


class Task(msgspec.Struct, frozen=True):
    """How lm-evaluation-harness looks for an answer in a task."""

    strict: Callable[[str], re.Match[str] | None]
    flexible: Callable[[str], re.Match[str] | None] = _last_number

    def verdicts(self, text: str, gold: str) -> tuple[bool, bool]:
        """Whether what is found, strictly and flexibly, is `gold` after both are normalised."""
        return _matches(self.strict(text), gold), _matches(self.flexible(text), gold)


def _matches(found: re.Match[str] | None, gold: str) -> bool:
    return found is not None and _normalised(next(filter(None, found.groups()))) == _normalised(gold)


_GSM8K = Task(re.compile(r"#### (\-?[0-9\.\,]+)").search)
_COT = Task(re.compile(r"The answer is (\-?[0-9\.\,]+).").search)
_LLAMA = Task(partial(last_match, re.compile(rf"The final answer is ({_NUMBER})")))
TASKS = {"gsm8k": _GSM8K, "gsm8k_fixed": _GSM8K, "sample": _GSM8K, "gsm8k_cot": _COT, "gsm8k_cot_zeroshot": _COT}
TASKS["gsm8k_cot_llama"] = _LLAMA
"""By the first part of a protocol's name. `gsm8k_fixed` and `sample` are asked and answered as `gsm8k` is."""


def task_of(protocol: str) -> Task | None:
    """The task that a protocol corresponds to: `gsm8k-5shot-train` is `gsm8k`. None if there is none."""
    return TASKS.get(protocol.partition("-")[0])


def _normalised(answer: str) -> str:
    """As the harness does, which also removes all up to `#### ` and case: a pattern finds neither here."""
    return answer.replace(",", "").replace("$", "").removesuffix(".")


CUT = "length"
"""The finish_reason of an answer that ran into the token limit."""
_BEGINNING = 1_000
"""Characters at the start of an answer that is too long; they are kept, since an unclosed thought begins there."""
_Found = Found[str] | Found[Fraction]
REMEMBERED = 1 << 16
"""Grades that a grader keeps, of the latest answers: several runs over a dataset, in some tens of MB."""


def grade(
    text: str, item: ItemFacts, *, protocol: str, finish_reason: str | None, pattern: re.Pattern[str] | None = None
) -> Grade:
    """The grade of the content of one finished answer; `protocol` is a name as in the manifest.

    The middle of a text longer than MOST_GRADED is left out. With a `pattern` only its last match is the answer.

    An answer cut off by the token limit counts only by a marked answer on a line that was ended; without one it is
    `truncated`, as is a `<think>` that was never closed. Raises ValueError if `item.gold` is neither letter nor number
    and the item is not `exact`.
    """
    if len(text) > MOST_GRADED:
        text = f"{text[:_BEGINNING]}\n{text[_BEGINNING - MOST_GRADED :]}"
    task = None if item.exact or item.gold.isalpha() else task_of(protocol)
    strict, flexible = task.verdicts(text, item.gold) if task else (None, None)
    graded = Grade(outcome="truncated", strict=strict, flexible=flexible)
    cut = finish_reason == CUT
    content = after_thought(text)
    if open_thought(content):
        return graded
    if not content.strip():
        return graded if cut else replace(graded, outcome="empty")
    content, goes_on = answer_part(
        content,
        lambda part: _read(part, item, pattern, marked=True) is not None,
        lambda part: _read(part, item, pattern, marked=False) is not None,
    )
    content = content[-READ:]
    whole = content if goes_on or not cut else content[: content.rfind("\n") + 1]
    found = _read(whole, item, pattern, marked=cut)
    if found is not None:
        outcome: Outcome = "correct" if _is_right(found, item, whole) else "wrong"
        answer = found.value if isinstance(found.value, str) else notation_of(found.value)
        return replace(graded, outcome=outcome, answer=answer, extractor=found.extractor)
    if not cut:
        return replace(graded, outcome="unparsed")
    at_the_end = _read(content, item, pattern, marked=True)
    right = at_the_end is not None and _is_right(at_the_end, item, content)
    return replace(graded, correct_but_truncated=right)


class Grader:
    """Grades the answers of one run; an answer that was given before, to the same item, is not read again."""

    def __init__(self, items: Mapping[str, ItemFacts], protocol: str, answer_regex: str | None = None) -> None:
        self.items = items
        """By item id; an answer to any other item has no grade."""
        self._protocol = protocol
        self._pattern = compiled(answer_regex) if answer_regex is not None else None
        self._graded = lru_cache(REMEMBERED)(self._grade)

    def grade(self, item_id: str, text: str, finish_reason: str | None) -> Grade | None:
        """The grade of one finished answer; None for an item that is not to be graded."""
        return self._graded(item_id, text, finish_reason)

    def _grade(self, item_id: str, text: str, finish_reason: str | None) -> Grade | None:
        item = self.items.get(item_id)
        if item is None:
            return None
        return grade(text, item, protocol=self._protocol, finish_reason=finish_reason, pattern=self._pattern)


def _read(text: str, item: ItemFacts, pattern: re.Pattern[str] | None, *, marked: bool) -> _Found | None:
    lettered = item.gold.isalpha()
    if pattern is not None:
        match = last_found(text, pattern)
        if match is None:
            return None
        if item.exact:
            return found_words(match)
        return found_letter(match, item.options) if lettered else found_number(match)
    if item.exact:
        return read_words(text, marked=marked)
    return read_letter(text, item.options, marked=marked) if lettered else read_number(text, marked=marked)


def _is_right(found: _Found, item: ItemFacts, text: str) -> bool:
    accepted = {item.gold, *item.accepted}
    values: tuple[Any, ...] = (found.value, *found.others)
    if item.exact:
        return not {normal(gold) for gold in accepted}.isdisjoint(map(normal, values))
    if item.gold.isalpha():
        return not accepted.isdisjoint(values)
    if item.unit and other_unit(text, values, item.unit):
        return False
    return any(same_number(value, gold) for gold in accepted for value in values)
