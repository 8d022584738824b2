"""Pursuit: the search of one crossing by repeats, in turn below and above it; when it stops and where it moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.estimate import Direction
from loadgen.search.answer import End, FoundCrossing
from loadgen.search.goal import Goal
from loadgen.search.root import FEWEST, Noise, Point, Root, beside, changes_of, crossing_in, proven, root_of
from loadgen.words import batch, percent

SURE = 2.0
"""Standard errors within which a slope is taken to be known."""
FLAT = 0.04
"""Change of the log-advantage per factor e of the batch; nine of ten cost models are steeper at B*. A search ends
when its goal is out of reach at the flattest slope that its readings allow. But it goes on while they allow `FLAT`, if
the goal is within reach there: that is only where noise is small."""
MOVES = 3
"""Times that the batches beside B* may move."""
FARTHEST = 0.7
"""ln(batch) of such a move, at most."""
MOST_TOLD = 1000
"""Repeats that a goal would take; more are not told as a number."""
UNREADABLE = 3
"""Repeats in a row without a figure, after which a search ends."""


class Pursuit:
    """The search of one crossing: repeats in turn below and above it."""

    def __init__(
        self, goal: Goal, log_batch: Floats, advantage: Floats, place: int, grid: Sequence[int], noise: Noise | None
    ) -> None:
        """The sign changes after that place of the grid."""
        self.goal, self.noise = goal, noise
        self._gap = float(log_batch[place + 1] - log_batch[place])
        self._located = float(advantage[place + 1] - advantage[place]) / self._gap
        """The slope that the first step showed."""
        self._between = float(log_batch[place]), float(log_batch[place + 1])
        self._curve = dict(zip(map(float, log_batch), map(float, advantage), strict=True))
        """Log-advantage by ln(batch): of the first step, and the means of batches that were left."""
        self.root: Root | None = None
        self.asked = self._moves = self._failed = 0
        self._reached = False
        self.outside = False
        """Proven not to be in the range."""
        self.end: End = ""
        self._log_batch, self._log_asked = log_batch, np.log(grid)
        self._range: tuple[float, float] | None = None
        self._settle(crossing_in(log_batch, advantage, place))

    def _settle(self, at: float) -> None:
        """Takes the batches beside it, and no reading of others."""
        self.at = at
        b = math.exp(float(np.interp(at, self._log_batch, self._log_asked)))
        self.below, self.above = beside(b, self.goal.low, self.goal.high)
        self._points: dict[int, list[Point]] = {self.below: [], self.above: []}

    @property
    def going(self) -> bool:
        return not self._reached and not self.end and not self.outside

    @property
    def wants(self) -> int:
        """The batch of the next repeat."""
        return min(self._points, key=lambda b: (len(self._points[b]), b))

    @property
    def why(self) -> str:
        text = f"B* near {batch(math.exp(self.at))}"
        if self.root is not None and self.root.width <= 1 and self._inside(self.root.at):
            text = f"B* = {batch(math.exp(self.root.at))} ±{percent(math.expm1(self.root.width), 0)}"
        after = f" after {self.repeats} repeat{'s' * (self.repeats > 1)}" if self.repeats else ""
        return f"{text}{after}, next B = {self.wants}"

    def _inside(self, at: float) -> bool:
        return self._range is not None and self._range[0] <= at <= self._range[1]

    @property
    def repeats(self) -> int:
        return sum(map(len, self._points.values()))

    def take(self, point: Point | None) -> None:
        """A repeat's reading at what was wanted; None: it has no figure."""
        self.asked += 1
        self._failed = 0 if point else self._failed + 1
        if point is not None:
            self._points[self.wants].append(point)

    def look(self, left: int, low: float, high: float) -> None:
        """Stops, moves, or goes on, with so many repeats left; the range is on ln(batch)."""
        if not self.going:
            return
        self._range = low, high
        if self._failed >= UNREADABLE:
            self.end = "unreadable"
            return
        points = [point for at in self._points.values() for point in at]
        root = self.root = root_of(points, self.noise, max((point.item_error for point in points), default=0.0))
        n, fewest = len(points), 2 if self.noise else FEWEST
        if root is not None and n >= FEWEST and n % 2 == 0 and self._relocate(root):
            return
        if root is not None and root.lo is not None and root.hi is not None and min(map(len, self._points.values())):
            below, above = (self._points[b][0].batch for b in (self.below, self.above))
            away, apart = abs(root.at - (below + above) / 2), (above - below) / 2
            if n >= fewest and (root.lo > high or root.hi < low):
                self.outside = True
                return
            inside = low <= root.lo and root.hi <= high
            if n >= fewest and root.width <= self.goal.reach and away <= 2 * apart:
                self._reached, self.end = inside, "" if inside else "edge"
                return
            if away > (apart if n <= FEWEST else 2 * apart) and n % 2 == 0 and self._move(root.at):
                return
        if left < 1:
            self.end = "repeats" if self.goal.most_s is None else "time"
        elif root is not None and n >= FEWEST and n % 2 == 0:
            slope, error = self._slope(root)
            counted = max(slope - SURE * error, min(FLAT, slope + SURE * error))
            needed = root.needed(self.goal.reach, counted)
            self.end = "out of reach" if needed > n + left else ""

    def _slope(self, root: Root) -> tuple[float, float]:
        """How steep the curve is at B*, and the standard error, by the repeats and the first step together; an
        interval rests on the repeats alone."""
        ours, located = self.repeats * root.apart**2, self._gap**2 / 2
        both = ours + located
        return abs(ours * root.slope + located * self._located) / both, root.sd / math.sqrt(both)

    def _relocate(self, root: Root) -> bool:
        """Whether the batches moved because both proved to lie on one side of B*. It is then sought where the sign
        changes between their means and the first step's readings; the chord through both may point anywhere."""
        readings = {b: [point.advantage for point in points] for b, points in self._points.items()}
        sign = 1 if np.mean(readings[self.below]) > 0 else -1
        if not all(proven(each, sign, root, 1) for each in readings.values()):
            return False
        for b, points in self._points.items():
            self._curve[float(np.mean([point.batch for point in points]))] = float(np.mean(readings[b]))
        x = np.array(sorted(self._curve))
        y = np.array([self._curve[at] for at in x])
        low, high = self._between
        changes = [at for at in changes_of(y) if low <= x[at] < high and (y[at] < 0) == (self._located > 0)]
        roots = [crossing_in(x, y, at) for at in changes]
        return bool(roots) and self._move(min(roots, key=lambda root: abs(root - self.at)))

    def _move(self, at: float) -> bool:
        """Whether the batches beside B* moved."""
        before = {self.below, self.above}
        old, points, place = self.at, self._points, min(max(at, self.at - FARTHEST), self.at + FARTHEST)
        if self._moves == MOVES:
            return False
        self._settle(place)
        if {self.below, self.above} == before:
            self.at, self._points = old, points
            return False
        self._moves += 1
        self.root = None
        return True

    def found(self, advantages: Mapping[int, Sequence[float]]) -> FoundCrossing:
        """What is known of it; given are all log-advantages by batch between the neighbouring crossings."""
        root, end = self.root, self.end
        if root is None or self._range is None:
            direction: Direction = "wins_below" if self._located < 0 else "wins_above"
            return FoundCrossing(b=math.exp(self.at), direction=direction, repeats=self.repeats, end=end)
        sign = 1 if root.slope < 0 else -1
        left = [b for b in advantages if math.log(b) < root.at]
        right = [b for b in advantages if math.log(b) > root.at]
        below = max((b for b in left if proven(advantages[b], sign, root, len(left))), default=None)
        above = min((b for b in right if proven(advantages[b], -sign, root, len(right))), default=None)
        low, high = self._range
        lo, hi = root.lo, root.hi
        if lo is None or hi is None or below is None or above is None or not low <= lo <= hi <= high:
            lo = hi = None
        needed = root.needed(self.goal.reach, self._slope(root)[0])
        return FoundCrossing(
            b=math.exp(root.at if self._inside(root.at) else self.at),
            lo=None if lo is None else math.exp(lo),
            hi=None if hi is None else math.exp(hi),
            bracket=(below, above),
            direction="wins_below" if sign > 0 else "wins_above",
            reached=self._reached and lo is not None,
            repeats=self.repeats,
            needed=None if self._reached or needed > MOST_TOLD or end == "edge" else math.ceil(needed),
            noise=root.sd,
            slope=root.slope,
            end=end,
        )
