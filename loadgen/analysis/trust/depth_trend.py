"""DepthTrend, StepSurvival: does the precision's loss grow with the number of reasoning steps?"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from scipy import optimize, special

from loadgen.analysis.celldata import Floats
from loadgen.analysis.intervals import NORMAL_95
from loadgen.analysis.trust.pairing import PairedItems


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
    difference = pairs.difference
    if len(steps) == 0:
        return None
    return _score_test((steps - steps.mean()) * (difference - difference.mean()))


def relative_trend(pairs: PairedItems, steps: Floats) -> DepthTrend | None:
    """Tests that T_SI = accuracy / reference accuracy is the same at every depth; None if that cannot be asked.

    Each item's residual is target - T_SI x reference; its trend over depth, centred at the reference's correct answers
    so that estimating T_SI does not disturb it, is the score of depth in a log-link GEE of ratios. The reference's own
    accuracy may depend on depth in any way.
    """
    right = float(pairs.reference.sum())
    if right == 0 or float(pairs.target.sum()) == 0:
        return None
    ratio = float(pairs.target.sum()) / right
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
    spread = math.sqrt(float((steps * (pairs.target - expected)) @ (steps * (pairs.target - expected))))
    half = NORMAL_95 * spread / float(steps**2 @ expected)
    return StepSurvival(q=math.exp(log_q), lo=math.exp(log_q - half), hi=math.exp(log_q + half))


def _score_test(contributions: Floats) -> DepthTrend | None:
    spread = math.sqrt(float(contributions @ contributions))
    if spread == 0:
        return None
    z = float(contributions.sum()) / spread
    return DepthTrend(z=z, p=float(2 * special.ndtr(-abs(z))))
