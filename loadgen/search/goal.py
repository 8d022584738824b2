"""Goal: what a search for B* is to reach, within which batches, and what its steps cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from loadgen.record.cell import Start
from loadgen.search.root import Noise

FACTOR = 4.0
"""Of neighbouring batches of the grid, at most."""
MOST_REPEATS = 48
"""Of a crossing, where no time is given."""


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """What is searched for."""

    metrics: tuple[str, ...]
    low: int = 1
    high: int = 256
    within: float = 0.1
    """How far the ends of the interval may be from B*, as a share of it."""
    most_s: float | None = None
    cell_s: float = 75.0
    start_s: float = 90.0
    """What one more cell and one more start of a server take."""
    noise: Mapping[str, Noise] = {}
    """By metric, where an earlier run tells it."""

    @property
    def reach(self) -> float:
        """`within` on ln(batch)."""
        return math.log1p(self.within)

    @property
    def grid(self) -> tuple[int, ...]:
        """The batches of the first step: geometric, `FACTOR` apart at most."""
        gaps = max(2, math.ceil(math.log(self.high / self.low, FACTOR) - 1e-9))
        return tuple(sorted({round(b) for b in np.geomspace(self.low, self.high, gaps + 1)}))

    def price_s(self, starts: Iterable[Start]) -> float:
        """Seconds that these starts and their cells take."""
        return sum(self.start_s + self.cell_s * len(start.concurrency) for start in starts)
