"""Search: which cells to measure next to find B*, and what the measured ones tell. docs/find.md derives the design.

A pure function of the readings: nothing else is kept, so that an interrupted search goes on from its journal.

Locate: one start of each side over a few batches, far apart. Where the sign changes, repeats follow: one fresh start
of each side at one batch, in turn just below and just above B*, until the interval of B* is narrow enough or may
not become so within the budget. Where B* proves to lie elsewhere the batches move, and what was read at the old ones
is discarded. Where no sign changes, the batches of the grid are repeated until each sign is proven.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.crossover.crossover import Status, crossover
from loadgen.analysis.crossover.curve import Curve, CurvePoint, metric_of
from loadgen.analysis.estimate import Direction
from loadgen.record.cell import Start, Step
from loadgen.search.answer import LOOKS, Answer, End, FoundCrossing, worded
from loadgen.search.root import FEWEST, Noise, Point, Root, beside, changes_of, crossing_in, proven, root_of
from loadgen.words import batch, percent

FACTOR = 4.0
"""Of neighbouring batches of the grid, at most."""
MOST_REPEATS = 48
"""Of a crossing, where no time is given."""
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


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one ended cell."""

    repeat: int
    """The step that it belongs to."""
    side: str
    concurrency: int
    running: float | None = None
    """The measured running batch."""
    values: Mapping[str, float | None]
    """By metric, in its unit; None: not measured, or invalid."""
    item_errors: Mapping[str, float] = {}
    """Of a target, by metric: the standard error of log(target / reference) by the choice of items, the same in every
    repeat."""


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """Where a search stands."""

    steps: tuple[Step, ...]
    """Those that are done."""
    next: Step | None
    """None: it has ended."""
    answers: tuple[Answer, ...]
    """By target and metric: what is known so far."""


def search(goal: Goal, sides: Sequence[str], readings: Iterable[Reading]) -> Search:
    """What is known, and the next step; `sides`: the reference, then the targets.

    A step is done when every of its cells has a reading, valid or not; one that is half done is `next` again.
    """
    cells = {(r.repeat, r.side, r.concurrency): r for r in readings}
    reference, *targets = sides
    quests = [_Quest(goal, target, reference, metric) for target in targets for metric in goal.metrics]
    steps: list[Step] = []
    spent_s = 0.0
    while True:
        step = _step(goal, reference, quests, len(steps) + 1, spent_s)
        asked = [(step.repeat, start.side, b) for start in step.starts for b in start.concurrency] if step else []
        if step is None or not all(cell in cells for cell in asked):
            return Search(steps=tuple(steps), next=step, answers=tuple(quest.answer for quest in quests))
        for quest in quests:
            quest.take(step.repeat, cells)
        steps.append(step)
        spent_s += goal.price_s(step.starts)


def _step(goal: Goal, reference: str, quests: Sequence[_Quest], repeat: int, spent_s: float) -> Step | None:
    """What all that are still searched for want, one start of each side; None if nothing is, or it takes too long.

    Orders follow each other as A B, B A, B A, A B, so that a steady drift cancels at both batches beside B*.
    """
    left_s = math.inf if goal.most_s is None else goal.most_s - spent_s
    for quest in quests:
        quest.look(left_s)
    wanted: dict[str, set[int]] = {}
    for quest in quests:
        if quest.wants:
            wanted.setdefault(quest.target, set()).update(quest.wants)
    if not wanted:
        return None
    both = {reference: set().union(*wanted.values()), **wanted}
    starts = tuple(Start(side, tuple(sorted(both[side]))) for side in both)
    if repeat > 1 and goal.price_s(starts) > left_s:
        for quest in quests:
            quest.end("time")
        return None
    why = "; ".join(dict.fromkeys(quest.why for quest in quests if quest.wants))
    forward = repeat % 4 in (1, 2)
    locating = all(quest.locating for quest in quests if quest.wants)
    return Step("locate" if locating else "repeat", repeat, starts if forward else starts[::-1], why)


class _Quest:
    """The search of one target and metric: a grid, and a pursuit of each crossing that it shows."""

    def __init__(self, goal: Goal, target: str, reference: str, metric: str) -> None:
        self.goal, self.target, self.reference, self.metric = goal, target, reference, metric_of(metric)
        self.wants: tuple[int, ...] = goal.grid
        self.why = f"one start of each side at B = {', '.join(map(str, goal.grid))}, to see where the sign changes"
        self.pursuits: tuple[_Pursuit, ...] = ()
        self._rounds = self._failed = 0
        self._complete = False
        """What the first step did not read was asked for once more."""
        self._elsewhere = False
        """A crossing that the grid seemed to show proved to be outside of the range."""
        self._status: Status = "unresolved"
        self._end: End = ""
        self._several = False
        self._signs: dict[int, int] = {}
        """By batch: the sign that is proven there."""
        self._values: dict[int, dict[int, tuple[float, float]]] = {}
        """By batch and step: the target's figure and the reference's."""
        self._running: dict[int, list[float]] = {}
        self._item_errors: dict[int, float] = {}

    @property
    def locating(self) -> bool:
        """What it wants is wanted for the first time, or once more because it had no figure."""
        return not any(b in self._values for b in self.wants) and not self.pursuits

    def take(self, repeat: int, cells: Mapping[tuple[int, str, int], Reading]) -> None:
        """Keeps what the step measured of what was wanted."""
        points = {b: self._point(repeat, b, cells) for b in self.wants}
        for pursuit in self.pursuits:
            if pursuit.wants in points:
                pursuit.take(points[pursuit.wants])
        if not self.pursuits:
            read = any(points.values())
            self._rounds += read
            self._failed = 0 if read else self._failed + 1

    def _point(self, repeat: int, b: int, cells: Mapping[tuple[int, str, int], Reading]) -> Point | None:
        ours, theirs = cells[repeat, self.target, b], cells[repeat, self.reference, b]
        x, y = (reading.values.get(self.metric.name) for reading in (ours, theirs))
        if not x or not y:
            return None
        running = math.sqrt((ours.running or b) * (theirs.running or b))
        self._values.setdefault(b, {})[repeat] = (x, y)
        self._running.setdefault(b, []).append(running)
        error = ours.item_errors.get(self.metric.name, 0.0)
        self._item_errors[b] = error
        return Point(math.log(running), self.metric.sign * math.log(x / y), error)

    def look(self, left_s: float) -> None:
        """Decides what is wanted next, with so many seconds left."""
        if not self.wants or not (self._rounds or self._failed):
            return
        if self.pursuits:
            self._look_beside(left_s)
        else:
            self._look_at_grid()
            if self.pursuits:
                self._look_beside(left_s)

    def _look_beside(self, left_s: float) -> None:
        low, high = self._log_batch(min(self._grid)), self._log_batch(max(self._grid))
        affordable = left_s / max(2 * (self.goal.start_s + self.goal.cell_s), 1e-3)
        for pursuit in self.pursuits:
            pursuit.look(MOST_REPEATS - pursuit.asked if math.isinf(left_s) else int(affordable), low, high)
        if all(pursuit.outside for pursuit in self.pursuits):
            self.pursuits, self._elsewhere = (), True
            self._look_at_grid()
            return
        going = [pursuit for pursuit in self.pursuits if pursuit.going]
        self.wants = tuple(sorted({pursuit.wants for pursuit in going}))
        self.why = f"{self.target}, {self.metric.name}: " + ", ".join(pursuit.why for pursuit in going)

    def _look_at_grid(self) -> None:
        """A pursuit of each crossing, if there are one or two; else which signs are still to be proven."""
        grid = self._grid
        missing = tuple(b for b in self.goal.grid if b not in grid)
        if missing and not self._complete:
            self._complete, self.wants = True, missing
            self.why = f"{self.target}, {self.metric.name}: no figure at B = {', '.join(map(str, missing))}; once more"
            return
        if len(grid) < 2 or self._failed >= UNREADABLE:
            self.end("unreadable")
            return
        self._complete = True
        mean = np.array([self._mean(b) for b in grid])
        changes = changes_of(mean)
        if 1 <= len(changes) <= 2 and not self._elsewhere:
            x = np.array([self._log_batch(b) for b in grid])
            noise = self.goal.noise.get(self.metric.name)
            self.pursuits = tuple(_Pursuit(self.goal, x, mean, at, grid, noise) for at in changes)
            return
        self._prove(grid)
        signs = set(self._signs.values())
        self._several = len(signs) == 2 and len(changes) > 2
        if len(self._signs) == len(grid):
            self._status = "unresolved" if len(signs) == 2 else "better" if signs == {1} else "worse"
            self.wants = ()
        elif self._rounds >= max(LOOKS):
            self.end("repeats")
        else:
            self.wants = tuple(b for b in grid if b not in self._signs)
            word = self.metric.wins_briefly if mean[0] > 0 else self.metric.loses_briefly
            self.why = (
                f"{self.target}, {self.metric.name}: {word} at every B so far; "
                f"proven at {len(self._signs)} of {len(grid)} batches, repeated: B = {', '.join(map(str, self.wants))}"
            )

    def _prove(self, grid: Sequence[int]) -> None:
        """Keeps the signs that the repeats so far prove at this look's share of the error."""
        alpha = LOOKS.get(self._rounds)
        if alpha is None:
            return
        steps = sorted({step for b in grid for step in self._values[b]})

        def curve(name: str, side: int) -> Curve:
            values = {b: [self._values[b].get(step) for step in steps] for b in grid}
            return Curve(
                target=name,
                points=tuple(
                    CurvePoint(
                        concurrency=b,
                        running=float(np.mean(self._running[b])),
                        values=tuple(pair[side] if pair else None for pair in values[b]),
                    )
                    for b in grid
                ),
            )

        sides = curve(self.target, 0), curve(self.reference, 1)
        for point in crossover(*sides, self.metric.name, item_errors=self._item_errors).points:
            if point.p is not None and point.p <= alpha:
                self._signs.setdefault(point.concurrency, 1 if point.log_advantage > 0 else -1)

    @property
    def _grid(self) -> tuple[int, ...]:
        return tuple(b for b in self.goal.grid if b in self._values)

    def _mean(self, b: int) -> float:
        """Of the log-advantage."""
        return float(np.mean(self._advantages(b)))

    def _advantages(self, b: int) -> list[float]:
        return [self.metric.sign * math.log(x / y) for x, y in self._values[b].values()]

    def _log_batch(self, b: int) -> float:
        return float(np.log(self._running[b]).mean())

    def end(self, why: End) -> None:
        """Ends what goes on."""
        if self.wants and not self.pursuits:
            self._end = why
        for pursuit in self.pursuits:
            if pursuit.going:
                pursuit.end = why
        self.wants = ()

    @property
    def answer(self) -> Answer:
        """What is known so far."""
        found = tuple(self._found(at) for at in range(len(self.pursuits)))
        crosses = any(crossing.established for crossing in found)
        grid = self._grid or self.goal.grid
        return worded(
            Answer(
                target=self.target,
                reference=self.reference,
                metric=self.metric.name,
                status="crosses" if crosses else self._status,
                crossings=found,
                range=(grid[0], grid[-1]),
                grid=grid,
                proven=tuple(sorted(self._signs)),
                several=self._several,
                within=self.goal.within,
                ended=not self.wants,
                end=self._end or next((crossing.end for crossing in found if crossing.end), ""),
            )
        )

    def _found(self, at: int) -> FoundCrossing:
        pursuit = self.pursuits[at]
        others = [math.exp(other.at) for other in self.pursuits]
        above = others[at - 1] if at else 0.0
        below = others[at + 1] if at + 1 < len(others) else math.inf
        return pursuit.found({b: self._advantages(b) for b in self._values if above < b < below})


class _Pursuit:
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
