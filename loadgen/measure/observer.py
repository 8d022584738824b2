"""What a sweep tells while it runs; the terminal views listen.

Glance: how the running cell is doing, for the live view and the sweep's own metrics.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
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
    """A glance at the running cell; figures of ended requests only, none of them final. The warm-up counts in
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
    """Of the `graded` answers so far."""
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
        """Power now over the rate of ended requests: a glance, not the cell's figure."""
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
    """Tells several observers."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def run_begins(self, title: str, cells: int, simulated: bool, expected_s: float) -> None:
        for observer in self._observers:
            observer.run_begins(title, cells, simulated, expected_s)

    def server_starts(self, name: str, argv: Sequence[str] | None) -> None:
        for observer in self._observers:
            observer.server_starts(name, argv)

    def server_ready(self, name: str, note: str) -> None:
        for observer in self._observers:
            observer.server_ready(name, note)

    def progress(self, progress: Progress) -> None:
        for observer in self._observers:
            observer.progress(progress)

    def answered(self, cell: Cell, exchange: Exchange, latencies: Latencies) -> None:
        for observer in self._observers:
            observer.answered(cell, exchange, latencies)

    def cell_ends(self, cell: Cell, line: str, verdict: CellVerdict) -> None:
        for observer in self._observers:
            observer.cell_ends(cell, line, verdict)

    def note(self, sentence: str) -> None:
        for observer in self._observers:
            observer.note(sentence)

    def warn(self, sentence: str) -> None:
        for observer in self._observers:
            observer.warn(sentence)

    def stopping(self, sentence: str) -> None:
        for observer in self._observers:
            observer.stopping(sentence)


class Glance:
    """Running figures of one cell, from ended requests; rates and latencies are the window's."""

    def __init__(self, grader: Grader) -> None:
        self._grader = grader
        self._graded = 0
        self._correct = 0
        self.next_ns = 0
        self.last_error = ""
        self._requests = 0
        self._errors = 0
        self._tokens = 0
        self._ttfts_s: deque[float] = deque(maxlen=256)
        self._tpots_s: deque[float] = deque(maxlen=256)

    def add(self, exchange: Exchange, latencies: Latencies, window: Window | None) -> None:
        """One ended request; `latencies`: what it adds to the window's figures, `window`: its time so far."""
        if exchange.status == "dropped":
            return
        if exchange.status != "ok":
            self._errors += 1
            self.last_error = f"{exchange.status}: {exchange.error}"
            return
        self._requests += 1
        if window is not None and inside(exchange.t_end_ns, window):
            self._tokens += exchange.output_tokens or 0
        if exchange.phase == "measured":
            verdict = None
            with contextlib.suppress(UsageError):  # the report says it
                verdict = self._grader.grade(exchange.item_id, exchange.text, exchange.finish_reason)
            self._graded += verdict is not None and verdict.correct is not None
            self._correct += verdict is not None and verdict.outcome == "correct"
        for latency_s, latest_s in zip(latencies, (self._ttfts_s, self._tpots_s), strict=True):
            if latency_s is not None:
                latest_s.append(latency_s)

    def progress(
        self,
        cell: Cell,
        stage: str,
        share: float,
        *,
        in_flight: int,
        running: float | None,
        power_w: float | None,
        elapsed_s: float,
        window: Window | None,
        arrived: Arrived | None = None,
    ) -> Progress:
        window_s = (window[1] - window[0]) / 1e9 if window is not None else 0.0
        return Progress(
            cell=cell,
            stage=stage,
            in_flight=in_flight,
            running=running,
            requests=self._requests,
            errors=self._errors,
            tokens_per_s=self._tokens / window_s if self._tokens and window_s else None,
            ttft_ms=median(self._ttfts_s) * 1e3 if self._ttfts_s else None,
            tpot_ms=median(self._tpots_s) * 1e3 if self._tpots_s else None,
            power_w=power_w,
            accuracy=self._correct / self._graded if self._graded else None,
            share=share,
            arrived=arrived,
            elapsed_s=elapsed_s,
            graded=self._graded,
        )


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
