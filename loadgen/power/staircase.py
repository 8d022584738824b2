"""Staircase: a sensor that holds its value between updates, seen through samples taken in between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Staircase:
    """The updates of a held value. An update between two samples is put at their middle."""

    instants_s: Floats
    """When the value changed, ascending."""
    values: Floats
    """The value from that instant on."""
    doubts_s: Floats
    """Half the distance of the two samples: how far the true instant may lie from the one given."""

    def covers(self, t_s: float) -> bool:
        """Whether an update lies on either side of `t_s`."""
        return bool(self.instants_s.size) and bool(self.instants_s[0] <= t_s <= self.instants_s[-1])

    def at(self, t_s: float) -> float:
        """The straight line between the updates on either side of a covered `t_s`."""
        return float(np.interp(t_s, self.instants_s, self.values))

    def doubt_at(self, t_s: float) -> float:
        """The larger doubt (seconds) of the updates on either side of a covered `t_s`."""
        after = int(np.searchsorted(self.instants_s, t_s))
        return float(self.doubts_s[max(after - 1, 0) : after + 1].max())

    def updates_between(self, t0_s: float, t1_s: float) -> int:
        return int(np.count_nonzero((self.instants_s > t0_s) & (self.instants_s < t1_s)))


def staircase(t_s: Floats, values: Floats) -> Staircase:
    """The updates visible in `values` sampled at ascending `t_s`. The first sample is no update: its own is unknown."""
    changed = np.flatnonzero(values[1:] != values[:-1])
    before, after = t_s[changed], t_s[changed + 1]
    return Staircase(instants_s=(before + after) / 2, values=values[changed + 1], doubts_s=(after - before) / 2)
