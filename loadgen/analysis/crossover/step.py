"""Step: where a curve may jump between two measured batches, so that nothing can be interpolated there.

A server pads a batch up to the next size that it captured CUDA graphs for, and switches kernels at sizes of its own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.crossover.noise import ALPHA, Noise

STEEPER = 2.0
"""How many times as steep as both neighbours a bracket is that may hold a step."""
WIDEST = 2.5
"""Ratio of the batches at both ends of such a bracket: in a wider one a smooth curve can do all of its fall."""
MOST_SUGGESTED = 9


def shared_sizes(ours: Sequence[int] | None, theirs: Sequence[int] | None) -> tuple[int, ...] | None:
    """The batches that neither server pads, up to the largest that one of them does; None where either is not known.

    Given are the sizes of each one's CUDA graphs, none for a server without. Larger batches run without a graph.
    """
    if ours is None or theirs is None:
        return None
    largest = max((*ours, *theirs), default=0)
    return tuple(b for b in range(1, largest + 1) if all(not s or b > max(s) or b in s for s in (ours, theirs)))


def padded_from(sizes: Sequence[int], batch: float) -> float:
    """The largest of the sizes that is not above the batch; the batch itself where none is, or it is above all."""
    place = bisect_right(sizes, batch)
    return float(sizes[place - 1]) if 0 < place < len(sizes) else batch


def padded_to(sizes: Sequence[int], batch: float) -> float:
    """The smallest of the sizes that is not below the batch; the batch itself where none is."""
    place = bisect_left(sizes, batch)
    return float(sizes[place]) if place < len(sizes) else batch


def steep_brackets(batch: Floats, mean: Floats, noise: Noise) -> frozenset[int]:
    """The gaps of the grid (by their left point) in which the curve rises or falls far more steeply than in both
    neighbouring gaps.

    Proven over all gaps at 5%, and `STEEPER` times at least; not where a gap is wider than `WIDEST`. A gap at an end of
    the grid has one neighbour only, and cannot be told from a bend.
    """
    width = np.diff(np.log(batch))
    rise = np.diff(mean)
    slope = rise / width
    gaps = len(width)
    found = set()
    for gap in range(1, gaps - 1):
        if width[gap] > np.log(WIDEST):
            continue
        sides = [slope[gap - 1], slope[gap + 1]]
        if any(abs(slope[gap]) < STEEPER * abs(side) for side in sides):
            continue
        weights = np.zeros((2, len(mean)))
        for row, beside in enumerate((gap - 1, gap + 1)):
            weights[row, [gap + 1, gap]] += (1 / width[gap], -1 / width[gap])
            weights[row, beside + 1] -= 1 / width[beside]
            weights[row, beside] += 1 / width[beside]
        excess = np.abs(weights @ mean)
        if np.all(excess > noise.half_width(weights, ALPHA / (gaps - 2))):
            found.add(gap)
    return frozenset(found)


def suggested(low: int, high: int, sizes: Sequence[int] | None) -> str:
    """Concurrencies for `--concurrency` that show where between two batches the sign changes: the graphs' sizes there,
    each with the batch after it, else a geometric grid."""
    between = [size for size in sizes or () if low <= size <= high]
    pairs = sorted({b for size in between for b in (size, size + 1) if low <= b <= high} | {low, high})
    if len(between) < 2 or len(pairs) > MOST_SUGGESTED:
        grid = np.geomspace(low, high, min(5, high - low + 1))
        nearest = [min(between, key=lambda size: abs(size - b)) if len(between) > 2 else round(b) for b in grid]
        pairs = sorted({low, high, *nearest})
    return ",".join(map(str, pairs))
