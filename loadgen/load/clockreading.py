"""Both clocks of a stamp: the kernel stamps by the realtime clock, and everything here is on CLOCK_MONOTONIC."""

from __future__ import annotations

from time import monotonic_ns, time_ns
from typing import NamedTuple

_TRIES = 4
_GOOD_NS = 2_000
MOST_STEP_NS = 50_000
"""Two offsets further apart than this, beyond what their readings leave open, mean that the realtime clock was set.
Slewing moves both clocks alike."""
OLDEST_READING_NS = 5_000_000
"""A request is sent with a reading that is no older: in an idle minute the clocks may drift apart."""


class ClockReading(NamedTuple):
    """One instant by both clocks, in ns, and how far apart the two readings may be."""

    monotonic_ns: int
    realtime_ns: int
    error_ns: int

    @property
    def offset_ns(self) -> int:
        """Realtime minus monotonic."""
        return self.realtime_ns - self.monotonic_ns

    def agrees(self, other: ClockReading) -> bool:
        """The realtime clock was not set between the two."""
        return abs(self.offset_ns - other.offset_ns) <= MOST_STEP_NS + self.error_ns + other.error_ns


def read_clocks() -> ClockReading:
    """Now: the closest of up to four readings of one clock between two of the other."""
    best = ClockReading(0, 0, 1 << 62)
    for _ in range(_TRIES):
        before_ns = monotonic_ns()
        wall_ns = time_ns()
        after_ns = monotonic_ns()
        error_ns = (after_ns - before_ns + 1) // 2
        if error_ns < best.error_ns:
            best = ClockReading((before_ns + after_ns) // 2, wall_ns, error_ns)
        if error_ns <= _GOOD_NS:
            break
    return best
