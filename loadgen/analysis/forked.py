"""Work that forked processes share: results come in order, as if one process had done all of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

from loadgen.orphan import end_with

T = TypeVar("T")
MOST_PROCESSES = 4


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
    waiting: deque[Future[T]] = deque()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(tasks, os.getpid())) as pool:
        for place in range(len(tasks)):
            waiting.append(pool.submit(_result, place))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_tasks: Sequence[Callable[[], Any]] = ()
"""Of a forked process: inherited, so that they need not be sent."""


def _begin(tasks: Sequence[Callable[[], Any]], parent: int) -> None:
    """A forked process would wait for tasks for ever if its parent was killed: its siblings hold the pipe open.

    A Ctrl-C in the terminal reaches all of them; the parent alone does something about it.
    """
    global _tasks
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _tasks = tasks


def _result(place: int) -> Any:
    return _tasks[place]()
