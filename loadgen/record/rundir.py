"""The run directory: made for a new run, and held by one sweep at a time.

What an interrupted run has and lacks: finished cells stay as they are, the rest is measured again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from loadgen.errors import StorageError, UsageError, is_of_storage
from loadgen.folder import Folder
from loadgen.record.cell import Block, Cell, plan_blocks
from loadgen.record.journal import attempt_file, cell_end, cell_file
from loadgen.record.manifest import ManifestFile, read_manifest


def unfinished(run_dir: Path, blocks: Iterable[Block]) -> tuple[Block, ...]:
    """The blocks with the cells that are not finished, without those that have none.

    A cell is finished if its journal is whole from the first record to the last, and that says it was not aborted.
    Finished and invalid is finished: its server, or this machine, did not do better, and that is a result.
    """
    left = []
    for block in blocks:
        cells = tuple(cell for cell in block.cells if why_unfinished(run_dir, cell) is not None)
        if cells:
            left.append(msgspec.structs.replace(block, cells=cells))
    return tuple(left)


def unfinished_cells(run_dir: Path) -> list[Cell]:
    """The cells that the run, as its manifest describes it, still lacks."""
    config = read_manifest(run_dir).config
    plan = plan_blocks(config.targets, config.concurrency, config.repeats, config.arrival)
    return [cell for block in unfinished(run_dir, plan) for cell in block.cells]


def why_unfinished(run_dir: Path, cell: Cell) -> str | None:
    """None if the cell is finished."""
    path = cell_file(run_dir, cell)
    if not path.exists():
        return "not begun"
    end = cell_end(path)
    return "killed before its last record" if end is None else end.aborted


def set_aside(run_dir: Path, cell: Cell, manifest: ManifestFile) -> None:
    """Moves the file of an unfinished cell, if there is one, to `journal/attempts`, where it is in no figure."""
    path, why = cell_file(run_dir, cell), why_unfinished(run_dir, cell)
    if why is None or not path.exists():
        return
    attempt = attempt_file(run_dir, cell)
    manifest.set_aside(cell, attempt, why)
    Folder(run_dir).make("journal/attempts")
    path.rename(attempt)


def resume_command(run_dir: Path) -> str:
    """What to type to go on."""
    return f"loadgen sweep --resume {shlex.quote(str(run_dir))}"


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Keeps other sweeps out of the folder, until the end or a kill. Raises UsageError while another one is in it."""
    handle = os.open(run_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{run_dir} is being measured by another loadgen; wait for its end, or stop it") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def stored(run_dir: Path) -> Iterator[None]:
    """Within, a disk that is full or has become read-only raises StorageError, which says how to go on."""
    try:
        yield
    except OSError as error:
        if not is_of_storage(error):
            raise
        raise StorageError(
            f"{run_dir} can no longer be written ({error.strerror}); what was measured before is kept: make room, then "
            f"go on: {resume_command(run_dir)}"
        ) from None
