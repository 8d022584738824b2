"""The verdicts that lm-evaluation-harness 0.4.13 gives for the same text, down to its oddities.

Patterns, which match counts, and the normalisation are those of its task files `gsm8k*.yaml` (versions 3 and 4): no
match is `[invalid]` and wrong, truncation is not looked at, and the comparison is one of strings.
"""

from __future__ import annotations

import re

import msgspec

from loadgen.workload.grading.notation import last_match

_NUMBER = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"


class Filter(msgspec.Struct, frozen=True):
    """The first or the last match of a pattern."""

    pattern: re.Pattern[str]
    last: bool

    def matches(self, text: str, gold: str) -> bool:
        """Whether what the pattern finds is `gold` after both are normalised."""
        found = last_match(self.pattern, text) if self.last else self.pattern.search(text)
        return found is not None and _normalised(next(filter(None, found.groups()))) == _normalised(gold)


class Task(msgspec.Struct, frozen=True):
    """The two filters of a task."""

    strict: Filter
    flexible: Filter = Filter(re.compile(rf"(?=[-$0-9.,])(?:{_NUMBER})"), last=True)


_GSM8K = Task(Filter(re.compile(r"#### (\-?[0-9\.\,]+)"), last=False))
_COT = Task(Filter(re.compile(r"The answer is (\-?[0-9\.\,]+)."), last=False))
_LLAMA = Task(Filter(re.compile(rf"The final answer is ({_NUMBER})"), last=True))
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
