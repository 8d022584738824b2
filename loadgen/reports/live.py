"""The sweep as it runs: a live view on a terminal, plain lines elsewhere; both on stderr."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from loadgen.load.openloop import CLOSED
from loadgen.measure.observer import Observer, Pace, Progress, Timetable
from loadgen.record.cell import Cell, CellVerdict, Step
from loadgen.reports.rows import NAME, SHORT, Column, Table, shown_held, table_of
from loadgen.reports.textable import fitting, lines_of, wrapped
from loadgen.secret import visible_line, visible_message
from loadgen.serving.metrics import UNVERIFIED
from loadgen.words import STAMP, number


class ShownCell(msgspec.Struct, frozen=True, kw_only=True):
    """A cell in the table of the views: one that has ended, or the one that runs."""

    place: int
    """From 1 on, in the order in which they ended."""
    cell: Cell
    verdict: CellVerdict | None = None
    """None: it runs."""
    last: Progress | None = None

    def figure(self, name: str) -> float | None:
        """A figure of its row in cells.csv; None where it was not measured, and while it runs."""
        value = self.verdict.figures.get(name) if self.verdict is not None else None
        return None if value is None else float(value)

    @property
    def right(self) -> str:
        """Correct answers of those that were graded while it ran, "12/16"."""
        if self.last is None or self.last.accuracy is None:
            return ""
        return f"{round(self.last.accuracy * self.last.graded)}/{self.last.graded}"

    @property
    def state(self) -> str:
        """Its validity in a word, or the stage that it is in."""
        if self.verdict is None:
            return self.last.stage if self.last is not None else ""
        return {"valid": "yes", "partly_valid": "partly", "invalid": "no", "unjudged": ""}[self.verdict.state]


def _now(shown: ShownCell, ended: str, running: str, digits: int | None = None) -> str:
    """The figure of an ended cell, or of the moment."""
    now = getattr(shown.last, running) if shown.verdict is None and shown.last is not None else None
    return number(now if shown.verdict is None else shown.figure(ended), digits)


def _running(shown: ShownCell) -> str:
    text = _now(shown, "running_mean", "running", 1)
    return text or ("not verified" if shown.verdict is None or shown.verdict.figures else "")


CELLS: Sequence[Column[ShownCell]] = (
    Column("\n#", lambda shown: str(shown.place)),
    Column("\ntarget", lambda shown: visible_line(shown.cell.target), NAME),
    Column("\nB", lambda shown: " ".join(filter(None, (shown_held(shown.cell.held), shown.cell.shape)))),
    Column("\nrepeat", lambda shown: str(shown.cell.repeat)),
    Column("running\nmean", _running),
    Column("\ntok/s", lambda shown: _now(shown, "tokens_per_s", "tokens_per_s")),
    Column("TTFT ms\np50", lambda shown: _now(shown, "ttft_ms_p50", "ttft_ms", 1)),
    Column("TTFT ms\np99", lambda shown: number(shown.figure("ttft_ms_p99"), 1)),
    Column("TPOT ms\np50", lambda shown: _now(shown, "tpot_ms_p50", "tpot_ms", 2)),
    Column("E2E ms\np50", lambda shown: number(shown.figure("e2e_ms_p50"), 0)),
    Column("E2E ms\np99", lambda shown: number(shown.figure("e2e_ms_p99"), 0)),
    Column("W\nmean", lambda shown: _now(shown, "power_w_mean", "power_w", 0)),
    Column("\nJ/token", lambda shown: _now(shown, "energy_per_token_j", "energy_per_token_j")),
    Column("\nJ/query", lambda shown: number(shown.figure("energy_per_query_j"))),
    Column("right\nof n", lambda shown: shown.right),
    Column("\nrequests", lambda shown: number(shown.figure("requests"), 0)),
    Column("\nerrors", lambda shown: number(shown.figure("errors"), 0)),
    Column("\nvalid", lambda shown: shown.state, SHORT),
)
DISPENSABLE = (
    "\nerrors", "\nJ/query", "E2E ms\np50", "E2E ms\np99", "W\nmean", "\nrequests", "\nrepeat", "running\nmean",
    "TPOT ms\np50", "TTFT ms\np99", "\n#", "right\nof n", "\nJ/token", "TTFT ms\np50",
)  # fmt: skip
"""Columns that a narrow terminal omits, the first ones first."""


LEAST_BAR, MOST_BAR = 8, 60
"""Characters."""
TALL = 30
"""Lines of a terminal with room for a title of two."""


class QuietView(Observer):
    """Says nothing but why cells are missing and what a Ctrl-C sets off, on stderr."""

    def not_measured(self, cells: Sequence[Cell], why: str) -> None:
        print(visible_message(f"warning: {why}"), file=sys.stderr, flush=True)

    def stopping(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)


class PlainView(Observer):
    """One line per event, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace()
        self._simulated = False
        self._progress: Progress | None = None
        self._ended: list[ShownCell] = []

    def run_begins(self, title: str, timetable: Timetable, simulated: bool) -> None:
        self._pace = Pace(timetable)
        self._simulated = simulated
        if simulated:
            self._say(f"{STAMP}: no GPU is measured, the servers are a cost model")
        self._say(f"{title}; about {_duration(timetable.expected_s)}" if timetable.cells else title)

    def step_begins(self, step: Step, timetable: Timetable) -> None:
        self._pace.add(timetable)
        self._say(_step_line(step))

    def server_starts(self, name: str, argv: Sequence[str] | None) -> None:
        self._say(f"{name}: starting")

    def server_ready(self, name: str, note: str) -> None:
        self._say(f"{name}: ready ({note})")

    def progress(self, progress: Progress) -> None:
        self._progress = progress
        self._pace.progress(progress)

    def cell_ends(self, cell: Cell, line: str, verdict: CellVerdict) -> None:
        last = self._progress if self._progress is not None and self._progress.cell == cell else None
        self._progress = None
        self._pace.cell_ends(cell, verdict)
        self._ended.append(ShownCell(place=self._pace.ended, cell=cell, verdict=verdict, last=last))
        self._show_ended(self._ended[-1], line)

    def not_measured(self, cells: Sequence[Cell], why: str) -> None:
        self._pace.not_measured(cells)
        self.warn(why)

    def note(self, sentence: str) -> None:
        self._say(sentence)

    def warn(self, sentence: str) -> None:
        self._say(f"warning: {sentence}")

    def stopping(self, sentence: str) -> None:
        self._say(sentence)

    def _show_ended(self, shown: ShownCell, line: str) -> None:
        stamp = f"{STAMP} " if self._simulated else ""
        cell, cells = shown.cell, self._pace.cells
        place, left = f"[{shown.place}]", ""
        if cells:  # a search does not know how many there will be
            place, left = f"[{shown.place}/{cells}]", f"; {_duration(self._pace.left_s)} left"
        named = f"{place} {stamp}{cell.target} {cell.level.replace(' ', '')} repeat {cell.repeat}"
        self._say(f"{named}: {_result(shown) or line}{_reasons(shown)}{left}")

    def _say(self, line: str) -> None:
        self._console.print(visible_message(line), markup=False, highlight=False, soft_wrap=True)


class LiveView(PlainView):
    """A block at the bottom of the terminal: the cells that have ended, the one that runs, and the time left. What else
    is said scrolls above it. At the end the whole table is left there."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._title = self._search = ""
        self._status = ""
        self._live = Live(
            console=console, refresh_per_second=4, transient=True, get_renderable=self.drawn,
            redirect_stdout=sys.stdout.isatty(),
        )  # fmt: skip

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._ended:
            for line in self._cell_lines(self._ended):
                self._console.print(line, soft_wrap=True)

    def run_begins(self, title: str, timetable: Timetable, simulated: bool) -> None:
        super().run_begins(title, timetable, simulated)
        self._title = f"{STAMP} · {title}" if simulated else title

    def step_begins(self, step: Step, timetable: Timetable) -> None:
        super().step_begins(step, timetable)
        self._search = _step_line(step)

    def server_starts(self, name: str, argv: Sequence[str] | None) -> None:
        self._status = f"{name}: starting"

    def server_ready(self, name: str, note: str) -> None:
        self._status = f"{name}: ready ({note})"

    def _show_ended(self, shown: ShownCell, line: str) -> None:
        self._status = ""

    def _say(self, line: str) -> None:
        self._console.print(visible_message(line), markup=False, highlight=False)  # broken between words

    def drawn(self) -> Group:
        """As many lines as the terminal has room for: the time left always, of the ended cells the latest."""
        progress, pace = self._progress, self._pace
        width, height = self._console.size
        title = _cut(self._title, width, most=2 if height >= TALL else 1)
        head = [Text(line, style="bold red" if self._simulated else "bold") for line in title]
        head += [Text(line) for line in _cut(self._search, width)] if self._search else []
        running = ShownCell(place=pace.ended + 1, cell=progress.cell, last=progress) if progress is not None else None
        doubted = "".join(
            f", {pace.counts[state]} {words}"
            for state, words in (("invalid", "invalid"), ("partly_valid", "partly valid"), ("not_measured", "lost"))
            if pace.counts.get(state)
        )
        left = f"cell {pace.ended + 1}{doubted}"
        if pace.cells:
            place = min(pace.ended + 1, pace.cells)
            left = f"{_duration(pace.left_s)} left · cell {place} of {pace.cells}{doubted}"
        foot = [Text(line) for line in _cut(_moment(progress) or self._status, width)]
        done = pace.ended + (progress.share if progress is not None else 0.0)
        foot += [_bar(line, done / pace.cells if pace.cells else None, width) for line in _cut(left, width)]
        room = height - len(head) - len(foot) - 1
        body = self._cell_lines(self._ended, running, room) if self._ended or running is not None else []
        return Group(*head, *body, *foot)

    def _cell_lines(
        self, ended: Sequence[ShownCell], running: ShownCell | None = None, room: int | None = None
    ) -> list[Text]:
        """The table of the cells, and below it why some are not valid; both the latest, where there is little room."""
        width, shown = self._console.width, [*ended, *([running] if running is not None else [])]
        table, _ = fitting(_table(shown, simulated=self._simulated), width, DISPENSABLE)
        head, rows = lines_of(table, width)
        why = [line for text in _reasons_of(ended) for line in wrapped(text, width, indent=2, most=room and 2)]
        if room is not None:
            of_reasons = min(len(why), max(room // 3, room - len(head) - len(rows)))
            why = why[len(why) - of_reasons :]
            omitted = len(head) + len(rows) + len(why) - room
            if omitted > 0:
                rows = rows[min(omitted + 1, len(rows)) :]
                head = [*head, f"… {len(shown) - len(rows)} earlier"]
        states = [one.state for one in shown[len(shown) - len(rows) :]]
        styles = {"no": "red", "partly": "yellow", "yes": ""}
        return [
            *(Text(line, style="dim") for line in head),
            *(Text(line, style=styles.get(state, "cyan")) for line, state in zip(rows, states, strict=True)),
            *(Text(line, style="yellow") for line in why),
        ]


def _step_line(step: Step) -> str:
    """Where a search stands, and what it measures next."""
    return f"search, step {step.repeat} ({step.phase}): {step.why}"


def _table(shown: Sequence[ShownCell], *, simulated: bool) -> Table:
    table = table_of(CELLS, shown)
    open_loop = any(one.cell.arrival != CLOSED for one in shown)
    new = {"\nB": "requests\n/s"} if open_loop else {}
    new |= {"\ntarget": f"{STAMP}\ntarget"} if simulated else {}
    return msgspec.structs.replace(table, headings=tuple(new.get(text, text) for text in table.headings)).filled


def _result(shown: ShownCell) -> str:
    """The figures of an ended cell in a line; empty where it has none."""
    figure = shown.figure
    if shown.verdict is None or not shown.verdict.figures:
        return ""
    parts = [
        (number(figure("tokens_per_s")), "{} tok/s"),
        (number(figure("rate_per_s"), 2), "{} requests/s sent"),
        (number(figure("ttft_ms_p50"), 1), f"TTFT {{}} / {number(figure('ttft_ms_p99'), 1)} ms (p50 / p99)"),
        (number(figure("tpot_ms_p50"), 2), "TPOT {} ms"),
        (number(figure("energy_per_token_j")), "{} J/token"),
        (shown.right, "right {}"),
        (number(figure("running_mean"), 1), "running {}"),
        (number(figure("errors") or None, 0), "{} errors"),
    ]
    return ", ".join(words.format(text) for text, words in parts if text)


def _moment(progress: Progress | None) -> str:
    """What the running cell does, beside its line in the table."""
    if progress is None:
        return ""
    cell, arrived = progress.cell, progress.arrived
    running = UNVERIFIED if progress.running is None else f"{number(progress.running, 0)} running"
    stage = f"{progress.stage} {progress.share:.0%}" if progress.stage == "window" else progress.stage
    parts = [f"{visible_line(cell.target)} {cell.level}: {stage}"]
    if arrived is not None:
        parts.append(f"{number(progress.sent_per_s, 1)} of {cell.rate_asked_per_s:g} requests/s sent")
        parts += [f"{n} {what}" for n, what in ((arrived.late, "late"), (arrived.dropped, "dropped")) if n]
    parts += [f"{progress.in_flight} in flight", running, f"{progress.requests} answered", f"{progress.errors} failed"]
    return ", ".join(parts)


def _reasons(shown: ShownCell) -> str:
    verdict = shown.verdict
    if verdict is None or verdict.state == "valid" or not verdict.reasons:
        return ""
    heading = {"invalid": "invalid: ", "unjudged": "not judged yet: "}.get(verdict.state, "")
    return f"; {heading}{verdict.reasons}"


def _reasons_of(ended: Sequence[ShownCell]) -> Iterator[str]:
    """Why cells are not valid: of sentences that differ in their figures alone the latest, with the places of all."""
    alike: dict[str, list[tuple[int, str]]] = {}
    for shown in ended:
        if reason := visible_line(_reasons(shown).removeprefix("; ")):
            kind = _FIGURE.sub("", reason)
            alike[kind] = [*alike.pop(kind, []), (shown.place, reason)]
    for told in alike.values():
        *others, (place, reason) = told
        also = f" (also #{', #'.join(str(other) for other, _ in others)})" if others else ""
        yield f"#{place} {reason}{also}"


_FIGURE = re.compile(r"[0-9][0-9.,]*")


def _bar(text: str, share: float | None, width: int) -> Text:
    """The text, and behind it how much is over, where that is known and there is room."""
    length = min(width - len(text) - 2, MOST_BAR)
    if share is None or length < LEAST_BAR:
        return Text(text, style="bold")
    over = round(length * share)
    return Text.assemble((f"{text}  ", "bold"), ("━" * over, "green"), ("━" * (length - over), "dim"))


def _cut(text: str, width: int, most: int = 1) -> list[str]:
    return wrapped(visible_line(text), width, most=most) if text else []


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return str(timedelta(seconds=round(seconds))) if seconds >= 3600 else f"{seconds / 60:.0f} min"
