"""AccuracyComparison: a target's answers against the reference's at one concurrency.

AccuracyJudgement: worse, better, equivalent, or inconclusive and how many more items would decide it.

Planning: how many items a claim about accuracy needs, and what a number of items can show. Proportions are 0 to 1
(0.01 = 1 pp). `discordance` is the share of items whose correctness changes between the two sides. McNemar's power is
exact, that of equivalence a normal approximation of the score test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from scipy import optimize, special

from loadgen.analysis.celldata import Floats
from loadgen.analysis.estimate import CONFIDENCE, Estimate, wilson_interval
from loadgen.analysis.trust.answers import (
    Answers,
    PairedItems,
    count,
    given,
    mean_output_tokens,
    outcome_rate,
    pair_items,
)
from loadgen.analysis.trust.significance import (
    RESAMPLES,
    Changes,
    PairedTable,
    TrustRatio,
    changes,
    difference_interval,
    equivalence_p,
    holm,
    mcnemar_p,
    paired_table,
    resampled_means,
    supposed_variance,
    trust_ratio,
)


class PairedAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Proportions 0 to 1 over the items that both sides answered; intervals are 95%."""

    items: int
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
    """Target minus reference; Tango's interval."""
    table: PairedTable


def paired_accuracy(pairs: PairedItems, seen: Changes) -> dict[str, Any]:
    """The fields of PairedAccuracy."""
    accuracy_lo, accuracy_hi = wilson_interval(float(pairs.target.sum()), pairs.n)
    reference_lo, reference_hi = wilson_interval(float(pairs.reference.sum()), pairs.n)
    difference_lo, difference_hi = difference_interval(seen)
    return {
        "items": pairs.n,
        "accuracy": float(pairs.target.mean()),
        "accuracy_lo": accuracy_lo,
        "accuracy_hi": accuracy_hi,
        "reference_accuracy": float(pairs.reference.mean()),
        "reference_accuracy_lo": reference_lo,
        "reference_accuracy_hi": reference_hi,
        "difference": float(pairs.difference.mean()),
        "difference_lo": difference_lo,
        "difference_hi": difference_hi,
        "table": paired_table(pairs),
    }


class AccuracyComparison(PairedAccuracy, frozen=True, kw_only=True):
    """Everything about the answers of a target and of the reference at one concurrency, but the judgement."""

    unpaired_items: int
    """Answered by one side only, and in no other figure here."""
    answers: int
    """Graded answers of the target; more than `items` where items were asked again."""
    changes: Changes
    """What the interval is made from, and the equivalence test."""
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
    """Compares two sides' answers; the judgement needs the whole family (`judge`).

    `chance`: what guessing scores (multiple choice). Raises ValueError if no item is shared: ask `pairing_refusal`.
    """
    pairs = pair_items(target, reference)
    ours, theirs = ({item: side[item] for item in pairs.item_ids} for side in (target, reference))
    seen = changes(pairs)
    return AccuracyComparison(
        **paired_accuracy(pairs, seen),
        unpaired_items=len(set(target) | set(reference)) - pairs.n,
        answers=sum(count(answered) for answered in given(ours).values()),
        changes=seen,
        mcnemar_p=mcnemar_p(pairs, seed=seed),
        t_si=trust_ratio(pairs, seed=seed),
        t_si_above_chance=None if chance is None else trust_ratio(pairs, chance=chance, seed=seed),
        truncated_rate=outcome_rate(ours, "truncated"),
        reference_truncated_rate=outcome_rate(theirs, "truncated"),
        output_tokens_mean=mean_output_tokens(ours),
        reference_output_tokens_mean=mean_output_tokens(theirs),
    )


MARGIN = 0.02
"""Default equivalence margin, 2 pp: below the smallest loss that the paper claims (2.28 pp on GSM8K), and as narrow as
the whole of GSM8K (1319 items) can prove while 6% of the answers flip."""
ALPHA = 0.05
POWER = 0.8
MANY_CHANGES = 1000
"""Changed items from which on the normal approximation is good to 0.3% of the items."""


def items_for_difference(delta: float, discordance: float, *, power: float = POWER, alpha: float = ALPHA) -> int:
    """Fewest items for which exact McNemar, two-sided, finds an accuracy difference `delta` with this power.

    From `MANY_CHANGES` expected changes on by Connor's normal approximation (1987, eq. 3) with a correction for
    continuity: lost - won must exceed the normal limit by 1 on average. Without it the power is up to 4 points less.
    """
    delta = abs(delta)
    spread = math.sqrt(discordance) * _z(1 - alpha / 2) + math.sqrt(discordance - delta**2) * _z(power)
    low, high = 0, math.ceil(((spread + math.sqrt(spread**2 + 4 * delta)) / (2 * delta)) ** 2)
    if high * discordance > MANY_CHANGES:
        return high
    while power_of_mcnemar(high, delta, discordance, alpha=alpha) < power:
        low, high = high, math.ceil(1.1 * high)
    while high - low > 1:
        middle = (low + high) // 2
        enough = power_of_mcnemar(middle, delta, discordance, alpha=alpha) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def fewest_changes(alpha: float = ALPHA) -> int:
    """Changed items with which exact McNemar can prove a difference at all: if all changed one way, p is 2 / 2^changes,
    so 1 + log2(1 / alpha)."""
    return math.ceil(1 + math.log2(1 / alpha) - 1e-9)


def detectable_difference(
    items: int, discordance: float, *, power: float = POWER, alpha: float = ALPHA
) -> float | None:
    """Smallest accuracy difference that `items` show with this power; None if not even the largest possible one,
    which is `discordance`."""

    def surplus(delta: float) -> float:
        return power_of_mcnemar(items, delta, discordance, alpha=alpha) - power

    if surplus(discordance) < 0:
        return None
    return float(optimize.brentq(surplus, 0.0, discordance))


def power_of_mcnemar(items: int, delta: float, discordance: float, *, alpha: float = ALPHA) -> float:
    """Exact power of the exact two-sided McNemar test: over the number of changed items (binomial; those within nine
    standard deviations) and, given that, over how many of them were lost (binomial)."""
    middle, reach = items * discordance, 9 * math.sqrt(items * discordance) + 9
    changed = np.arange(max(0, math.floor(middle - reach)), min(items, math.ceil(middle + reach)) + 1)
    weight = special.bdtr(changed, items, discordance)
    weight = np.diff(weight, prepend=special.bdtr(changed[0] - 1, items, discordance) if changed[0] else 0.0)
    limit = np.minimum(np.floor(changed / 2 + np.sqrt(changed) / 2 * _z(alpha / 2)) + 1, changed)
    while np.any(over := (limit >= 0) & (special.bdtr(np.maximum(limit, 0), changed, 0.5) > alpha / 2)):
        limit = limit - over
    share = (discordance + abs(delta)) / (2 * discordance)
    some = limit >= 0
    rejected = sum(special.bdtr(np.maximum(limit, 0), changed, side) for side in (share, 1 - share))
    return float(weight[some] @ np.asarray(rejected)[some])


def items_for_equivalence(
    margin: float, discordance: float, *, delta: float = 0.0, power: float = POWER, alpha: float = ALPHA
) -> int:
    """Items for which two one-sided score tests prove |difference| < `margin` when the true one is `delta` (Nam 1997).

    The test's variance is the one at the margin, which is larger than the true one. Raises ValueError if delta is not
    inside the margin: no number of items proves that then.
    """
    if abs(delta) >= margin:
        raise ValueError(f"a difference of {delta} is not inside the margin of {margin}")
    top = 1.0
    while _power_at_root(math.sqrt(top), margin, discordance, delta, alpha) < power:
        top *= 2
    root = optimize.brentq(
        lambda root: _power_at_root(root, margin, discordance, delta, alpha) - power, 0.0, math.sqrt(top), xtol=1e-9
    )
    return max(1, math.ceil(float(root) ** 2))


def power_of_equivalence(
    items: int, margin: float, discordance: float, *, delta: float = 0.0, alpha: float = ALPHA
) -> float:
    """Chance (normal approximation) that `items` prove |difference| < `margin` when the true one is `delta`."""
    return max(0.0, _power_at_root(math.sqrt(items), margin, discordance, delta, alpha))


def provable_margin(items: int, discordance: float, *, power: float = POWER, alpha: float = ALPHA) -> float:
    """Smallest equivalence margin that `items` prove with this power when there is no difference."""

    def surplus(margin: float) -> float:
        return _power_at_root(math.sqrt(items), margin, discordance, 0.0, alpha) - power

    return float(optimize.brentq(surplus, 1e-9, 1 - 1e-9)) if surplus(1 - 1e-9) > 0 else 1.0


def minutes_at_concurrency(items: int, concurrency: int, seconds_per_query: float) -> float:
    """Minutes of one side to answer every item once: `concurrency` at a time, each for `seconds_per_query`."""
    return max(items / concurrency, 1.0) * seconds_per_query / 60


def minutes_at_rate(items: int, tokens_per_s: float, tokens_per_answer: float) -> float:
    """Minutes of one side to answer every item once, from the server's output rate."""
    return items * tokens_per_answer / tokens_per_s / 60


def _power_at_root(root: float, margin: float, discordance: float, delta: float, alpha: float) -> float:
    """Power at root^2 items; negative where even the sum of both tails does not reach it."""
    true = math.sqrt(discordance - delta**2)
    tails = []
    for sign in (-1, 1):
        expected = Changes(n=1, won=(discordance - sign * delta) / 2, lost=(discordance + sign * delta) / 2)
        supposed = math.sqrt(supposed_variance(expected, -margin))
        tails.append(((margin - sign * delta) * root - _z(1 - alpha) * supposed) / true)
    return float(special.ndtr(tails[0]) + special.ndtr(tails[1])) - 1


def _z(p: float) -> float:
    return float(special.ndtri(p))


TRUNCATION_TOLERANCE = 0.01
"""Truncation rates further apart than 1 pp: the comparison is (also) one of answer lengths."""
Judged = Literal["worse", "better", "equivalent", "inconclusive"]


class AccuracyJudgement(msgspec.Struct, frozen=True, kw_only=True):
    """What the data prove about one comparison of a family."""

    verdict: Judged
    margin: float
    """The equivalence margin, as a proportion."""
    within_margin: bool
    """The difference is proven smaller than the margin; with worse or better: real, but small."""
    p: float
    """McNemar's, Holm-adjusted over the family."""
    equivalence_p: float
    """That of the two one-sided tests, Holm-adjusted over the family."""
    more_items: int | None
    """With so many more items the answer would be clear at 80% power, if difference and flips stay what they are; None
    unless inconclusive."""
    detectable: float | None
    """Smallest difference (proportion) that these items show at 80% power with the flips seen; None if none."""
    confounded: bool
    """Truncation rates differ by more than 1 pp."""


def judge(
    comparisons: Sequence[AccuracyComparison], *, margin: float = MARGIN, alpha: float = ALPHA
) -> list[AccuracyJudgement]:
    """One per comparison, in order; the comparisons are one family for Holm's correction.

    A proven difference is `worse` or `better` even if it is smaller than the margin. At most `alpha` of families
    without any real difference get a false `worse` or `better`; at most `alpha` of those without any difference inside
    the margin get a false `equivalent`.
    """
    differences = holm([comparison.mcnemar_p for comparison in comparisons])
    equivalences = holm([equivalence_p(comparison.changes, margin) for comparison in comparisons])
    alone = alpha / max(len(comparisons), 1)
    judged = []
    for comparison, p, p_equivalent in zip(comparisons, differences, equivalences, strict=True):
        verdict: Judged = "equivalent" if p_equivalent <= alpha else "inconclusive"
        if p <= alpha:
            verdict = "worse" if comparison.difference < 0 else "better"
        truncated, reference_truncated = comparison.truncated_rate, comparison.reference_truncated_rate
        judged.append(
            AccuracyJudgement(
                verdict=verdict,
                margin=margin,
                within_margin=p_equivalent <= alpha,
                p=p,
                equivalence_p=p_equivalent,
                more_items=_more_items(comparison, margin, alone) if verdict == "inconclusive" else None,
                detectable=detectable_difference(
                    comparison.items, comparison.changes.supposed_discordance, alpha=alone
                ),
                confounded=truncated is not None
                and reference_truncated is not None
                and abs(truncated - reference_truncated) > TRUNCATION_TOLERANCE,
            )
        )
    return judged


def _more_items(comparison: AccuracyComparison, margin: float, alpha: float) -> int:
    """Up to the cheaper proof: of the difference seen, or of its being smaller than the margin."""
    delta, discordance = abs(comparison.difference), comparison.changes.supposed_discordance
    ways = []
    if delta > 0:
        missing = math.ceil(fewest_changes(alpha) - comparison.changes.won - comparison.changes.lost)
        ways.append(max(items_for_difference(delta, discordance, alpha=alpha), comparison.items + missing))
    if delta < margin:
        ways.append(items_for_equivalence(margin, discordance, delta=delta, alpha=alpha))
    return max(1, min(ways) - comparison.items)


def correct_energy(
    energy_per_query_j: float,
    scores: Floats,
    *,
    relative_error: float | None = None,
    degrees: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate | None:
    """Joules per correct answer: energy per query over accuracy; None where nothing was answered correctly. `scores`
    are the items' shares of correct answers.

    `relative_error` is the standard error of the mean energy on the log scale (sd of the repeats' logarithms / sqrt
    (repeats)) with `degrees` = repeats - 1 degrees of freedom, None if known from elsewhere (normal). Its draws
    multiply an item bootstrap of the accuracy. Without it, or where over 2.5% of the resamples have nothing right,
    there is no interval.
    """
    accuracy = float(scores.mean()) if len(scores) else 0.0
    if accuracy == 0:
        return None
    value = energy_per_query_j / accuracy
    tail = 0.5 - CONFIDENCE / 2
    accuracies = resampled_means(scores[:, None], resamples=resamples, seed=seed)[:, 0]
    if relative_error is None or (accuracies == 0).mean() >= tail:
        return Estimate(value=value)
    rng = np.random.default_rng([seed, 1])
    noise = rng.standard_normal(resamples) if degrees is None else rng.standard_t(degrees, resamples)
    usable = accuracies > 0
    with np.errstate(over="ignore"):  # two repeats: Student's t with one degree of freedom has no bounds to speak of
        draws = energy_per_query_j * np.exp(relative_error * noise[usable]) / accuracies[usable]
    lo, hi = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value=value, lo=float(lo), hi=float(hi))
