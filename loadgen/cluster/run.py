"""A grid from its study to its folder: tasks are handed to Ray, runs come home, what failed is tried once more."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from time import time_ns
from typing import Literal, Protocol

import msgspec
from msgspec.structs import replace

from loadgen import __version__
from loadgen.cluster.archive import Archive, is_url
from loadgen.cluster.node import Order, unpack
from loadgen.cluster.ray import Cluster, Ended, Slot
from loadgen.cluster.study import Study, parse_study, read_study
from loadgen.cluster.tasks import expected_s, tasks_of
from loadgen.errors import Interrupted, StorageError, UsageError, is_of_storage
from loadgen.folder import Folder, read_file
from loadgen.options import GridOptions
from loadgen.record.grid import (
    FAILED,
    RUNS,
    STUDY,
    GridRecord,
    Task,
    TaskAttempt,
    done,
    is_grid,
    read_grid,
    read_receipt,
    why_not_whole,
    write_grid,
)
from loadgen.record.journal import held

MOST_FAILURES = 2
"""Times that a task may fail by itself."""
MOST_LOSSES = 5
"""Times that its node or its process may die."""
WAIT_S = 0.5
ARRIVING = ".arriving"
"""Ends the name of a run directory that is being written."""


class GridObserver(Protocol):
    """Hears what becomes of the tasks."""

    def changed(self, record: GridRecord, said: Mapping[str, tuple[str, str]]) -> None:
        """Once in a while; `said`: by task, where it runs and how far it is."""
        ...

    def say(self, sentence: str) -> None: ...


class Rehearsal(msgspec.Struct, frozen=True):
    """What a grid would do."""

    record: GridRecord
    """The tasks; of a grid to be continued with what became of them."""
    folder: str
    expected_s: dict[str, float]
    """By task, of those that are left: about how long each takes."""
    slots: int
    """Tasks that run at once."""

    @property
    def total_s(self) -> float:
        """About how long all of them take on these GPUs."""
        longest = max(self.expected_s.values(), default=0.0)
        return max(longest, sum(self.expected_s.values()) / max(self.slots, 1))


def grid(study: Path | None, options: GridOptions, observer: GridObserver) -> Path:
    """Does what `loadgen grid` does up to the comparison, and returns the grid's folder.

    Raises UsageError before anything is measured, and Interrupted on Ctrl-C and SIGTERM: `--resume` continues.
    """
    folder, text, known = _given(study, options)
    archive = archive_of(options)
    with _cluster(known, options) as cluster:
        if text is not None:
            begin_grid(folder, text, known, cluster)
        try:
            with _sigterm_as_ctrl_c():
                run_grid(folder, cluster, observer, archive)
        except KeyboardInterrupt:
            raise Interrupted(folder, hurried=True) from None
    return folder


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """What is finished is kept, and the command to go on is said."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def archive_of(options: GridOptions) -> Archive | None:
    """Where the grid's folder is copied to, if `--out` or `--resume` is a URL. Raises UsageError."""
    url = options.get("resume") or options.get("out")
    return Archive(str(url)) if url is not None and is_url(url) else None


def rehearse(study: Path | None, options: GridOptions) -> Rehearsal:
    """A grid, checked as `grid` checks it; nothing is measured, and no folder is made. Raises UsageError."""
    folder, text, known = _given(study, options)
    with _cluster(known, options) as cluster:
        tasks = planned(known, cluster)
        slots = len(set(cluster.slots(max(task.gpus for task in tasks), known.gpus)))
    record = GridRecord(name=known.name, loadgen=__version__, simulated=known.simulated, tasks=tasks)
    if text is None:
        record = read_grid(folder)
    left = [task for task in record.tasks if not done(folder, task)]
    return Rehearsal(record, str(folder), {task.id: expected_s(task) for task in left}, slots)


def _given(study: Path | None, options: GridOptions) -> tuple[Path, str | None, Study]:
    """The folder, the text of a new study (None: the folder's is continued), and the study."""
    resume, out, archive = options.get("resume"), options.get("out"), archive_of(options)
    if archive is not None:
        copied = Path("grids") / archive.url.rpartition("/")[2]
        if resume is not None:
            archive.fetch(copied)
        elif archive.has_grid():
            raise UsageError(f"--out {out}: a grid is there already; continue it with --resume {out}")
    if resume is not None:
        folder = copied if archive is not None else Path(resume)
        if study is not None:
            raise UsageError(f"{study}: --resume {resume} continues the study in that folder; omit the file")
        if out is not None and str(out) != str(resume):
            raise UsageError(f"--out {out}: --resume continues in {resume}; omit --out")
        return folder, None, study_of(folder)
    if study is None:
        raise UsageError("name a study, as in loadgen grid study.toml, or a grid to continue with --resume DIR")
    known = read_study(study)
    folder = copied if archive is not None else Path(out or _default(known))
    return folder, read_file(study).decode(), known


def _default(study: Study) -> Path:
    return Path("grids") / f"{datetime.now():%Y-%m-%d-%H%M%S}-{study.name}"


def _cluster(study: Study, options: GridOptions) -> Cluster:
    """Simulated servers and those on a CPU need no GPU: an instance on this machine gets made ones for them."""
    made = sum(study.gpus.values()) or 1
    without = study.simulated or study.sweep.get("device") == "cpu"
    return Cluster(options.get("ray_address"), local_gpus=made if without else None)


def begin_grid(folder: Path, text: str, study: Study, cluster: Cluster) -> GridRecord:
    """Makes the folder of a new grid: the study and its tasks.

    Raises UsageError for options that a sweep refuses, a cluster without such GPUs, or a folder that is not empty.
    """
    record = GridRecord(
        name=study.name, loadgen=__version__, simulated=study.simulated, tasks=planned(study, cluster)
    )  # fmt: skip
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        again = f"continue it with --resume {folder}, or " if folder.is_dir() and is_grid(folder) else ""
        raise UsageError(f"--out {folder}: exists already and is not empty; {again}name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({error.strerror}); name a writable folder") from None
    with _writable(folder):
        Folder(folder).write(STUDY, text.encode())
        write_grid(folder, record)
    return record


def planned(study: Study, cluster: Cluster) -> tuple[Task, ...]:
    """The tasks of a study on the GPUs of a cluster."""
    sizes = {task.gpus for task in tasks_of(study, [""])}
    slots = cluster.slots(max(sizes), study.gpus)
    return tasks_of(study, [slot.accelerator for slot in slots])


def study_of(folder: Path) -> Study:
    """The study of a grid that was begun. Raises UsageError."""
    read_grid(folder)
    return parse_study(Folder(folder).read(STUDY).decode(), str(folder / STUDY))


def run_grid(folder: Path, cluster: Cluster, observer: GridObserver, archive: Archive | None = None) -> GridRecord:
    """Runs the tasks that a grid's folder lacks and returns what became of all.

    A finished task is known by its whole run directory alone, so that none is run or counted twice, however the head
    ended. Raises UsageError if another loadgen is at it.
    """
    with held(folder), _writable(folder):
        return _Grid(folder, cluster, observer, archive).run()


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Within, a disk that is full or has become read-only raises StorageError, which says how to go on."""
    try:
        yield
    except OSError as error:
        if not is_of_storage(error):
            raise
        raise StorageError(
            f"{folder} can no longer be written ({error.strerror}); finished tasks are kept: make room, then go on: "
            f"loadgen grid --resume {folder}"
        ) from None


class _Grid:
    def __init__(self, folder: Path, cluster: Cluster, observer: GridObserver, archive: Archive | None) -> None:
        self._archive = archive
        self._folder, self._cluster, self._observer = folder, cluster, observer
        self._record = read_grid(folder)
        self._tries: Counter[tuple[str, str]] = Counter()
        """By task and state, in this session."""
        self._warned = False

    def run(self) -> GridRecord:
        tasks = self._record.tasks
        for leftover in (self._folder / RUNS).glob(f"*{ARRIVING}"):
            shutil.rmtree(leftover)
        left = [task for task in tasks if not self._adopted(task)]
        for task in left:
            self._put_aside(task)
        slots = self._slots(left)
        for task in left:
            self._submit(task, slots.get((task.accelerator, task.gpu)))
        open_tasks = {task.id for task in left}
        while open_tasks:
            for ended in self._cluster.wait(WAIT_S):
                if self._settle(ended):
                    open_tasks.discard(ended.order.task.id)
            self._observer.changed(self._record, self._cluster.said())
            self._warn_of_no_room(left, open_tasks)
        write_grid(self._folder, self._record)
        return self._record

    def _slots(self, tasks: Sequence[Task]) -> dict[tuple[str, int], Slot]:
        """The node of each GPU block: the same for all tasks of the block as long as it is alive."""
        found: dict[tuple[str, int], Slot] = {}
        for kind in dict.fromkeys(task.accelerator for task in self._record.tasks):
            of_kind = [task for task in self._record.tasks if task.accelerator == kind]
            blocks = sorted({task.gpu for task in of_kind})
            if any(task.accelerator == kind for task in tasks):
                places = self._cluster.slots(max(task.gpus for task in of_kind), {kind: len(blocks)})
                found |= {(kind, block): slot for block, slot in zip(blocks, places, strict=True)}
        return found

    def _adopted(self, task: Task) -> bool:
        """Whether the task is done; an earlier head may have been killed before it could write so."""
        if not done(self._folder, task):
            return False
        attempts = self._record.attempts.get(task.id, ())
        receipt = read_receipt(self._folder / RUNS / task.id)
        if receipt is not None and not any(attempt.state == "done" for attempt in attempts):
            others = tuple(attempt for attempt in attempts if attempt.number != receipt.attempt)
            self._note(task, (*others, TaskAttempt(number=receipt.attempt, state="done", place=receipt.place)))
        return True

    def _put_aside(self, task: Task) -> None:
        """An incomplete run of an earlier session is kept, and in no figure."""
        run_dir = self._folder / RUNS / task.id
        if run_dir.exists():
            receipt = read_receipt(run_dir)
            self._keep_failed(task, run_dir, receipt.attempt if receipt else 0)
        attempts = self._record.attempts.get(task.id, ())
        if any(attempt.state == "running" for attempt in attempts):
            lost = "the head ended before it"
            self._note(task, tuple(
                replace(attempt, state="lost", error=lost) if attempt.state == "running" else attempt
                for attempt in attempts
            ))  # fmt: skip

    def _keep_failed(self, task: Task, path: Path, attempt: int) -> None:
        target = self._folder / FAILED / f"{task.id}-a{attempt}"
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        path.rename(target)

    def _submit(self, task: Task, slot: Slot | None) -> None:
        attempts = self._record.attempts.get(task.id, ())
        number = max((attempt.number for attempt in attempts), default=0) + 1
        self._note(task, (*attempts, TaskAttempt(number=number, state="running", begun_ns=time_ns())))
        self._cluster.submit(Order(task=task, attempt=number, loadgen=__version__), slot)

    def _settle(self, ended: Ended) -> bool:
        """Whether the task is at its end: done, or tried often enough."""
        task, number, delivery = ended.order.task, ended.order.attempt, ended.delivery
        error = ended.error
        state: Literal["done", "failed", "lost"] = "lost" if ended.lost else "failed"
        place = delivery.place if delivery is not None else None
        arriving = self._folder / RUNS / f"{task.id}{ARRIVING}"
        if delivery is not None:
            unpack(delivery, arriving)
            error = delivery.error
            if delivery.complete:
                damage = why_not_whole(arriving, task)
                error, state = (f"its run directory {damage}", "lost") if damage else ("", "done")
        self._tries[task.id, state] += 1
        again = self._tries[task.id, "failed"] < MOST_FAILURES and self._tries[task.id, "lost"] < MOST_LOSSES
        partial = not again and read_receipt(arriving) is not None
        if state == "done" or partial:  # what was measured of it counts
            arriving.rename(self._folder / RUNS / task.id)
        elif arriving.exists():
            self._keep_failed(task, arriving, number)
        self._note(task, tuple(
            replace(attempt, state=state, place=place, error=error, ended_ns=time_ns())
            if attempt.number == number else attempt
            for attempt in self._record.attempts[task.id]
        ))  # fmt: skip
        if self._archive is not None and (state == "done" or partial):
            self._archive.put(self._folder, (STUDY, f"{RUNS}/{task.id}"))
        if state == "done":
            return True
        tries = self._tries[task.id, "failed"] + self._tries[task.id, "lost"]
        so = "it is tried again" if again else f"given up after {tries} tries"
        so += "; what was measured of it counts" if partial else ""
        self._observer.say(f"{task.id} {state}{f' on {place.words}' if place else ''}: {error}; {so}")
        if again:
            self._submit(task, None)
        return not again

    def _note(self, task: Task, attempts: tuple[TaskAttempt, ...]) -> None:
        self._record = replace(self._record, attempts={**self._record.attempts, task.id: attempts})
        write_grid(self._folder, self._record)

    def _warn_of_no_room(self, left: Sequence[Task], open_tasks: set[str]) -> None:
        stuck = next((task for task in left if task.id in open_tasks and not self._cluster.has_room(task.gpus)), None)
        if stuck is not None and not self._warned:
            self._observer.say(
                f"no node with {stuck.gpus} GPU{'s' * (stuck.gpus > 1)} is alive: {len(open_tasks)} tasks wait for "
                "one; add a node, or stop with Ctrl-C and continue later with --resume"
            )
        self._warned = stuck is not None
