"""What a sweep tells while it runs; the terminal views listen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from loadgen.client.exchange import Exchange
from loadgen.client.latency import Latencies
from loadgen.sweep.plan import Cell


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """What an open loop offered so far, from the cell's first request on."""

    sent: int
    late: int
    """Of those sent, later than 5 ms after they were due."""
    dropped: int


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


CellState = Literal["valid", "partly_valid", "invalid", "unjudged"]
"""Partly valid: batch and load are valid, and latency, energy or answers are not."""


class CellVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the figures of an ended cell may be believed, quantity by quantity, as cells.csv will say."""

    valid: bool | None
    """Batch and load, and so throughput; None: not judged while the sweep runs."""
    latency_valid: bool | None = None
    energy_valid: bool | None = None
    """None: also where energy was not measured."""
    answers_valid: bool | None = None
    """None: also where answers are not graded."""
    reasons: str = ""
    """Why a quantity is invalid, named where the load is valid; or why the cell was not judged."""
    figures: Mapping[str, Any] = {}
    """Its row of cells.csv, but for the answers; empty where it was not judged."""

    @property
    def state(self) -> CellState:
        """What the cell is counted as."""
        if self.valid is None:
            return "unjudged"
        told = (self.latency_valid, self.energy_valid, self.answers_valid)
        return "invalid" if not self.valid else "partly_valid" if False in told else "valid"


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
