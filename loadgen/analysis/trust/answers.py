"""GradedAnswer: one answer; Answers: those of a target at one concurrency, by item, and what an accuracy hides of them.

Agreement: how often two answers to the same item are alike.

PairedItems and PairedLengths: the same items answered by a target and by the reference; and when they may not be
paired."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.celldata import Floats
from loadgen.analysis.estimate import CONFIDENCE, NORMAL_95
from loadgen.workload.item import ItemFacts


class GradedAnswer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one request was answered, or several of one repeat alike."""

    repeat: int
    times: int = 1
    """How many requests were answered so."""
    outcome: str
    """correct, wrong, unparsed, truncated, empty or error."""
    correct: bool
    guessed: bool = False
    """Read without a mark: the last number or letter, or an option's value."""
    stopped: bool = False
    """Ended by a stop string."""
    output_tokens: int | None = None
    text_sha: str | None = None
    """Digest of the answer's text, to tell identical texts; None where it is of no interest."""


Answers = Mapping[str, Sequence[GradedAnswer]]


def given(answers: Answers) -> dict[str, list[GradedAnswer]]:
    """The answers without failed requests (outcome `error`); items left without an answer are dropped.

    A failed request says nothing about the model: it makes a cell invalid when there are many, never less accurate.
    Truncated, empty and unparsed answers stay: they are answers, and wrong.
    """
    kept = {item: [answer for answer in answered if answer.outcome != "error"] for item, answered in answers.items()}
    return {item: answered for item, answered in kept.items() if answered}


def count(answered: Sequence[GradedAnswer]) -> int:
    """Requests that these answers count for."""
    return sum(answer.times for answer in answered)


def item_means(answers: Answers) -> dict[str, float]:
    """Share of correct answers (0 to 1) of every item that was answered."""
    return _shares(answers, lambda answer: answer.correct)


def item_lengths(answers: Answers) -> dict[str, float]:
    """Mean output tokens of every item that was answered and whose tokens the server reported."""
    means = {}
    for item, answered in given(answers).items():
        known = [(answer.output_tokens, answer.times) for answer in answered if answer.output_tokens is not None]
        if known:
            means[item] = sum(tokens * times for tokens, times in known) / sum(times for _, times in known)
    return means


def mean_output_tokens(answers: Answers) -> float | None:
    """Tokens per answer where the server reported them, each item weighing the same; None if it never did."""
    means = list(item_lengths(answers).values())
    return float(np.mean(means)) if means else None


def outcome_rate(answers: Answers, outcome: str) -> float | None:
    """Share of answers with this outcome (0 to 1), each item weighing the same; None without answers."""
    return _share(answers, lambda answer: answer.outcome == outcome)


def guessed_rate(answers: Answers) -> float | None:
    """Share of answers that were guessed: from the last number or letter, or an option's value, without a mark."""
    return _share(answers, lambda answer: answer.guessed)


def stopped_rate(answers: Answers) -> float | None:
    """Share of answers that a stop string of the protocol ended, and not the model."""
    return _share(answers, lambda answer: answer.stopped)


def _share(answers: Answers, chosen: Callable[[GradedAnswer], bool]) -> float | None:
    shares = list(_shares(answers, chosen).values())
    return float(np.mean(shares)) if shares else None


def _shares(answers: Answers, chosen: Callable[[GradedAnswer], bool]) -> dict[str, float]:
    """By item: the share of its `given` answers that are chosen."""
    shares = {}
    for item, answered in answers.items():
        some = asked = 0
        for answer in answered:
            if answer.outcome != "error":
                asked += answer.times
                some += answer.times * chosen(answer)
        if asked:
            shares[item] = some / asked
    return shares


MANY = 0.02
"""From this share on of answers cut off, or unread, a warning says so: it can hide a difference of 2 pp, which matters,
and does not show in a comparison where all targets suffer alike."""


def hidden_warnings(
    answers: Mapping[tuple[str, float], Answers], max_tokens: int | None, level: Callable[[float], str]
) -> list[str]:
    """One sentence on answers that were cut off, one on those that could not be read; none below `MANY`.

    `level` words a concurrency, or the rate of an open loop.
    """
    limit = "" if max_tokens is None else f" (now {max_tokens})"
    warnings = []
    for outcome, consequence in (
        ("truncated", f"were cut off by the token limit and count as wrong: raise --max-tokens{limit}"),
        ("unparsed", "ended without an answer that could be read and count as wrong: look at their text in "
         f"requests.parquet, and raise --max-tokens{limit} where they end too early"),
    ):  # fmt: skip
        rates = {key: rate for key, found in answers.items() if (rate := outcome_rate(found, outcome)) is not None}
        many = sorted((key for key, rate in rates.items() if rate >= MANY), key=lambda key: -rates[key])
        if many:
            target, b = many[0]
            others = f" (and {MANY:.0%} or more in {len(many) - 1} of {len(rates) - 1} others)" if many[1:] else ""
            warnings.append(f"{rates[many[0]]:.1%} of the answers of {target} at {level(b)}{others} {consequence}")
    return warnings


def flaw_warnings(items: Mapping[str, ItemFacts]) -> list[str]:
    """One sentence on how many questions are marked as flawed, and why; none where no question is."""
    why = Counter(flaw for facts in items.values() for flaw in facts.flaws)
    if not why:
        return []
    flawed = sum(1 for facts in items.values() if facts.flaws)
    kinds = ", ".join(f"{times} {flaw}" for flaw, times in why.most_common())
    return [
        f"{flawed} of {len(items)} questions are marked as flawed ({kinds}) and count in the accuracy; items.json "
        "names them"
    ]


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Means over items of the shares of their answer pairs, 0 to 1; None without a pair."""

    items: int
    flip_rate: float | None
    """One right, the other wrong."""
    text_identity_rate: float | None
    """The same text, of pairs whose texts are known."""


def across(answers: Answers, others: Answers) -> Agreement:
    """Each answer with each of the other side's answers to the same item."""
    ours, theirs = given(answers), given(others)
    flips, same = [], []
    for item, answered in ours.items():
        if item in theirs:
            (rights, texts), (other_rights, other_texts) = _counts(answered), _counts(theirs[item])
            changed = rights[True] * other_rights[False] + rights[False] * other_rights[True]
            flips.append(changed / (rights.total() * other_rights.total()))
            if texts and other_texts:
                equal = sum(times * other_texts[text] for text, times in texts.items())
                same.append(equal / (texts.total() * other_texts.total()))
    return _agreement(flips, same)


def within(sides: Iterable[Answers]) -> Agreement:
    """Answers with other answers of the same side: the noise floor of asking again. An item counts once per side."""
    flips, same = [], []
    for side in sides:
        for answered in given(side).values():
            rights, texts = _counts(answered)
            if rights.total() > 1:
                flips.append(rights[True] * rights[False] / math.comb(rights.total(), 2))
            if texts.total() > 1:
                alike = sum(math.comb(times, 2) for times in texts.values())
                same.append(alike / math.comb(texts.total(), 2))
    return _agreement(flips, same)


def _counts(answered: Sequence[GradedAnswer]) -> tuple[Counter[bool], Counter[str]]:
    """Requests by correctness, and by text where that is known."""
    rights: Counter[bool] = Counter()
    texts: Counter[str] = Counter()
    for answer in answered:
        rights[answer.correct] += answer.times
        if answer.text_sha is not None:
            texts[answer.text_sha] += answer.times
    return rights, texts


def _agreement(flips: Sequence[float], same: Sequence[float]) -> Agreement:
    return Agreement(
        items=len(flips),
        flip_rate=float(np.mean(flips)) if flips else None,
        text_identity_rate=float(np.mean(same)) if same else None,
    )


FEWEST_ITEMS = 20
"""Items that both sides must have completed before their mean lengths are compared: the error of a mean of so many is
known to about a sixth of itself, and Bonett and Price's interval was tested from this number on."""
Lengths = Mapping[str, float]
"""Item -> mean output tokens of its answers."""


class ItemRequest(msgspec.Struct, frozen=True, kw_only=True):
    """How an item was put to a server."""

    prompt_sha: str
    max_tokens: int | None
    sampling: Mapping[str, object]
    """Whatever else decides the answer: temperature, top_p, seed, stops, API, thinking."""


class PairedItems(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of correct answers (0 to 1), one entry per item that both sides answered.

    With one answer per item they are 0 or 1. With several (repeats, a window that cycles the data) the item stays the
    unit of everything: its answers are one cluster.
    """

    item_ids: tuple[str, ...]
    reference: Floats
    target: Floats

    @property
    def n(self) -> int:
        return len(self.item_ids)

    @property
    def difference(self) -> Floats:
        """Target minus reference of each item, -1 to 1."""
        return self.target - self.reference


class PairedLengths(PairedItems, frozen=True, kw_only=True):
    """Output tokens per answer of the items that both sides completed. A comparison of joules per query needs them: in
    a timed window the faster side completes more items, and the mean length of its own items is another one."""

    constant: bool = False
    """All answers of both sides have the same length, so that it does not matter which items were completed."""

    @property
    def refusal(self) -> str | None:
        """Why the lengths cannot be compared, without a subject; None if they can."""
        if self.constant or self.n >= FEWEST_ITEMS:
            return None
        completed = f"{self.n or 'no'} item{'s were' if self.n > 1 else ' was'}"
        return f"{completed} completed by both sides; a comparison of answer lengths needs {FEWEST_ITEMS}"

    @property
    def log_ratio(self) -> float:
        """Logarithm of target over reference of the mean lengths. Raises ValueError without an item."""
        if not self.n:
            raise ValueError("no item was completed by both sides")
        return math.log(float(self.target.mean()) / float(self.reference.mean()))

    @property
    def influence(self) -> Floats:
        """What each item adds to the error of `log_ratio` (delta method): the square root of the sum of squares is its
        standard error, widened so that the normal quantile gives Student's interval."""
        return influence(self.target) - influence(self.reference)

    @property
    def error(self) -> float:
        """Standard error of `log_ratio` that comes from the choice of items."""
        return math.sqrt(float((self.influence**2).sum()))


def influence(values: Floats) -> Floats:
    """What each item adds to the error of the logarithm of the mean of `values`, as in `PairedLengths.influence`."""
    n, mean = len(values), float(values.mean()) if len(values) else 0.0
    if n < 2 or mean == 0:
        return np.zeros(n)
    student = float(special.stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) / NORMAL_95
    return np.asarray((values / mean - 1) * student / math.sqrt(n * (n - 1)))


def pair_lengths(target: Lengths, reference: Lengths) -> PairedLengths | None:
    """Items whose length is known on both sides, in the reference's order; None if a side has no length at all."""
    if not target or not reference:
        return None
    constant = len({*target.values(), *reference.values()}) == 1
    shared = tuple(reference) if constant else tuple(item for item in reference if item in target)
    return PairedLengths(
        item_ids=shared,
        target=np.array([target.get(item, reference[item]) for item in shared]),
        reference=np.array([reference[item] for item in shared]),
        constant=constant,
    )


def paired(target: Mapping[str, float], reference: Mapping[str, float]) -> PairedItems | None:
    """Items that both answered, from their shares of correct answers, in the reference's order; None without one."""
    shared = tuple(item for item in reference if item in target)
    if not shared:
        return None
    return PairedItems(
        item_ids=shared,
        reference=np.array([reference[item] for item in shared]),
        target=np.array([target[item] for item in shared]),
    )


def pair_items(target: Answers, reference: Answers) -> PairedItems:
    """`paired` of the items' mean scores. Raises ValueError if there is no shared item."""
    pairs = paired(item_means(target), item_means(reference))
    if pairs is None:
        raise ValueError("target and reference share no answered item")
    return pairs


def pairing_refusal(target: Mapping[str, ItemRequest], reference: Mapping[str, ItemRequest]) -> str | None:
    """Why the two sides cannot be compared item by item, in one sentence; None if they can.

    Prompts, token limits and sampling settings must be equal on every shared item: otherwise a difference of answers
    is not a difference of precisions.
    """
    shared = [item for item in reference if item in target]
    if not shared:
        return "not compared: the two sides have no item in common; ask both the same items"
    for field, what in (("prompt_sha", "prompts"), ("max_tokens", "token limits"), ("sampling", "sampling settings")):
        differs = [item for item in shared if getattr(target[item], field) != getattr(reference[item], field)]
        if differs:
            first = differs[0]
            return (
                f"not compared: {what} differ on {len(differs)} of {len(shared)} items, as on {first} "
                f"({_shown(field, target[first], reference[first])}); ask both sides alike"
            )
    return None


def _shown(field: str, ours: ItemRequest, theirs: ItemRequest) -> str:
    if field == "prompt_sha":
        return f"prompt {ours.prompt_sha[:8]} against {theirs.prompt_sha[:8]}"
    if field == "max_tokens":
        return f"{ours.max_tokens} against {theirs.max_tokens} tokens"
    names = {**theirs.sampling, **ours.sampling}
    values = {name: (ours.sampling.get(name), theirs.sampling.get(name)) for name in names}
    return ", ".join(f"{name} {our} against {their}" for name, (our, their) in values.items() if our != their)
