"""Accuracy by reasoning depth: buckets, losses, the interaction tests, the per-step fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.genmod.cov_struct import Independence
from statsmodels.genmod.families import Gaussian
from statsmodels.genmod.generalized_estimating_equations import GEE
from trust_answers import paired, pairs

from loadgen.analysis.trust.answers import PairedItems
from loadgen.analysis.trust.trends import (
    GSM8K_BUCKETS,
    MATHQA_BUCKETS,
    absolute_trend,
    depth_curve,
    relative_trend,
    step_survival,
)

GSM8K_STEPS = {2: 326, 3: 371, 4: 297, 5: 175, 6: 87, 7: 40, 8: 20, 9: 2, 11: 1}
MATHQA_STEPS = {1: 254, 2: 458, 3: 660, 4: 463, 5: 357, 6: 280, 7: 179, 8: 131, 9: 66, 10: 39, 11: 31, 12: 27, 13: 21,
                14: 19}  # fmt: skip


def depths(counts: dict[int, int]) -> np.ndarray:
    return np.repeat(list(counts), list(counts.values())).astype(float)


def simulated(steps: np.ndarray, kept: np.ndarray, seed: int = 0) -> PairedItems:
    """A reference whose accuracy falls with depth; of its right answers the target keeps the share `kept`."""
    rng = np.random.default_rng(seed)
    reference = rng.random(len(steps)) < 0.85 ** (steps - 1)
    return paired(reference, reference & (rng.random(len(steps)) < kept))


@pytest.mark.parametrize(
    ("counts", "buckets", "sizes"),
    [
        (GSM8K_STEPS, GSM8K_BUCKETS, {"1-2": 326, "3-4": 668, "5-6": 262, "7+": 63}),
        (MATHQA_STEPS, MATHQA_BUCKETS, {"1-2": 712, "3-4": 1123, "5-6": 637, "7-8": 310, "9+": 203}),
    ],
)
def test_the_published_test_splits_fall_into_their_buckets(
    counts: dict[int, int], buckets: tuple[tuple[int, int | None], ...], sizes: dict[str, int]
) -> None:
    steps = depths(counts)
    both = simulated(steps, np.ones_like(steps))
    curve = depth_curve(both, dict(zip(both.item_ids, steps.astype(int).tolist(), strict=True)), buckets)
    assert {bucket.steps: bucket.items for bucket in curve.buckets} == sizes
    assert curve.items_without_depth == 0


def test_a_bucket_has_both_accuracies_and_both_losses() -> None:
    """60 of 100 right against 50: 10 pp, a sixth."""
    both = pairs(45, 15, 5, 35)
    bucket = depth_curve(both, dict.fromkeys(both.item_ids, 3), GSM8K_BUCKETS).buckets[0]
    assert (bucket.steps, bucket.items) == ("3-4", 100)
    assert (bucket.reference_accuracy, bucket.accuracy, bucket.difference) == pytest.approx((0.6, 0.5, -0.1))
    assert bucket.relative_loss == pytest.approx(1 / 6)
    assert bucket.relative_loss_lo is not None
    assert bucket.relative_loss_hi is not None
    assert bucket.relative_loss_lo < 1 / 6 < bucket.relative_loss_hi
    assert (bucket.accuracy_lo, bucket.accuracy_hi) == pytest.approx((0.4038, 0.5962), abs=5e-5)
    assert bucket.table.flips == 0.2


def test_items_of_unknown_depth_are_counted_not_placed() -> None:
    both = pairs(2, 1, 0, 1)
    curve = depth_curve(both, {"item-0": 2, "item-1": None, "item-2": 0}, GSM8K_BUCKETS)
    assert [bucket.items for bucket in curve.buckets] == [1]
    assert curve.items_without_depth == 3


def test_a_target_that_loses_nothing_survives_every_step() -> None:
    steps = depths(GSM8K_STEPS)
    both = simulated(steps, np.ones_like(steps))
    assert absolute_trend(both, steps) is None
    assert relative_trend(both, steps) is None
    fit = step_survival(both, steps)
    assert fit is not None
    assert fit.q == pytest.approx(1)


def test_a_loss_that_grows_with_depth_is_found_on_the_relative_scale() -> None:
    steps = depths(GSM8K_STEPS)
    both = simulated(steps, 0.9**steps)
    trend = relative_trend(both, steps)
    assert trend is not None
    assert trend.z < -4
    fit = step_survival(both, steps)
    assert fit is not None
    assert fit.lo < 0.9 < fit.hi
    assert fit.hi - fit.lo < 0.03


def test_a_steady_relative_loss_has_a_trend_in_points_only() -> None:
    """A tenth of the right answers lost at every depth: fewer points where fewer were right."""
    steps = np.repeat(depths(GSM8K_STEPS), 20)
    both = simulated(steps, np.full_like(steps, 0.9))
    absolute, relative = absolute_trend(both, steps), relative_trend(both, steps)
    assert absolute is not None
    assert relative is not None
    assert absolute.z > 4
    assert relative.p > 0.01


def test_the_absolute_trend_is_a_gee_clustered_by_item() -> None:
    """Two rows an item, identity link, precision x depth; its Wald z is nearly the score's."""
    steps = depths(GSM8K_STEPS)
    both = simulated(steps, 0.97**steps, seed=3)
    n = len(steps)
    precision, depth = np.repeat([0.0, 1.0], n), np.tile(steps - steps.mean(), 2)
    design = np.column_stack([np.ones(2 * n), precision, depth, precision * depth])
    fit = GEE(
        np.concatenate([both.reference, both.target]), design, groups=np.tile(np.arange(n), 2),
        family=Gaussian(), cov_struct=Independence(),
    ).fit()  # fmt: skip
    ours = absolute_trend(both, steps)
    assert ours is not None
    assert ours.z == pytest.approx(float(fit.tvalues[3]), abs=0.1)


def test_the_absolute_trend_agrees_with_swapping_labels_within_items() -> None:
    steps = depths(GSM8K_STEPS)[::4]
    rng = np.random.default_rng(2)
    reference = (rng.random(len(steps)) < 0.5).astype(float)
    both = paired(reference, np.where(rng.random(len(steps)) < 0.2, 1 - reference, reference))
    ours = absolute_trend(both, steps)
    assert ours is not None
    weights = (steps - steps.mean()) * both.difference
    signs = rng.choice([-1.0, 1.0], size=(20_000, len(steps)))
    p = (np.abs(signs @ weights) >= abs(weights.sum())).mean()
    assert ours.p == pytest.approx(p, abs=0.03)


def test_q_solves_its_equation_with_one_depth_in_closed_form() -> None:
    """T_SI 0.81 of items of two steps: q = 0.9, whatever else."""
    both = pairs(81, 19, 0, 100)
    fit = step_survival(both, np.full(200, 2.0))
    assert fit is not None
    assert fit.q == pytest.approx(0.9)
    error = math.sqrt(81 * 0.19**2 + 19 * 0.81**2) / 81 / 2
    assert fit.lo == pytest.approx(0.9 * math.exp(-1.96 * error), abs=1e-4)


def test_no_fit_without_a_right_answer() -> None:
    assert step_survival(pairs(0, 0, 5, 5), np.full(10, 2.0)) is None
    assert relative_trend(pairs(0, 0, 5, 5), np.full(10, 2.0)) is None
