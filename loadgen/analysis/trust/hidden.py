"""Hidden: what an accuracy alone does not show: answers cut off, unread, guessed from the last number, stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from loadgen.analysis.trust.answers import Answers, outcome_rate, share_of
from loadgen.workload.item import ItemFacts

MANY = 0.02
"""From this share on of answers cut off, or unread, a warning says so: it can hide a difference of 2 pp, which matters,
and does not show in a comparison where all targets suffer alike."""


def guessed_rate(answers: Answers) -> float | None:
    """Share of answers that were guessed: from the last number or letter, or an option's value, without a mark."""
    return share_of(answers, lambda answer: answer.guessed)


def stopped_rate(answers: Answers) -> float | None:
    """Share of answers that a stop string of the protocol ended, and not the model."""
    return share_of(answers, lambda answer: answer.stopped)


def flaw_warnings(items: Mapping[str, ItemFacts]) -> list[str]:
    """One sentence on how many questions are marked as flawed, and why; none where no question is."""
    flawed = sum(1 for facts in items.values() if facts.flaws)
    if not flawed:
        return []
    why = Counter(flaw for facts in items.values() for flaw in facts.flaws)
    kinds = ", ".join(f"{count} {flaw}" for flaw, count in why.most_common())
    return [
        f"{flawed} of {len(items)} questions are marked as flawed ({kinds}) and count in the accuracy; items.json "
        "names them"
    ]


def hidden_warnings(
    answers: Mapping[tuple[str, int], Answers], max_tokens: int | None, level: Callable[[int], str]
) -> list[str]:
    """One sentence on answers that were cut off, one on those that could not be read; none below `MANY`.

    `level` words a concurrency.
    """
    limit = "" if max_tokens is None else f" (now {max_tokens})"
    told = {
        "truncated": f"were cut off by the token limit and count as wrong: raise --max-tokens{limit}",
        "unparsed": "ended without an answer that could be read and count as wrong: look at their text in "
        f"requests.parquet, and raise --max-tokens{limit} where they end too early",
    }
    warnings = []
    for outcome, consequence in told.items():
        rates = {key: rate for key, found in answers.items() if (rate := outcome_rate(found, outcome)) is not None}
        many = sorted((key for key, rate in rates.items() if rate >= MANY), key=lambda key: -rates[key])
        if many:
            target, concurrency = many[0]
            others = f" (and {MANY:.0%} or more in {len(many) - 1} of {len(rates) - 1} others)" if many[1:] else ""
            warnings.append(
                f"{rates[many[0]]:.1%} of the answers of {target} at {level(concurrency)}{others} {consequence}"
            )
    return warnings
