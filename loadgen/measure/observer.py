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
from loadgen.record.cell import Cell, CellVerdict
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

    def run_begins(self, title: str, cells: int, simulated: bool, expected_s: float) -> None:
        pass

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


GRADED_PER_S = 200
"""Most answers that are graded while a cell runs; the report grades all of them."""


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
        allowed = self._read < GRADED_PER_S * (1 + elapsed_s)
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


class Pace:
    """The run's cells by state, and the time left: the first guess until a cell has ended, then by the cells' pace."""

    def __init__(self, cells: int = 0, expected_s: float = 0.0, now_ns: Callable[[], int] = monotonic_ns) -> None:
        self.counts = {"valid": 0, "partly_valid": 0, "invalid": 0, "left": cells}
        self.cells = cells
        self._expected_s = expected_s
        self._now_ns = now_ns
        self._start_ns = now_ns()

    @property
    def ended(self) -> int:
        return self.cells - self.counts["left"]

    def cell_ends(self, verdict: CellVerdict) -> None:
        self.counts[verdict.state] = self.counts.get(verdict.state, 0) + 1
        self.counts["left"] -= 1

    def left_s(self, share: float) -> float:
        """Seconds; `share`: how much of the running cell's time is over."""
        elapsed_s = (self._now_ns() - self._start_ns) / 1e9
        if not self.ended:
            return max(0.0, self._expected_s - elapsed_s)
        over = min(self.ended + share, self.cells)
        return elapsed_s / over * (self.cells - over)
