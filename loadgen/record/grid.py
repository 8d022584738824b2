"""Grid: what the folder of `loadgen grid` holds: the study, its tasks, where each ran, and an ordinary run of each.

study.toml       as it was given
grid.json        GridRecord: the tasks, and every attempt with its node and GPUs
runs/TASK/       the run directory of a finished task, with task.json: Receipt, written last
failed/TASK-aN/  what an attempt that failed left
pooled/NAME/     the runs of one model and dataset on all GPUs of a kind as one run (`loadgen.record.pool`)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.bounds import Bytes, Count, Nanoseconds, Text
from loadgen.errors import UsageError
from loadgen.folder import Folder, read_json
from loadgen.record.cell import TargetName
from loadgen.record.journal import unfinished_cells
from loadgen.secret import error_text

SCHEMA = 1
FILE, STUDY, RECEIPT = "grid.json", "study.toml", "task.json"
RUNS, FAILED, POOLED = "runs", "failed", "pooled"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task ran."""

    node: Text
    """The machine's name."""
    node_id: Text = ""
    """Ray's."""
    gpus: tuple[Text, ...] = ()
    """The GPUs: UUIDs, or where no sensor tells them NUMBER@NODE by Ray's numbers."""

    @property
    def words(self) -> str:
        """Node and GPUs, briefly."""
        return f"{self.node}: {', '.join(self.gpus)}" if self.gpus else self.node


class TaskAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try at a task."""

    number: Count
    state: Literal["running", "done", "failed", "lost"]
    """`lost`: its node or its process died, so nothing is known to be wrong with the task itself."""
    place: Place | None = None
    """None: it never began."""
    error: str = ""
    begun_ns: Nanoseconds | None = None
    """Wall clock."""
    ended_ns: Nanoseconds | None = None


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """An ordinary sweep of all precisions of one model on one GPU (or on the few that a server needs)."""

    id: TargetName
    model: Text
    dataset: Text | None = None
    """None: the sweep's default."""
    gpu: Count
    """Which of the study's GPU blocks, from 1."""
    accelerator: Text = ""
    """Ray's type of the GPU; empty: any."""
    gpus: Count = 1
    """How many it takes: the largest tensor parallel size of its servers."""
    block: Count = 1
    """Which block of repeats on this GPU, from 1."""
    repeats: Count
    options: dict[str, Any]
    """Of the sweep, as `loadgen.sweep` takes them."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """That a run directory is whole, and what it is; the node writes it when everything else is written."""

    schema: int = SCHEMA
    task: TargetName
    options: dict[str, Any]
    attempt: Count
    place: Place
    complete: bool
    """Every planned cell was measured, valid or not."""
    files: dict[Text, tuple[Bytes, Text]]
    """Size and sha256 of each file."""


class GridRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of grid.json."""

    schema: int = SCHEMA
    name: Text
    loadgen: Text
    simulated: bool
    tasks: tuple[Task, ...]
    attempts: dict[Text, tuple[TaskAttempt, ...]] = {}
    """By task."""


def is_grid(folder: Path) -> bool:
    """Whether a folder is that of a grid."""
    return Folder(folder).has(FILE)


def read_grid(folder: Path) -> GridRecord:
    """grid.json. Raises UsageError if the folder is not a grid's, or the file is damaged."""
    try:
        record: GridRecord = read_json(folder, FILE, GridRecord)
    except OSError as error:
        raise UsageError(
            f"{folder} is not a grid's folder: {FILE} cannot be read ({error.strerror}); name one made by loadgen grid"
        ) from None
    except ValueError as error:
        raise UsageError(
            f"{folder}/{FILE} is not what loadgen writes ({error_text(error)}); put that file back"
        ) from None
    return record


def write_grid(folder: Path, record: GridRecord) -> None:
    """Writes grid.json, whole or not at all."""
    text = msgspec.json.format(msgspec.json.encode(record), indent=2)
    Folder(folder).write(FILE, text + b"\n", durable=True)


def receipt_of(run_dir: Path, task: Task, attempt: int, place: Place) -> Receipt:
    """What is true of a run directory now."""
    files = {name: _digest(run_dir, name) for name in sorted(_files(run_dir)) if name != RECEIPT}
    complete = Folder(run_dir).has("manifest.json") and not unfinished_cells(run_dir)
    return Receipt(task=task.id, options=task.options, attempt=attempt, place=place, complete=complete, files=files)


def write_receipt(run_dir: Path, receipt: Receipt) -> None:
    """Writes task.json, the last file of a run directory."""
    Folder(run_dir).write(RECEIPT, msgspec.json.encode(receipt) + b"\n", durable=True)


def read_receipt(run_dir: Path) -> Receipt | None:
    """task.json; None where there is none, or it is not whole."""
    try:
        receipt: Receipt = read_json(run_dir, RECEIPT, Receipt)
    except (OSError, ValueError):
        return None
    return receipt


def why_not_whole(run_dir: Path, task: Task) -> str | None:
    """None if the folder holds the task's run, unchanged since the node wrote it down; else what is wrong with it."""
    receipt = read_receipt(run_dir)
    if receipt is None:
        return f"has no whole {RECEIPT}"
    if receipt.task != task.id or receipt.options != task.options:
        return "is of another task, or was measured with other options"
    for name, (size, sha256) in receipt.files.items():
        try:
            there = _digest(run_dir, name)
        except (OSError, UsageError):
            return f"lacks {name}"
        if there != (size, sha256):
            return f"has another {name} than the node wrote"
    return None


def done(folder: Path, task: Task) -> bool:
    """Whether the task's run is there, whole and complete."""
    run_dir = folder / RUNS / task.id
    receipt = read_receipt(run_dir) if run_dir.is_dir() else None
    return receipt is not None and receipt.complete and why_not_whole(run_dir, task) is None


def grid_runs(folder: Path) -> dict[str, Path]:
    """The run directories of a grid's tasks, by task, in the order of the tasks; those that are not there left out."""
    paths = {task.id: folder / RUNS / task.id for task in read_grid(folder).tasks}
    return {name: path for name, path in paths.items() if Folder(path).has("manifest.json")}


def _files(run_dir: Path) -> Iterator[str]:
    for path in run_dir.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path.relative_to(run_dir).as_posix()


def _digest(run_dir: Path, name: str) -> tuple[int, str]:
    with Folder(run_dir).open(name) as file:
        content = file.read()
        return len(content), hashlib.sha256(content).hexdigest()
