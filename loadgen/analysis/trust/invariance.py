"""TrustInvariance: does a precision answer as well at every batch size? (paper, Theorem 4.5, part 2: dT/dB = 0)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.intervals import CONFIDENCE
from loadgen.analysis.trust.agreement import Agreement, across, within
from loadgen.analysis.trust.answers import Answers, item_means
from loadgen.analysis.trust.cochran import cochran_q
from loadgen.analysis.trust.pairing import PairedItems
from loadgen.analysis.trust.planning import ALPHA, MARGIN
from loadgen.analysis.trust.resample import RESAMPLES, resampled_means
from loadgen.analysis.trust.score import changes, difference_interval, equivalence_p


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

    verdict: Literal["equivalent", "different", "inconclusive"]
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
    """The verdict on one precision; None with fewer than two concurrencies or no item answered at all of them.

    `different`: Cochran's Q rejects equality. `equivalent`: every concurrency is proven within +-margin of the smallest
    (each at alpha: all must pass, so no correction is due). Else `inconclusive`: not rejecting is not equality.
    """
    items, scores = _scores(by_concurrency)
    concurrencies = sorted(by_concurrency)
    if len(concurrencies) < 2 or not items:
        return None
    test = cochran_q(scores, seed=seed)
    smallest = by_concurrency[concurrencies[0]]
    batches = tuple(
        _batch(b, items, scores[:, 0], scores[:, column], across(by_concurrency[b], smallest), margin, alpha)
        for column, b in enumerate(concurrencies[1:], start=1)
    )
    verdict: Literal["equivalent", "different", "inconclusive"] = "inconclusive"
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
        batches=batches,
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


def _batch(
    concurrency: int,
    items: tuple[str, ...],
    first: Floats,
    this: Floats,
    changed: Agreement,
    margin: float,
    alpha: float,
) -> BatchTrust:
    pairs = PairedItems(item_ids=items, reference=first, target=this)
    seen = changes(pairs)
    lo, hi = difference_interval(seen, confidence=1 - 2 * alpha)
    return BatchTrust(
        concurrency=concurrency,
        accuracy=float(this.mean()),
        difference=float(pairs.difference.mean()),
        difference_lo=lo,
        difference_hi=hi,
        equivalence_p=equivalence_p(seen, margin),
        changed=changed,
    )
