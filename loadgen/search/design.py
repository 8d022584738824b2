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

from loadgen.analysis.crossover.crossover import Status, crossover
from loadgen.analysis.crossover.curve import Curve, CurvePoint, metric_of
from loadgen.record.cell import Start, Step
from loadgen.search.answer import LOOKS, Answer, End, FoundCrossing, worded
from loadgen.search.goal import MOST_REPEATS, Goal
from loadgen.search.pursuit import UNREADABLE, Pursuit
from loadgen.search.root import Point, changes_of


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
        self.pursuits: tuple[Pursuit, ...] = ()
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
            self.pursuits = tuple(Pursuit(self.goal, x, mean, at, grid, noise) for at in changes)
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
