"""The sweep as it runs: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadgen.measure.observer import Observer, Pace, Progress
from loadgen.record.cell import Cell, CellVerdict
from loadgen.secret import visible_line, visible_message
from loadgen.serving.metrics import UNVERIFIED
from loadgen.words import number


class QuietView(Observer):
    """Says nothing but what a Ctrl-C sets off, on stderr."""

    def stopping(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)


class PlainView(Observer):
    """One line per event, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace()

    def run_begins(self, title: str, cells: int, simulated: bool, expected_s: float) -> None:
        self._pace = Pace(cells, expected_s)
        if simulated:
            self._say("SIMULATED: no GPU is measured, the servers are a cost model")
        self._say(f"{title}; about {_duration(expected_s)}")

    def server_starts(self, name: str, argv: Sequence[str] | None) -> None:
        self._say(f"{name}: starting")

    def server_ready(self, name: str, note: str) -> None:
        self._say(f"{name}: ready ({note})")

    def cell_ends(self, cell: Cell, line: str, verdict: CellVerdict) -> None:
        self._pace.cell_ends(verdict)
        place = f"[{self._pace.ended}/{self._pace.cells}]"
        left = _duration(self._pace.left_s(0.0))
        named = f"{place} {cell.target} {cell.level.replace(' ', '')} repeat {cell.repeat}"
        self._say(f"{named}: {line}{_reasons(verdict)}; {left} left")

    def note(self, sentence: str) -> None:
        self._say(sentence)

    def warn(self, sentence: str) -> None:
        self._say(f"warning: {sentence}")

    def stopping(self, sentence: str) -> None:
        self._say(sentence)

    def _say(self, line: str) -> None:
        self._console.print(visible_message(line), markup=False, highlight=False, soft_wrap=True)


class LiveView(PlainView):
    """A block at the bottom of the terminal that follows the running cell; ended cells scroll above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._simulated = False
        self._status = ""
        self._progress: Progress | None = None

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def run_begins(self, title: str, cells: int, simulated: bool, expected_s: float) -> None:
        super().run_begins(title, cells, simulated, expected_s)
        self._simulated = simulated

    def server_starts(self, name: str, argv: Sequence[str] | None) -> None:
        self._status, self._progress = f"{name}: starting", None
        self._draw()

    def server_ready(self, name: str, note: str) -> None:
        self._status = f"{name}: ready ({note})"
        self._draw()

    def progress(self, progress: Progress) -> None:
        self._progress = progress
        self._draw()

    def _draw(self) -> None:
        lines: list[Text | Table | ProgressBar] = []
        if self._simulated:
            lines.append(Text("SIMULATED", style="bold red"))
        share = self._progress.share if self._progress else 0.0
        done = self._pace.ended + share
        lines.append(ProgressBar(total=max(self._pace.cells, 1), completed=done, width=60))
        left = _duration(self._pace.left_s(share))
        doubted = "".join(
            f", {self._pace.counts[state]} {words}"
            for state, words in (("invalid", "invalid"), ("partly_valid", "partly valid"))
            if self._pace.counts[state]
        )
        lines.append(Text(f"cell {self._pace.ended + 1} of {self._pace.cells}{doubted}, {left} left"))
        lines.append(_progress_table(self._progress) if self._progress else Text(visible_line(self._status)))
        self._live.update(Group(*lines))


def _progress_table(progress: Progress) -> Table:
    table = Table.grid(padding=(0, 1))
    cell = progress.cell
    shown = {
        "target": cell.target,
        "stage": progress.stage,
        "B/flight/run" if progress.arrived is None else "cap/flight/run": (
            f"{cell.concurrency}/{progress.in_flight}/{number(progress.running, 0) or UNVERIFIED}"
        ),
        **_arrived(progress),
        "tok/s": number(progress.tokens_per_s, 0),
        "TTFT ms": number(progress.ttft_ms, 1),
        "TPOT ms": number(progress.tpot_ms, 2),
        "W": number(progress.power_w, 0),
        "J/tok": number(progress.energy_per_token_j),
        "correct": "" if progress.accuracy is None else f"{progress.accuracy:.0%} of {progress.graded}",
        "ok/err": f"{progress.requests}/{progress.errors}",
    }
    table.add_row(*(Text(name, style="dim") for name in shown))
    table.add_row(*(Text(visible_line(value)) for value in shown.values()))
    return table


def _arrived(progress: Progress) -> dict[str, str]:
    """What an open loop has offered so far."""
    if progress.arrived is None:
        return {}
    return {
        "req/s": f"{number(progress.sent_per_s, 1)} of {progress.cell.rate_asked_per_s:g}",
        "late": str(progress.arrived.late),
        "dropped": str(progress.arrived.dropped),
    }


def _reasons(verdict: CellVerdict) -> str:
    if verdict.state == "valid" or not verdict.reasons:
        return ""
    heading = {"invalid": "invalid: ", "unjudged": "not judged yet: "}.get(verdict.state, "")
    return f"; {heading}{verdict.reasons}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return str(timedelta(seconds=round(seconds))) if seconds >= 3600 else f"{seconds / 60:.0f} min"
