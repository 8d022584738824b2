"""Work that forked processes share: results come in order, as if one process had done all of it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from loadgen.processgroup import end_with

T = TypeVar("T")
MOST_PROCESSES = 4
_ALIGNED = 64
"""Bytes of which the place of every array in a file is a multiple."""


def spare_processes() -> int:
    """How many processes may work at once: one for each core. One beside other threads: a process with threads cannot
    be forked without danger."""
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def forked(tasks: Sequence[Callable[[], T]], processes: int) -> Iterator[T]:
    """What each task returns, in order. A process is at most two tasks ahead: results that wait are memory.

    What a task raises is raised here. With one process nothing is forked.
    """
    if processes == 1:
        yield from (task() for task in tasks)
        return
    waiting: deque[Future[_Packed]] = deque()
    context, ours = multiprocessing.get_context("fork"), os.getpid()
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(tasks, folder, ours)) as pool,
    ):
        for place in range(len(tasks)):
            waiting.append(pool.submit(_result, place))
            if len(waiting) > 2 * processes:
                yield _unpacked(waiting.popleft().result())
        while waiting:
            yield _unpacked(waiting.popleft().result())


class _Packed(NamedTuple):
    """A result on its way. Its arrays and tables lie in a file: through the pool's pipe they would be copied half a
    dozen times."""

    frame: bytes
    path: Path
    spans: list[slice]


_tasks: Sequence[Callable[[], Any]] = ()
_folder = Path()
"""Both of a forked process: inherited, so that they need not be sent."""


def _begin(tasks: Sequence[Callable[[], Any]], folder: str, parent: int) -> None:
    """A forked process would wait for tasks for ever if its parent was killed: its siblings hold the pipe open.

    A Ctrl-C in the terminal reaches all of them; the parent alone does something about it.
    """
    global _tasks, _folder
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _tasks, _folder = tasks, Path(folder)
    gc.freeze()
    gc.disable()  # but once a task: what was there before is the parent's to look through


def _result(place: int) -> _Packed:
    path, spans = _folder / str(place), []
    arrays: list[pickle.PickleBuffer] = []
    frame = pickle.dumps(_tasks[place](), protocol=5, buffer_callback=arrays.append)
    with path.open("wb") as file:
        file.write(bytes(_ALIGNED))  # an empty file cannot be mapped
        for array in arrays:
            begin = file.tell()
            spans.append(slice(begin, begin + file.write(array.raw())))
            file.write(bytes(-file.tell() % _ALIGNED))
    gc.collect()
    return _Packed(frame, path, spans)


def _unpacked(packed: _Packed) -> Any:
    """The file has no name any more, and is gone with the last array that lies in it."""
    with packed.path.open("rb") as file:
        whole = memoryview(mmap(file.fileno(), 0, access=ACCESS_READ))
    packed.path.unlink()
    return pickle.loads(packed.frame, buffers=[whole[span] for span in packed.spans])
