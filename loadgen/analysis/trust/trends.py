"""DepthCurve: accuracy and loss by the number of reasoning steps (paper v2, Figure 7).

DepthTrend, StepSurvival: does the precision's loss grow with the number of reasoning steps?

TrustInvariance: does a precision answer as well at every batch size? (paper, Theorem 4.5, part 2: dT/dB = 0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
from scipy import optimize, special

from loadgen.analysis.celldata import Floats, Mask
from loadgen.analysis.estimate import CONFIDENCE, NORMAL_95
from loadgen.analysis.trust.accuracy import ALPHA, MARGIN, PairedAccuracy, paired_accuracy
from loadgen.analysis.trust.answers import Agreement, Answers, PairedItems, across, item_means, within
from loadgen.analysis.trust.significance import (
    RESAMPLES,
    changes,
    cochran_q,
    difference_interval,
    equivalence_p,
    resampled_means,
    trust_ratio,
)


class DepthTrend(msgspec.Struct, frozen=True, kw_only=True):
    """A precision x depth interaction test: robust score test, clustered by item."""

    z: float
    """Negative: deeper items lose more."""
    p: float
    """Two-sided."""


class StepSurvival(msgspec.Struct, frozen=True, kw_only=True):
    """Multiplicative model: each step of reasoning survives the precision with probability q, so that T_SI(k) = q^k."""

    q: float
    lo: float
    hi: float
    """95% interval. Above 1: the target does better the deeper the item."""


def absolute_trend(pairs: PairedItems, steps: Floats) -> DepthTrend | None:
    """Tests that the accuracy difference is the same at every depth; None if the items do not vary in it.

    The score of depth in a linear model of the item differences. Its reference distribution is that of swapping the
    two labels within items (sign flips), in the normal limit, about the mean difference.
    """
    if len(steps) == 0:
        return None
    return _score_test((steps - steps.mean()) * (pairs.difference - pairs.difference.mean()))


def relative_trend(pairs: PairedItems, steps: Floats) -> DepthTrend | None:
    """Tests that T_SI = accuracy / reference accuracy is the same at every depth; None if that cannot be asked.

    Each item's residual is target - T_SI x reference; its trend over depth, centred at the reference's correct answers
    so that estimating T_SI does not disturb it, is the score of depth in a log-link GEE of ratios. The reference's own
    accuracy may depend on depth in any way.
    """
    right, ours = float(pairs.reference.sum()), float(pairs.target.sum())
    if right == 0 or ours == 0:
        return None
    ratio = ours / right
    centre = float(steps @ pairs.reference) / right
    return _score_test((steps - centre) * (pairs.target - ratio * pairs.reference))


def step_survival(pairs: PairedItems, steps: Floats) -> StepSurvival | None:
    """Fits q: log T_SI linear in the steps, through 0; None unless both sides answered something of at least one step.

    Solves sum of k (target - q^k reference) = 0 over the items (quasi-likelihood, log link), whose root is unique, with
    a sandwich standard error of log q over items.
    """
    ours, theirs = float(steps @ pairs.target), float(steps @ pairs.reference)
    if ours <= 0 or theirs <= 0:
        return None

    def score(log_q: float) -> float:
        return float(steps @ (pairs.target - np.exp(log_q * steps) * pairs.reference))

    # q^k lies between q^1 and q^max, so log q lies between log(ours / theirs) and the same over any k >= 1
    edge = abs(math.log(ours / theirs)) + 1e-9
    log_q = float(optimize.brentq(score, -edge, edge))
    expected = np.exp(log_q * steps) * pairs.reference
    left = steps * (pairs.target - expected)
    half = NORMAL_95 * math.sqrt(float(left @ left)) / float(steps**2 @ expected)
    return StepSurvival(q=math.exp(log_q), lo=math.exp(log_q - half), hi=math.exp(log_q + half))


def _score_test(contributions: Floats) -> DepthTrend | None:
    spread = math.sqrt(float(contributions @ contributions))
    if spread == 0:
        return None
    z = float(contributions.sum()) / spread
    return DepthTrend(z=z, p=float(2 * special.ndtr(-abs(z))))


GSM8K_BUCKETS = ((1, 2), (3, 4), (5, 6), (7, None))
MATHQA_BUCKETS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, None))

Bucket = tuple[int, int | None]
"""First and last number of steps; None: no upper end."""


class DepthBucket(PairedAccuracy, frozen=True, kw_only=True):
    """Items of similar depth. Empty buckets are not listed."""

    steps: str
    """As `3-4` or `7+`."""
    relative_loss: float | None
    relative_loss_lo: float | None
    relative_loss_hi: float | None
    """1 - T_SI; negative where the target gained, None where the reference answered nothing."""


class DepthCurve(msgspec.Struct, frozen=True, kw_only=True):
    """A target against the reference by depth."""

    buckets: tuple[DepthBucket, ...]
    items_without_depth: int
    """In no figure here: the data set says nothing about their steps, or a number below the first bucket."""
    absolute: DepthTrend | None
    """Does the difference in accuracy change with depth?"""
    relative: DepthTrend | None
    """Does T_SI change with depth? The test of Figure 7's claim."""
    survival: StepSurvival | None


def depth_curve(
    pairs: PairedItems, steps: Mapping[str, int | None], buckets: Sequence[Bucket], *, seed: int = 0
) -> DepthCurve:
    """Buckets, both interaction tests and the per-step fit; `steps` maps item ids to their reasoning steps."""
    depth = np.array([np.nan if (known := steps.get(item)) is None else known for item in pairs.item_ids], dtype=float)
    usable = depth >= min(low for low, _ in buckets)
    masks = [(depth >= low) & (depth <= (np.inf if high is None else high)) for low, high in buckets]
    filled = [(bucket, mask) for bucket, mask in zip(buckets, masks, strict=True) if mask.any()]
    deep, at = _select(pairs, usable), depth[usable]
    return DepthCurve(
        buckets=tuple(_bucket(bucket, _select(pairs, mask), seed) for bucket, mask in filled),
        items_without_depth=int((~usable).sum()),
        absolute=absolute_trend(deep, at),
        relative=relative_trend(deep, at),
        survival=step_survival(deep, at),
    )


def _select(pairs: PairedItems, mask: Mask) -> PairedItems:
    kept = tuple(item for item, kept in zip(pairs.item_ids, mask, strict=True) if kept)
    return PairedItems(item_ids=kept, reference=pairs.reference[mask], target=pairs.target[mask])


def _bucket(bucket: Bucket, pairs: PairedItems, seed: int) -> DepthBucket:
    low, high = bucket
    ratio = trust_ratio(pairs, seed=seed)
    loss, loss_lo, loss_hi = (None if end is None else 1 - end for end in (ratio.value, ratio.hi, ratio.lo))
    return DepthBucket(
        **paired_accuracy(pairs, changes(pairs)),
        steps=f"{low}+" if high is None else f"{low}-{high}",
        relative_loss=loss,
        relative_loss_lo=loss_lo,
        relative_loss_hi=loss_hi,
    )


Invariance = Literal["equivalent", "different", "inconclusive"]


class BatchTrust(msgspec.Struct, frozen=True, kw_only=True):
    """One concurrency against the smallest, over the items answered at every one."""

    concurrency: int
    accuracy: float
    difference: float
    difference_lo: float
    difference_hi: float
    """Minus the smallest concurrency's accuracy, with the 90% interval of the equivalence test (at alpha .05)."""
    equivalence_p: float
    changed: Agreement
    """How many answers differ from those at the smallest concurrency."""


class TrustInvariance(msgspec.Struct, frozen=True, kw_only=True):
    """One precision over its concurrencies."""

    verdict: Invariance
    items: int
    margin: float
    q: float
    p: float
    """Cochran's test that all concurrencies answer equally well."""
    method: Literal["chi2", "permutation"]
    accuracy_range: float
    """Highest minus lowest accuracy."""
    smallest: int
    smallest_accuracy: float
    batches: tuple[BatchTrust, ...]
    """The other concurrencies, ascending."""
    noise: Agreement
    """The same between repeats at the same concurrency: the floor below which no change is the batch size's doing."""


class EffectRatio(msgspec.Struct, frozen=True, kw_only=True):
    """The theorem needs the precision to matter more than the batch size: a ratio well above 1."""

    precision_effect: float
    """|mean accuracy difference to the reference| over the concurrencies."""
    batch_effect: float
    """Highest minus lowest accuracy of the target over the concurrencies. Chance alone spreads it too, so the ratio
    errs on the low side."""
    ratio: float | None
    lo: float | None
    hi: float | None
    """95% percentiles of the bootstrap over items; None where accuracy did not move with B (hi: not bounded)."""


def trust_invariance(
    by_concurrency: Mapping[int, Answers], *, margin: float = MARGIN, alpha: float = ALPHA, seed: int = 0
) -> TrustInvariance | None:
    """Whether one precision answers as well at every concurrency; None with fewer than two concurrencies, or without an
    item that was answered at all of them.

    `different`: Cochran's Q rejects equality. `equivalent`: every concurrency is proven within +-margin of the smallest
    (each at alpha: all must pass, so no correction is due). Else `inconclusive`: not rejecting is not equality.
    """
    items, scores = _scores(by_concurrency)
    concurrencies = sorted(by_concurrency)
    if len(concurrencies) < 2 or not items:
        return None
    test = cochran_q(scores, seed=seed)
    smallest = by_concurrency[concurrencies[0]]
    batches = []
    for column, b in enumerate(concurrencies[1:], start=1):
        pairs = PairedItems(item_ids=items, reference=scores[:, 0], target=scores[:, column])
        seen = changes(pairs)
        lo, hi = difference_interval(seen, confidence=1 - 2 * alpha)
        batches.append(
            BatchTrust(
                concurrency=b,
                accuracy=float(pairs.target.mean()),
                difference=float(pairs.difference.mean()),
                difference_lo=lo,
                difference_hi=hi,
                equivalence_p=equivalence_p(seen, margin),
                changed=across(by_concurrency[b], smallest),
            )
        )
    verdict: Invariance = "inconclusive"
    if test.p <= alpha:
        verdict = "different"
    elif all(batch.equivalence_p <= alpha for batch in batches):
        verdict = "equivalent"
    means = scores.mean(axis=0)
    return TrustInvariance(
        verdict=verdict,
        items=len(items),
        margin=margin,
        q=test.q,
        p=test.p,
        method=test.method,
        accuracy_range=float(np.ptp(means)),
        smallest=concurrencies[0],
        smallest_accuracy=float(means[0]),
        batches=tuple(batches),
        noise=within(by_concurrency.values()),
    )


def effect_ratio(
    target: Mapping[int, Answers], reference: Mapping[int, Answers], *, resamples: int = RESAMPLES, seed: int = 0
) -> EffectRatio | None:
    """Precision effect over batch effect, on concurrencies and items that both sides have; None with fewer than two
    concurrencies or no such item."""
    concurrencies = sorted(set(target) & set(reference))
    sides = [side[b] for side in (target, reference) for b in concurrencies]
    items, scores = _scores(dict(enumerate(sides)))
    if len(concurrencies) < 2 or not items:
        return None
    k = len(concurrencies)

    def effects(means: Floats) -> tuple[Floats, Floats]:
        return np.abs((means[:, :k] - means[:, k:]).mean(axis=1)), np.ptp(means[:, :k], axis=1)

    precision, batch = effects(scores.mean(axis=0, keepdims=True))
    above, below = effects(resampled_means(scores, resamples=resamples, seed=seed))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(below > 0, above / below, np.inf)
    tail = 0.5 - CONFIDENCE / 2
    lo, hi = np.quantile(ratios, [tail, 1 - tail], method="nearest")
    return EffectRatio(
        precision_effect=float(precision[0]),
        batch_effect=float(batch[0]),
        ratio=float(precision[0] / batch[0]) if batch[0] else None,
        lo=float(lo) if np.isfinite(lo) else None,
        hi=float(hi) if np.isfinite(hi) else None,
    )


def _scores(by_key: Mapping[int, Answers]) -> tuple[tuple[str, ...], Floats]:
    """Items answered under every key, and their shares of correct answers: one column per key, ascending."""
    columns = [item_means(by_key[key]) for key in sorted(by_key)]
    if not columns:
        return (), np.empty((0, 0))
    items = tuple(item for item in columns[0] if all(item in column for column in columns[1:]))
    return items, np.array([[column[item] for column in columns] for item in items]).reshape(len(items), len(columns))
