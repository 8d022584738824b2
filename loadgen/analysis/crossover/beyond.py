"""Beyond: where a crossing that the data do not show could still be, if it exists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.crossover.band import STEPS, Band
from loadgen.analysis.crossover.crossing import batch_at, flip
from loadgen.analysis.crossover.noise import Noise
from loadgen.analysis.crossover.sign import GridPoint


class Beyond(msgspec.Struct, frozen=True, kw_only=True):
    """If the proven side of an end of the grid changes beyond it, then on this side of `batch` (95%)."""

    side: Literal["above", "below"]
    batch: float


def beyond(points: Sequence[GridPoint], band: Band, noise: Noise) -> tuple[Beyond, ...]:
    """Up to one for each end of the grid.

    Where the end itself is proven: only if the advantage has shrunk towards that end, by more than noise explains.
    Where it is open: from the nearest proven point on, the first batch at which the band contains 0.
    """
    ends = []
    for side in ("below", "above"):
        batch = _limit(points, band, noise, above=side == "above")
        if batch is not None and (side == "above" or batch > 1):
            ends.append(Beyond(side=side, batch=batch))
    return tuple(ends)


def _limit(points: Sequence[GridPoint], band: Band, noise: Noise, *, above: bool) -> float | None:
    proven = [i for i, point in enumerate(points) if point.proven]
    if not proven:
        return None
    last, end = (proven[-1], len(points) - 1) if above else (proven[0], 0)
    sign = points[last].proven
    if last != end:
        place = flip(band.lower if sign > 0 else -band.upper, STEPS * last, STEPS * end)
        return None if place is None else batch_at(band, place)
    run = [i for i in proven if all(points[k].proven == sign for k in range(min(i, end), max(i, end) + 1))]
    peak = max(run, key=lambda i: sign * points[i].log_advantage)
    weights = np.zeros((1, len(points)))
    weights[0, peak] += 1
    weights[0, end] -= 1
    fall = abs(points[peak].log_advantage) - abs(points[end].log_advantage)
    return points[end].batch if fall > noise.half_width(weights)[0] else None
