"""AccuracyComparison: a target's answers against the reference's at one concurrency."""

from __future__ import annotations

import msgspec

from loadgen.analysis.intervals import wilson_interval
from loadgen.analysis.trust.answers import Answers, count, given, mean_output_tokens, outcome_rate
from loadgen.analysis.trust.paired import PairedTable, mcnemar_p, paired_table
from loadgen.analysis.trust.pairing import pair_items
from loadgen.analysis.trust.ratio import TrustRatio, trust_ratio
from loadgen.analysis.trust.score import Changes, changes, difference_interval


class AccuracyComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Proportions 0 to 1 over the items that both sides answered; intervals are 95%."""

    items: int
    unpaired_items: int
    """Answered by one side only, and in no other figure here."""
    answers: int
    """Graded answers of the target; more than `items` where items were asked again."""
    accuracy: float
    accuracy_lo: float
    accuracy_hi: float
    reference_accuracy: float
    reference_accuracy_lo: float
    reference_accuracy_hi: float
    """Wilson's intervals over items."""
    difference: float
    difference_lo: float
    difference_hi: float
    """Target minus reference."""
    changes: Changes
    """What the interval is made from, and the equivalence test."""
    table: PairedTable
    mcnemar_p: float
    t_si: TrustRatio
    t_si_above_chance: TrustRatio | None
    """None unless the score of guessing was given."""
    truncated_rate: float | None
    reference_truncated_rate: float | None
    output_tokens_mean: float | None
    reference_output_tokens_mean: float | None


def compare_accuracy(
    target: Answers, reference: Answers, *, chance: float | None = None, seed: int = 0
) -> AccuracyComparison:
    """Everything about two sides' answers except the verdict, which needs the whole family (`judge`).

    `chance`: what guessing scores (multiple choice). Raises ValueError if no item is shared: ask `pairing_refusal`.
    """
    pairs = pair_items(target, reference)
    ours = {item: target[item] for item in pairs.item_ids}
    theirs = {item: reference[item] for item in pairs.item_ids}
    accuracy_lo, accuracy_hi = wilson_interval(float(pairs.target.sum()), pairs.n)
    reference_lo, reference_hi = wilson_interval(float(pairs.reference.sum()), pairs.n)
    seen = changes(pairs)
    difference_lo, difference_hi = difference_interval(seen)
    return AccuracyComparison(
        items=pairs.n,
        unpaired_items=len(set(target) | set(reference)) - pairs.n,
        answers=sum(count(answered) for answered in given(ours).values()),
        accuracy=float(pairs.target.mean()),
        accuracy_lo=accuracy_lo,
        accuracy_hi=accuracy_hi,
        reference_accuracy=float(pairs.reference.mean()),
        reference_accuracy_lo=reference_lo,
        reference_accuracy_hi=reference_hi,
        difference=float(pairs.difference.mean()),
        difference_lo=difference_lo,
        difference_hi=difference_hi,
        changes=seen,
        table=paired_table(pairs),
        mcnemar_p=mcnemar_p(pairs, seed=seed),
        t_si=trust_ratio(pairs, seed=seed),
        t_si_above_chance=None if chance is None else trust_ratio(pairs, chance=chance, seed=seed),
        truncated_rate=outcome_rate(ours, "truncated"),
        reference_truncated_rate=outcome_rate(theirs, "truncated"),
        output_tokens_mean=mean_output_tokens(ours),
        reference_output_tokens_mean=mean_output_tokens(theirs),
    )
