"""DepthCurve: accuracy and loss by the number of reasoning steps (paper v2, Figure 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats, Mask
from loadgen.analysis.intervals import wilson_interval
from loadgen.analysis.trust.depth_trend import DepthTrend, StepSurvival, absolute_trend, relative_trend, step_survival
from loadgen.analysis.trust.paired import PairedTable, paired_table
from loadgen.analysis.trust.pairing import PairedItems
from loadgen.analysis.trust.ratio import trust_ratio
from loadgen.analysis.trust.score import changes, difference_interval

GSM8K_BUCKETS = ((1, 2), (3, 4), (5, 6), (7, None))
MATHQA_BUCKETS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, None))

Bucket = tuple[int, int | None]
"""First and last number of steps; None: no upper end."""


class DepthBucket(msgspec.Struct, frozen=True, kw_only=True):
    """Items of similar depth; proportions 0 to 1 with 95% intervals. Empty buckets are not listed."""

    steps: str
    """As `3-4` or `7+`."""
    items: int
    accuracy: float
    accuracy_lo: float
    accuracy_hi: float
    reference_accuracy: float
    reference_accuracy_lo: float
    reference_accuracy_hi: float
    difference: float
    difference_lo: float
    difference_hi: float
    relative_loss: float | None
    relative_loss_lo: float | None
    relative_loss_hi: float | None
    """1 - T_SI; negative where the target gained, None where the reference answered nothing."""
    table: PairedTable


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
    masks = {bucket: _inside(depth, bucket) for bucket in buckets}
    listed = [_bucket(bucket, _select(pairs, mask), seed) for bucket, mask in masks.items() if mask.any()]
    deep, at = _select(pairs, usable), depth[usable]
    return DepthCurve(
        buckets=tuple(listed),
        items_without_depth=int((~usable).sum()),
        absolute=absolute_trend(deep, at),
        relative=relative_trend(deep, at),
        survival=step_survival(deep, at),
    )


def _inside(depth: Floats, bucket: Bucket) -> Mask:
    low, high = bucket
    inside: Mask = (depth >= low) & (depth <= (np.inf if high is None else high))
    return inside


def _select(pairs: PairedItems, mask: Mask) -> PairedItems:
    return PairedItems(
        item_ids=tuple(item for item, kept in zip(pairs.item_ids, mask, strict=True) if kept),
        reference=pairs.reference[mask],
        target=pairs.target[mask],
    )


def _bucket(bucket: Bucket, pairs: PairedItems, seed: int) -> DepthBucket:
    low, high = bucket
    accuracy_lo, accuracy_hi = wilson_interval(float(pairs.target.sum()), pairs.n)
    reference_lo, reference_hi = wilson_interval(float(pairs.reference.sum()), pairs.n)
    difference_lo, difference_hi = difference_interval(changes(pairs))
    ratio = trust_ratio(pairs, seed=seed)
    return DepthBucket(
        steps=f"{low}+" if high is None else f"{low}-{high}",
        items=pairs.n,
        accuracy=float(pairs.target.mean()),
        accuracy_lo=accuracy_lo,
        accuracy_hi=accuracy_hi,
        reference_accuracy=float(pairs.reference.mean()),
        reference_accuracy_lo=reference_lo,
        reference_accuracy_hi=reference_hi,
        difference=float(pairs.difference.mean()),
        difference_lo=difference_lo,
        difference_hi=difference_hi,
        relative_loss=_loss(ratio.value),
        relative_loss_lo=_loss(ratio.hi),
        relative_loss_hi=_loss(ratio.lo),
        table=paired_table(pairs),
    )


def _loss(ratio: float | None) -> float | None:
    return None if ratio is None else 1 - ratio
