"""TrustStudy: every comparison of a run's answers, against the reference, over batch sizes and by depth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal

import msgspec

from loadgen.analysis.trust.accuracy import AccuracyComparison, AccuracyJudgement, compare_accuracy, judge
from loadgen.analysis.trust.answers import Answers, GradedAnswer, ItemRequest, item_means, pair_items, pairing_refusal
from loadgen.analysis.trust.trends import (
    GSM8K_BUCKETS,
    MATHQA_BUCKETS,
    Bucket,
    DepthCurve,
    EffectRatio,
    TrustInvariance,
    depth_curve,
    effect_ratio,
    trust_invariance,
)
from loadgen.bounds import Count
from loadgen.processgroup import forked
from loadgen.record.cell import held_of
from loadgen.words import count, percent, percents
from loadgen.workload.item import ItemFacts


class TargetAnswers(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of a target at one concurrency, over its repeats."""

    target: str
    concurrency: int
    arrival: str | None = None
    """That of an open loop."""
    answers: Answers
    asked: Mapping[str, ItemRequest]

    @property
    def held(self) -> float:
        """B, or the rate of an open loop."""
        return held_of(self.concurrency, self.arrival)


class TrustTest(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of analysis.json's `trust`: a target against the reference at one concurrency.

    `t_si` is accuracy over the reference's, on the items that both answered, with its paired 95% interval.
    """

    target: str
    reference: str
    concurrency: Count
    arrival: str | None = None
    """That of an open loop."""
    verdict: Literal["worse", "better", "equivalent", "inconclusive", "refused"]
    sentence: str
    brief: str = ""
    """The difference with its interval, and the verdict."""
    t_si: float | None = None
    t_si_lo: float | None = None
    t_si_hi: float | None = None
    items: int | None = None
    lost: float | None = None
    won: float | None = None
    comparison: AccuracyComparison | None = None
    judgement: AccuracyJudgement | None = None

    @property
    def held(self) -> float:
        """B, or the rate of an open loop."""
        return held_of(self.concurrency, self.arrival)


class BatchTest(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `trust_invariance`: one target over its concurrencies."""

    target: str
    invariance: TrustInvariance
    effect_ratio: EffectRatio | None
    """Precision effect over batch effect; None for the reference."""


class DepthTest(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `depth`: a target against the reference by reasoning steps, all concurrencies together."""

    target: str
    reference: str
    measure: Literal["steps", "annotated_steps"]
    curve: DepthCurve


class TrustStudy(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's answers prove; every list may be empty."""

    trust: tuple[TrustTest, ...] = ()
    trust_invariance: tuple[BatchTest, ...] = ()
    depth: tuple[DepthTest, ...] = ()

    def test(self, target: str, held: float) -> TrustTest | None:
        """The test of one target at one concurrency, or rate; None for the reference."""
        found = (test for test in self.trust if (test.target, test.held) == (target, held))
        return next(found, None)


def study(
    sides: Sequence[TargetAnswers], facts: Mapping[str, ItemFacts], *, reference: str, processes: int = 1
) -> TrustStudy:
    """All comparisons of a run, one family for Holm's correction. Sides without any graded answer are left out."""
    sides = [side for side in sides if item_means(side.answers)]
    options = [len(item.options) for item in facts.values() if item.options]
    chance = len(options) / sum(options) if options else None
    targets: dict[str, dict[float, TargetAnswers]] = defaultdict(dict)
    for side in sides:
        targets[side.target][side.held] = side
    against = targets.get(reference, {})
    others = {name: by_b for name, by_b in targets.items() if name != reference}
    pairs = [(side, against[b]) for by_b in others.values() for b, side in by_b.items() if b in against]
    refusals = [pairing_refusal(ours.asked, theirs.asked) for ours, theirs in pairs]
    tasks: list[Callable[[], Any]] = [
        *(partial(_compared, *pair, refusal, chance) for pair, refusal in zip(pairs, refusals, strict=True)),
        *(partial(_over_batches, name, by_b, against, reference) for name, by_b in targets.items()),
        *(partial(_by_depth, name, by_b, against, facts, lettered=bool(options)) for name, by_b in others.items()),
    ]
    done = forked(tasks, processes)
    comparisons = list(islice(done, len(pairs)))
    return TrustStudy(
        trust=tuple(_tests(pairs, refusals, comparisons)),
        trust_invariance=tuple(test for test in islice(done, len(targets)) if test is not None),
        depth=tuple(test for tests in done for test in tests),
    )


def _compared(
    ours: TargetAnswers, theirs: TargetAnswers, refusal: str | None, chance: float | None
) -> AccuracyComparison | None:
    return None if refusal else compare_accuracy(ours.answers, theirs.answers, chance=chance)


def _tests(
    pairs: Sequence[tuple[TargetAnswers, TargetAnswers]],
    refusals: Sequence[str | None],
    comparisons: Sequence[AccuracyComparison | None],
) -> Iterable[TrustTest]:
    judged = iter(judge([comparison for comparison in comparisons if comparison is not None]))
    for (ours, theirs), refusal, comparison in zip(pairs, refusals, comparisons, strict=True):
        compared: dict[str, Any] = {"target": ours.target, "reference": theirs.target}
        compared |= {"concurrency": ours.concurrency, "arrival": ours.arrival}
        if comparison is None:
            yield TrustTest(**compared, verdict="refused", sentence=refusal or "", brief="not compared")
            continue
        judgement = next(judged)
        sentence, brief = _in_words(comparison, judgement)
        yield TrustTest(
            **compared,
            verdict=judgement.verdict,
            sentence=sentence,
            brief=brief,
            t_si=comparison.t_si.value,
            t_si_lo=comparison.t_si.lo,
            t_si_hi=comparison.t_si.hi,
            items=comparison.items,
            lost=comparison.table.lost,
            won=comparison.table.won,
            comparison=comparison,
            judgement=judgement,
        )


def _in_words(c: AccuracyComparison, judgement: AccuracyJudgement) -> tuple[str, str]:
    """The sentence and the brief of a test."""
    margin = f"{100 * judgement.margin:g} pp"
    verdict = f"equivalent within {margin}" if judgement.verdict == "equivalent" else judgement.verdict
    if judgement.verdict in ("worse", "better") and judgement.within_margin:
        verdict += f", by less than {margin}"
    ends = percents(c.difference_lo, c.difference_hi, unit="", sign=True)
    brief = f"{percent(c.difference, 1, unit=' pp', sign=True)} ({ends}): {verdict}"
    sentence = brief
    if judgement.more_items is not None:
        sentence += f", you need {judgement.more_items} more item{'s' * (judgement.more_items != 1)}"
    sentence += f"; {count(c.table.lost + c.table.won)} of {c.items} answers changed"
    sentence += f" ({count(c.table.lost)} lost, {count(c.table.won)} won)"
    if judgement.confounded:
        assert c.truncated_rate is not None and c.reference_truncated_rate is not None
        sentence += f"; confounded by length: {c.truncated_rate:.1%} truncated against {c.reference_truncated_rate:.1%}"
    return sentence, brief


def _over_batches(
    target: str, by_b: Mapping[float, TargetAnswers], against: Mapping[float, TargetAnswers], reference: str
) -> BatchTest | None:
    answers = {side.concurrency: side.answers for side in by_b.values() if side.arrival is None}
    invariance = trust_invariance(answers)
    if invariance is None:
        return None
    others = {side.concurrency: side.answers for side in against.values()}
    ratio = effect_ratio(answers, others) if target != reference and others else None
    return BatchTest(target=target, invariance=invariance, effect_ratio=ratio)


def _by_depth(
    target: str,
    by_b: Mapping[float, TargetAnswers],
    against: Mapping[float, TargetAnswers],
    facts: Mapping[str, ItemFacts],
    *,
    lettered: bool,
) -> list[DepthTest]:
    buckets = MATHQA_BUCKETS if lettered else GSM8K_BUCKETS
    shared = [b for b in by_b if b in against and pairing_refusal(by_b[b].asked, against[b].asked) is None]
    if not shared:
        return []
    pairs = pair_items(_together(by_b[b] for b in shared), _together(against[b] for b in shared))
    reference = against[shared[0]].target
    measures: dict[Literal["steps", "annotated_steps"], tuple[dict[str, int | None], Sequence[Bucket]]] = {
        "steps": ({item: fact.steps for item, fact in facts.items()}, buckets),
        "annotated_steps": ({item: fact.annotated_steps for item, fact in facts.items()}, ((0, 2), *buckets[1:])),
    }
    return [
        DepthTest(target=target, reference=reference, measure=measure, curve=depth_curve(pairs, steps, chosen))
        for measure, (steps, chosen) in measures.items()
        if any(known is not None for known in steps.values())
    ]


def _together(sides: Iterable[TargetAnswers]) -> Answers:
    """All answers to each item, whatever the concurrency: one cluster."""
    pooled: dict[str, list[GradedAnswer]] = defaultdict(list)
    for side in sides:
        for item, answered in side.answers.items():
            pooled[item].extend(answered)
    return pooled
