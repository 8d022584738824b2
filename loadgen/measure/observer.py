"""Observer: hears what a sweep does while it runs. LiveFigures: what is known of the cell that runs."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from time import monotonic_ns

import msgspec

from loadgen.errors import UsageError
from loadgen.load.exchange import Exchange
from loadgen.load.latency import Latencies, Window, inside
from loadgen.load.openloop import Arrived
from loadgen.record.cell import Cell, CellVerdict, Step
from loadgen.workload.grading import Grader


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The running cell at one moment; figures of ended requests only, none of them final. The warm-up counts in
    `requests` and `errors` alone."""

    cell: Cell
    stage: str
    """`warm-up`, `window`, `drain` or, after the last answer, `over`."""
    in_flight: int
    running: float | None
    requests: int
    errors: int
    tokens_per_s: float | None
    """Tokens of the requests that ended in the window, over its time so far."""
    ttft_ms: float | None
    """Median of the latest that count in the window, as TPOT."""
    tpot_ms: float | None
    power_w: float | None
    """The target's GPUs now, together."""
    accuracy: float | None
    """The share of the `graded` answers that is correct so far."""
    share: float
    """How much of the cell's expected time is over, 0 to 1."""
    arrived: Arrived | None = None
    """None in a closed loop."""
    elapsed_s: float = 0.0
    """Since the cell's first request."""
    graded: int = 0

    @property
    def sent_per_s(self) -> float | None:
        """An open loop's rate so far; None in a closed one."""
        return self.arrived.sent / self.elapsed_s if self.arrived is not None and self.elapsed_s else None

    @property
    def energy_per_token_j(self) -> float | None:
        """Power now over the rate of ended requests: an estimate, not the cell's figure."""
        return self.power_w / self.tokens_per_s if self.power_w is not None and self.tokens_per_s else None


class Observer:
    """Hears what happens; this one listens to nothing, others override what they want to hear."""

    def run_begins(self, title: str, timetable: Timetable, simulated: bool) -> None:
        pass

    def step_begins(self, step: Step, timetable: Timetable) -> None:
        """A search measures these cells next; `step.why` says where it stands."""

    def server_starts(self, name: str, argv: Sequence[str] | None) -> None:
        pass

    def server_ready(self, name: str, note: str) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        pass

    def answered(self, cell: Cell, exchange: Exchange, latencies: Latencies) -> None:
        """A request ended, whether it succeeded or not; `latencies`: what it adds to the window's figures."""

    def cell_ends(self, cell: Cell, line: str, verdict: CellVerdict) -> None:
        pass

    def not_measured(self, cells: Sequence[Cell], why: str) -> None:
        """Their server did not come up, or died too often."""

    def note(self, sentence: str) -> None:
        pass

    def warn(self, sentence: str) -> None:
        pass

    def stopping(self, sentence: str) -> None:
        """The user interrupted the sweep, and this is what it does about it."""


class Tee(Observer):
    """Passes every event on to several observers."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers
        for event in vars(Observer):
            if not event.startswith("_"):
                setattr(self, event, partial(self._pass_on, event))

    def _pass_on(self, event: str, *values: object) -> None:
        for observer in self._observers:
            getattr(observer, event)(*values)


GRADED, GRADED_PER_S = 200, 20
"""Most answers that are graded while a cell runs, and how many more every second; the report grades all of them."""


class LiveFigures:
    """Figures of the cell that runs, from ended requests; rates and latencies are the window's."""

    def __init__(self, grader: Grader) -> None:
        self._grader = grader
        self.requests = self.errors = self.graded = self._correct = self._tokens = 0
        self.last_error = ""
        self._first_end_ns: int | None = None
        self._read = 0
        """Answers that were given to the grader."""
        self._ttfts_s: deque[float] = deque(maxlen=256)
        self._tpots_s: deque[float] = deque(maxlen=256)

    def add(self, exchange: Exchange, latencies: Latencies, window: Window | None) -> None:
        """One ended request; `latencies`: what it adds to the window's figures, `window`: its time so far."""
        if exchange.status == "dropped":
            return
        if exchange.status != "ok":
            self.errors += 1
            self.last_error = f"{exchange.status}: {exchange.error}"
            return
        self.requests += 1
        if window is not None and inside(exchange.t_end_ns, window):
            self._tokens += exchange.output_tokens or 0
        if exchange.phase == "measured" and self._may_grade(exchange.t_end_ns):
            grade = None
            with contextlib.suppress(UsageError):  # the report says it
                grade = self._grader.grade(exchange.item_id, exchange.text, exchange.finish_reason)
            self.graded += grade is not None and grade.correct is not None
            self._correct += grade is not None and grade.outcome == "correct"
        for latency_s, latest_s in zip(latencies, (self._ttfts_s, self._tpots_s), strict=True):
            if latency_s is not None:
                latest_s.append(latency_s)

    def _may_grade(self, t_end_ns: int) -> bool:
        """Whether the answers before this one left time for it."""
        if self._first_end_ns is None:
            self._first_end_ns = t_end_ns
        elapsed_s = (t_end_ns - self._first_end_ns) / 1e9
        allowed = self._read < GRADED + GRADED_PER_S * elapsed_s
        self._read += allowed
        return allowed

    def tokens_per_s(self, window: Window | None) -> float | None:
        """Tokens of the requests that ended in the window, over its time so far."""
        window_s = (window[1] - window[0]) / 1e9 if window is not None else 0.0
        return self._tokens / window_s if self._tokens and window_s else None

    @property
    def ttft_ms(self) -> float | None:
        """The median of the latest that count in the window."""
        return median(self._ttfts_s) * 1e3 if self._ttfts_s else None

    @property
    def tpot_ms(self) -> float | None:
        """The median of the latest that count in the window."""
        return median(self._tpots_s) * 1e3 if self._tpots_s else None

    @property
    def accuracy(self) -> float | None:
        """The share of the `graded` answers that is correct."""
        return self._correct / self.graded if self.graded else None


class Timetable(msgspec.Struct, frozen=True, kw_only=True):
    """The cells that a run measures, in order, and how long they are expected to take before anything is known."""

    cells: tuple[Cell, ...] = ()
    cells_s: tuple[float, ...] = ()
    """Expected length of each cell."""
    start_s: float = 0.0
    """Expected length of a server's start."""

    @property
    def expected_s(self) -> float:
        """The expected length of the run."""
        return sum(self.cells_s) + self.start_s * len({_block(cell) for cell in self.cells})


class Pace:
    """The run's cells by state, and the time left: the timetable's, corrected by what starts and cells took."""

    def __init__(self, timetable: Timetable | None = None, now_ns: Callable[[], int] = monotonic_ns) -> None:
        timetable = timetable or Timetable()
        self.cells = len(timetable.cells)
        self.counts = {"valid": 0, "partly_valid": 0, "invalid": 0, "left": self.cells}
        self._left_s = dict(zip(timetable.cells, timetable.cells_s, strict=True))
        self._start_s = timetable.start_s
        self._starts_s: dict[str, float] = {}
        """The latest start of each target's server that was seen."""
        self._seen_s: dict[tuple[str, str], float] = {}
        """The latest cell of each target and level that was seen."""
        self._ratios: list[float] = []
        """Cells that were seen, over what was expected of them."""
        self._block: tuple[str, int] | None = None
        self._running: Progress | None = None
        self._now_ns = now_ns
        self._since_ns = now_ns()
        """When the cell, or the start, that runs now began."""

    def add(self, timetable: Timetable) -> None:
        """Further cells, of a search's next step."""
        self._left_s |= dict(zip(timetable.cells, timetable.cells_s, strict=True))
        self.cells += len(timetable.cells)
        self.counts["left"] += len(timetable.cells)

    @property
    def ended(self) -> int:
        """Cells that will not be measured are among them."""
        return self.cells - self.counts["left"]

    def progress(self, progress: Progress) -> None:
        if _block(progress.cell) != self._block:
            self._block = _block(progress.cell)
            self._starts_s[progress.cell.target] = self._elapsed_s
            self._since_ns = self._now_ns()
        self._running = progress

    def cell_ends(self, cell: Cell, verdict: CellVerdict) -> None:
        took_s, self._since_ns, self._running = self._elapsed_s, self._now_ns(), None
        self._seen_s[cell.target, cell.level] = took_s
        if expected_s := self._left_s.pop(cell, None):
            self._ratios.append(took_s / expected_s)
        self._count(verdict.state)

    def not_measured(self, cells: Sequence[Cell]) -> None:
        self._since_ns, self._running = self._now_ns(), None
        for cell in cells:
            self._left_s.pop(cell, None)
            self._count("not_measured")

    def _count(self, state: str) -> None:
        self.counts[state] = self.counts.get(state, 0) + 1
        self.counts["left"] -= 1

    @property
    def _elapsed_s(self) -> float:
        return (self._now_ns() - self._since_ns) / 1e9

    @property
    def left_s(self) -> float:
        """Expected seconds to the run's end."""
        running = self._running.cell if self._running is not None else None
        left = [cell for cell in self._left_s if cell != running]
        starts = list(dict.fromkeys(block for cell in left if (block := _block(cell)) != self._block))
        left_s = sum(map(self._cell_s, left)) + sum(self._start_of(target) for target, _ in starts)
        if self._running is not None:
            left_s += self._rest_of(self._running)
        elif starts and _block(left[0]) == starts[0]:  # its server is starting
            left_s -= min(self._elapsed_s, self._start_of(starts[0][0]))
        return left_s

    def _start_of(self, target: str) -> float:
        """The target's own latest start, else the median of the others', else what was expected."""
        others = self._starts_s.values()
        return self._starts_s.get(target) or (median(others) if others else self._start_s)

    def _cell_s(self, cell: Cell) -> float:
        """As long as the target's last cell of that load, else as another's, else as expected and as was seen."""
        alike = [took_s for (_, level), took_s in self._seen_s.items() if level == cell.level]
        other_s = median(alike) if alike else self._left_s.get(cell, 0.0) * median(self._ratios or [1.0])
        return self._seen_s.get((cell.target, cell.level), other_s)

    def _rest_of(self, running: Progress) -> float:
        """By its share from a fifth of the window on: a count of requests has no length that could be expected."""
        if _LEAST_SHARE < running.share < 1:
            return self._elapsed_s * (1 - running.share) / running.share
        return max(self._cell_s(running.cell) - self._elapsed_s, 0.0)


_LEAST_SHARE = 0.2


def _block(cell: Cell) -> tuple[str, int]:
    """What one start of a server measures."""
    return cell.target, cell.repeat
