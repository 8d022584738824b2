"""Budget: the time of one call, which ends a sweep between two cells and never in one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from loadgen.sweep.observer import Observer
from loadgen.sweep.plan import Cell

Clock = Callable[[], float]


class Deadline:
    """When the time of this call is up."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._end = clock() + seconds

    @property
    def left_s(self) -> float:
        return self._end - self.clock()


class Cutter(Observer):
    """Listens to a sweep and ends it, as Ctrl-C would, where what comes next would not fit.

    Before a server starts there must be time for the longest start so far and a cell; before a cell for the longest so
    far, and never for less than the first guess, since cells grow with the batch. It also ends a sweep of which only
    the first repeats are wanted, behind the last of their cells.
    """

    def __init__(
        self,
        deadline: Deadline,
        *,
        start_s: float,
        cell_s: float,
        wanted: Sequence[Cell] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """`wanted`: the first of the cells that are to be measured; None: all of them."""
        self.start_s, self.cell_s = start_s, cell_s
        self.cut: str | None = None
        """Why the sweep was ended for want of time."""
        self.enough = False
        """It was ended since all that was wanted is there, or has failed."""
        self._wanted = None if wanted is None else {cell.label for cell in wanted}
        self._blocks = None if wanted is None else len({(cell.repeat, cell.target) for cell in wanted})
        self._deadline = deadline
        self._say = say
        self._since = deadline.clock()
        self._seen_start = False

    def server_starts(self, name: str, argv: Sequence[str] | None) -> None:
        if self._blocks is not None:
            self._blocks -= 1
            if self._blocks < 0:
                self._end()
        self._need(self.start_s + self.cell_s, f"the start of {name} and a cell")
        self._since = self._deadline.clock()

    def server_ready(self, name: str, note: str) -> None:
        took = self._lap()
        self.start_s = max(took, self.start_s) if self._seen_start else took
        self._seen_start = True
        self._say(f"{name} is up after {took:.0f} s: {note}")

    def cell_ends(self, cell: Cell, line: str, verdict: Any) -> None:
        took = self._lap()
        self.cell_s = max(took, self.cell_s)
        self._say(f"{cell.label}: {took:.0f} s, {line}; {self._deadline.left_s:.0f} s left")
        if self._wanted is not None:
            self._wanted.discard(cell.label)
            if not self._wanted:
                self._end()
        self._need(self.cell_s, "another cell")

    def note(self, sentence: str) -> None:
        self._since = self._deadline.clock()
        self._say(sentence)

    def warn(self, sentence: str) -> None:
        self._say(f"! {sentence}")

    def _end(self) -> None:
        self.enough = True
        raise KeyboardInterrupt

    def _lap(self) -> float:
        now = self._deadline.clock()
        took, self._since = now - self._since, now
        return took

    def _need(self, seconds: float, what: str) -> None:
        left_s = self._deadline.left_s
        if left_s < seconds:
            self.cut = f"{max(left_s, 0):.0f} s were left, {what} takes about {seconds:.0f} s"
            raise KeyboardInterrupt
