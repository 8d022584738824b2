"""Price: the cells, starts and minutes that a search will take, before anything is measured.

Also the noise of an earlier run, by which they are known more closely."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from loadgen.analysis.estimate import NORMAL_95
from loadgen.search.goal import MOST_REPEATS, Goal
from loadgen.search.root import ALPHA, BEND, FEWEST, SPACING, Noise, quantile

STEEP, USUAL, GENTLE = 0.39, 0.25, 0.10
"""Slopes of the log-advantage per factor e of the batch, at B*: the quartiles of the cost models of bench/find.py."""
USUAL_NOISE = 0.016
"""Standard deviation of a repeat's log-advantage where none is known: starts differ by 1%, cells by 0.5%."""


class Range(msgspec.Struct, frozen=True):
    """A figure that depends on the curve: where it is steep, usual, and gentle at B*."""

    low: float
    typical: float
    high: float


class Price(msgspec.Struct, frozen=True):
    """Of all sides together."""

    repeats: Range
    """Fresh starts of each side beside B*."""
    cells: Range
    starts: Range
    minutes: Range


def repeats_for(goal: Goal, slope: float, noise: Noise | None) -> int:
    """How many repeats bring the interval of B* to the goal, at that slope; as many as a search may have, if fewer.

    Half of the interval is t s / (slope sqrt(n)) + bend, with Student's t of the degrees that n repeats have, and those
    of the known noise.
    """
    room = goal.reach - BEND * math.log(SPACING) ** 2
    sd, degrees, fewest = (noise.sd, noise.degrees, 2) if noise else (USUAL_NOISE, 0.0, FEWEST)
    for n in range(fewest, MOST_REPEATS):
        if quantile(ALPHA, degrees + n - 2) * sd / (slope * math.sqrt(n)) <= room:
            return n
    return MOST_REPEATS


def expected(goal: Goal, sides: Sequence[str]) -> Price:
    """What a search costs that finds one crossing of each target and metric, each at batches of its own."""
    pairs = (len(sides) - 1) * len(goal.metrics)
    noises = [goal.noise.get(metric) for metric in goal.metrics]
    n = [max(repeats_for(goal, slope, noise) for noise in noises) for slope in (STEEP, USUAL, GENTLE)]
    cells = [len(sides) * len(goal.grid) + 2 * pairs * repeats for repeats in n]
    starts = [len(sides) * (1 + repeats) for repeats in n]
    minutes = [(goal.start_s * s + goal.cell_s * c) / 60 for s, c in zip(starts, cells, strict=True)]
    if goal.most_s is not None:
        minutes = [min(each, goal.most_s / 60) for each in minutes]
    return Price(Range(*n), Range(*cells), Range(*starts), Range(*minutes))


def noise_of(cells: pd.DataFrame, target: str, reference: str, metric: str) -> Noise | None:
    """The noise of one repeat's log-advantage, from the repeats of a run; None where no B has two of them.

    `cells`: valid rows of cells.csv. The variance about the mean of each B, all B together. What the cells of one start
    share counts as one observation: the degrees of freedom are the repeats, less one for each group of B that have
    repeats in common (a grid has one group, a search one for each B beside B*).
    """
    columns = ["concurrency", "repeat", metric]
    sides = [cells.loc[cells["target"] == side, columns].dropna() for side in (target, reference)]
    both = sides[0].merge(sides[1], on=["concurrency", "repeat"], suffixes=("", "_reference"))
    both = both[(both[metric] > 0) & (both[f"{metric}_reference"] > 0)]
    counts = Counter(both["concurrency"])
    both = both[both["concurrency"].map(counts) > 1]
    if both.empty:
        return None
    logs = np.log(both[metric].to_numpy(float) / both[f"{metric}_reference"].to_numpy(float))
    b, repeat = (pd.factorize(both[column])[0] for column in ("concurrency", "repeat"))
    rest = float(((logs - (np.bincount(b, logs) / np.bincount(b))[b]) ** 2).sum())
    batches, repeats = int(b.max()) + 1, int(repeat.max()) + 1
    links = coo_array((np.ones(len(b)), (b, batches + repeat)), shape=(batches + repeats,) * 2)
    groups = int(connected_components(links, directed=False)[0])
    return Noise(math.sqrt(rest / (len(both) - batches)), float(repeats - groups)) if rest > 0 else None


def stated_start_sd(noise: Noise) -> float:
    """What `--start-sd` has to say, so that an interval is as wide as with this noise and its degrees of freedom."""
    return noise.sd / math.sqrt(2) * quantile(0.05, noise.degrees) / NORMAL_95
