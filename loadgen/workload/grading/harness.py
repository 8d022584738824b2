"""The verdicts that lm-evaluation-harness 0.4.13 gives for the same text, down to its oddities.

Patterns, which match counts, and the normalisation are those of its task files `gsm8k*.yaml` (versions 3 and 4): no
match is `[invalid]` and wrong, truncation is not looked at, and the comparison is one of strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import msgspec

from loadgen.workload.grading.notation import last_match

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


class Filter(msgspec.Struct, frozen=True):
    """How an answer is looked for in a text."""

    find: Callable[[str], re.Match[str] | None]

    def matches(self, text: str, gold: str) -> bool:
        """Whether what is found is `gold` after both are normalised."""
        found = self.find(text)
        return found is not None and _normalised(next(filter(None, found.groups()))) == _normalised(gold)


class Task(msgspec.Struct, frozen=True):
    """The two filters of a task."""

    strict: Filter
    flexible: Filter = Filter(_last_number)


_GSM8K = Task(Filter(re.compile(r"#### (\-?[0-9\.\,]+)").search))
_COT = Task(Filter(re.compile(r"The answer is (\-?[0-9\.\,]+).").search))
_LLAMA = Task(Filter(partial(last_match, re.compile(rf"The final answer is ({_NUMBER})"))))
TASKS = {
    "gsm8k": _GSM8K,
    "gsm8k_fixed": _GSM8K,
    "gsm8k_cot": _COT,
    "gsm8k_cot_zeroshot": _COT,
    "gsm8k_cot_llama": _LLAMA,
    "sample": _GSM8K,
}
"""By the first part of a protocol's name. `gsm8k_fixed` and `sample` are asked and answered as `gsm8k` is."""


def task_of(protocol: str) -> Task | None:
    """The task that a protocol is the counterpart of: `gsm8k-5shot-train` is `gsm8k`. None if there is none."""
    return TASKS.get(protocol.partition("-")[0])


def _normalised(answer: str) -> str:
    """Of what a pattern can find; the harness also removes all up to `#### ` and case, of which there is none here."""
    return answer.replace(",", "").replace("$", "").removesuffix(".")
