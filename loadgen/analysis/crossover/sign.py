"""Sign: where on the grid the target is proven better or worse."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.crossover.curve import PairedCurve
from loadgen.analysis.crossover.noise import ALPHA, Noise


class GridPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison at one measured batch."""

    concurrency: int
    """As asked for."""
    batch: float
    """Measured: the geometric mean of both sides' running batches."""
    repeats: int
    target_value: float | None = None
    """The two figures that are compared, in the metric's unit: geometric means over the repeats of both sides. Joules
    per query and per correct answer are over the items that both completed, so they differ from summary.csv's."""
    reference_value: float | None = None
    log_advantage: float
    """Mean over repeats of +-log(target / reference); above 0 the target is better."""
    lo: float | None
    """95% interval of this point alone; None if there is no measure of noise."""
    hi: float | None
    p: float | None
    """Two-sided, adjusted over the grid (`hochberg`)."""
    sign: Literal["wins", "loses", "open"]
    """`open`: p is above 5%, or there is none."""

    @property
    def proven(self) -> int:
        """1 where the target is proven better, -1 where worse, else 0."""
        return {"wins": 1, "loses": -1, "open": 0}[self.sign]


def grid_points(curve: PairedCurve, noise: Noise | None) -> tuple[GridPoint, ...]:
    """One per measured batch, ascending. At most 5% of grids have any sign proven that is not so."""
    mean = curve.mean
    count = len(mean)
    lo: list[float] | list[None] = [None] * count
    hi, p = lo, lo
    values = curve.values or ((None, None),) * count
    if noise is not None:
        each = np.eye(count)
        half = noise.half_width(each)
        lo, hi = (mean - half).tolist(), (mean + half).tolist()
        p = hochberg(noise.p_value(each, mean))
    return tuple(
        GridPoint(
            concurrency=curve.concurrency[i],
            batch=float(curve.batch[i]),
            repeats=int((~np.isnan(curve.advantage[i])).sum()),
            target_value=values[i][0],
            reference_value=values[i][1],
            log_advantage=float(mean[i]),
            lo=lo[i],
            hi=hi[i],
            p=p[i],
            sign=_sign(float(mean[i]), p[i]),
        )
        for i in range(count)
    )


def hochberg(p_values: Floats) -> list[float]:
    """Adjusted p-values in the given order (Hochberg 1988): those at or below alpha are significant, with at most alpha
    chance of any false one for tests that are independent or depend on each other positively, as the points of a
    curve do. All are significant where each is by itself, which a claim about every B needs no more than."""
    order = np.argsort(p_values)[::-1]
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum.accumulate(p_values[order] * np.arange(1, len(p_values) + 1))
    return [float(p) for p in adjusted]


def _sign(mean: float, p: float | None) -> Literal["wins", "loses", "open"]:
    if p is None or p > ALPHA:
        return "open"
    return "wins" if mean > 0 else "loses"
