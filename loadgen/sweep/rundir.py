"""The run directory: made for a new run, and held by one sweep at a time."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from loadgen.errors import StorageError, UsageError, is_of_storage
from loadgen.sweep.config import SweepConfig
from loadgen.sweep.resume import resume_command


def create_run_dir(config: SweepConfig) -> Path:
    """The folder that `--out` names, or a new one under `runs`. Raises UsageError if it holds something already."""
    if config.out is not None:
        run_dir = Path(config.out)
        if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
            raise UsageError(f"--out {run_dir}: exists already and is not empty; name a new folder")
    else:
        model = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(config.model).name) if config.model else config.mode
        base = Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-{model}"
        run_dir = next(path for path in _numbered(base) if not path.exists())
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir):
            pass
    except OSError as error:
        raise UsageError(f"--out {run_dir}: cannot be written ({error.strerror}); name a writable folder") from None
    return run_dir


@contextlib.contextmanager
def new_run_dir(config: SweepConfig) -> Iterator[Path]:
    """As `create_run_dir`; a sweep that is refused within takes the folders that were made for it away again."""
    base = Path("runs") if config.out is None else Path(config.out)
    missing = list(itertools.takewhile(lambda path: not path.exists(), (base, *base.parents)))
    run_dir = create_run_dir(config)
    try:
        yield run_dir
    except UsageError:
        for folder in dict.fromkeys((*([run_dir] if config.out is None else []), *missing)):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


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


def _numbered(base: Path) -> Sequence[Path]:
    return [base, *(base.with_name(f"{base.name}-{n}") for n in range(2, 1000))]
