"""What a sweep tells while it runs; the terminal views listen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from loadgen.sweep.plan import Cell


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A glance at the running cell; figures of ended requests only, none of them final."""

    cell: Cell
    stage: str
    """`warm-up`, `window` or `drain`."""
    in_flight: int
    running: float | None
    requests: int
    errors: int
    tokens_per_s: float | None
    ttft_ms: float | None
    tpot_ms: float | None
    share: float
    """How much of the cell's expected time is over, 0 to 1."""


class Observer(Protocol):
    def run_begins(self, title: str, cells: int, simulated: bool, expected_s: float) -> None: ...

    def server_starts(self, name: str, argv: Sequence[str] | None) -> None: ...

    def server_ready(self, name: str, note: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def cell_ends(self, cell: Cell, line: str, valid: bool) -> None: ...

    def warn(self, sentence: str) -> None: ...


class Silent:
    """Listens to nothing."""

    def run_begins(self, title: str, cells: int, simulated: bool, expected_s: float) -> None: ...

    def server_starts(self, name: str, argv: Sequence[str] | None) -> None: ...

    def server_ready(self, name: str, note: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def cell_ends(self, cell: Cell, line: str, valid: bool) -> None: ...

    def warn(self, sentence: str) -> None: ...
