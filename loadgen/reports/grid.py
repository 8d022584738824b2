"""The tasks of a grid while they run: a live table on a terminal, plain lines elsewhere; both on stderr."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from time import time_ns
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from loadgen.record.grid import GridRecord, Task, TaskAttempt
from loadgen.reports.rows import NAME, SHORT, TEXT, Column, Table, table_of
from loadgen.reports.textable import fitting, lines_of
from loadgen.secret import visible_message
from loadgen.words import STAMP

if TYPE_CHECKING:
    from loadgen.cluster.run import Rehearsal


class ShownTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task in the table."""

    task: Task
    attempts: tuple[TaskAttempt, ...] = ()
    where: str = ""
    step: str = ""
    """How far it is."""

    @property
    def state(self) -> str:
        if not self.attempts:
            return "waits"
        state = self.attempts[-1].state
        return state if state != "running" else "runs" if self.step else "waits"

    @property
    def place(self) -> str:
        """Where it ran, or runs."""
        place = self.attempts[-1].place if self.attempts else None
        return place.words if place is not None else self.where if self.state == "runs" else ""

    @property
    def minutes(self) -> str:
        begun = self.attempts[-1].begun_ns if self.attempts else None
        if begun is None or self.state == "waits":
            return ""
        return f"{((self.attempts[-1].ended_ns or time_ns()) - begun) / 60e9:.1f}"

    @property
    def note(self) -> str:
        """How far it is; what went wrong before."""
        told = self.step if self.state == "runs" else self.attempts[-1].error if self.attempts else ""
        again = f"try {len(self.attempts)}" if len(self.attempts) > 1 else ""
        return ", ".join(filter(None, (again, told)))


TASKS: Sequence[Column[ShownTask]] = (
    Column("task", lambda shown: shown.task.id, NAME),
    Column("model", lambda shown: shown.task.model, SHORT),
    Column("dataset", lambda shown: shown.task.dataset or "", SHORT),
    Column("GPUs", lambda shown: str(shown.task.gpus)),
    Column("repeats", lambda shown: str(shown.task.repeats)),
    Column("state", lambda shown: shown.state, SHORT),
    Column("node: GPU", lambda shown: shown.place, SHORT),
    Column("min", lambda shown: shown.minutes),
    Column("", lambda shown: shown.note, TEXT),
)
DISPENSABLE = ("model", "GPUs", "dataset", "repeats", "min")
"""Columns that a narrow terminal omits, the first ones first."""
STYLES = {"failed": "red", "lost": "yellow", "runs": "cyan", "waits": "dim"}


def shown_tasks(record: GridRecord, said: Mapping[str, tuple[str, str]] | None = None) -> list[ShownTask]:
    """The rows of the table, in the order of the tasks."""
    return [
        ShownTask(task=task, attempts=record.attempts.get(task.id, ()), where=where, step=step)
        for task in record.tasks
        for where, step in [(said or {}).get(task.id, ("", ""))]
    ]


def tasks_table(record: GridRecord, said: Mapping[str, tuple[str, str]] | None = None) -> Table:
    """The tasks, each with its state and place."""
    return table_of(TASKS, shown_tasks(record, said))


def failed_tasks(record: GridRecord) -> list[str]:
    """The tasks that are not done."""
    return [one.task.id for one in shown_tasks(record) if one.state != "done"]


def rehearsal_lines(rehearsal: Rehearsal, width: int) -> list[str]:
    """The tasks of a grid that was not begun, and what they cost."""
    record, expected_s = rehearsal.record, rehearsal.expected_s
    table = tasks_table(record)
    minutes = [f"{expected_s[task.id] / 60:.1f}" if task.id in expected_s else "" for task in record.tasks]
    place = table.headings.index("min")
    rows = tuple((*row[:place], text, *row[place + 1 :]) for row, text in zip(table.rows, minutes, strict=True))
    head, lines = lines_of(fitting(msgspec.structs.replace(table, rows=rows), width, DISPENSABLE)[0], width)
    left = len(expected_s)
    return [
        *head, *lines,
        f"{left} task{'s' * (left != 1)}, about {sum(expected_s.values()) / 60:.1f} min of GPU time; {rehearsal.slots} "
        f"at once, so about {rehearsal.total_s / 60:.1f} min, into {rehearsal.folder}; nothing was started",
    ]  # fmt: skip


class PlainTasks:
    """A line per task that begins or ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[str, str] = {}

    def changed(self, record: GridRecord, said: Mapping[str, tuple[str, str]]) -> None:
        tasks = shown_tasks(record, said)
        ended = sum(one.state == "done" for one in tasks)
        for one in tasks:
            if one.state in ("runs", "done") and self._told.get(one.task.id) != f"{one.state} {len(one.attempts)}":
                self._told[one.task.id] = f"{one.state} {len(one.attempts)}"
                where = f" on {one.place}" if one.place else ""
                stamp = f"{STAMP} " if record.simulated else ""
                self.say(f"[{ended}/{len(tasks)}] {stamp}{one.task.id} {one.state}{where}")

    def say(self, sentence: str) -> None:
        self._console.print(visible_message(sentence), markup=False, highlight=False, soft_wrap=True)


class QuietTasks(PlainTasks):
    """Only what went wrong."""

    def changed(self, record: GridRecord, said: Mapping[str, tuple[str, str]]) -> None:
        pass


class LiveTasks(PlainTasks):
    """The table of all tasks at the bottom of the terminal; sentences scroll above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.lines: list[Text] = []
        """What is shown now."""
        self._live = Live(
            console=console, refresh_per_second=4, get_renderable=lambda: Group(*self.lines),
            redirect_stdout=sys.stdout.isatty(),
        )  # fmt: skip

    def __enter__(self) -> LiveTasks:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def changed(self, record: GridRecord, said: Mapping[str, tuple[str, str]]) -> None:
        width, height = self._console.size
        tasks = shown_tasks(record, said)
        head, rows = lines_of(fitting(tasks_table(record, said), width, DISPENSABLE)[0], width)
        counts = Counter(one.state for one in tasks)
        total = f"{counts.pop('done', 0)} of {len(tasks)} tasks done" + "".join(
            f", {count} {state}" for state, count in counts.items()
        )
        room = max(height - len(head) - 2, 1)
        styled = [Text(row, style=STYLES.get(one.state, "")) for row, one in zip(rows, tasks, strict=False)]
        if len(styled) > room:  # those that run or went wrong first
            order = sorted(range(len(styled)), key=lambda place: (tasks[place].state in ("done", "waits"), place))
            styled = [styled[place] for place in sorted(order[:room])]
        stamp = f"{STAMP} · " if record.simulated else ""
        title = Text(f"{stamp}{record.name}: {total}", style="bold")
        self.lines = [title, *(Text(line, style="dim") for line in head), *styled]
