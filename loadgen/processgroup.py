"""ProcessGroup: a command in its own session with every process it started, which never outlives loadgen.

Forked: work that forked processes share; results come in order, as if one process had done all of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from mmap import ACCESS_READ, mmap
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from loadgen import guardian
from loadgen.folder import Folder
from loadgen.secret import without_secrets

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """From now on this process is killed when the main thread of `parent`, its parent's id, ends; at once if it has
    ended. On Linux only: elsewhere the process runs on until it notices."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def exit_words(status: int) -> str:
    """How a process ended, from its `Popen.returncode`."""
    if status >= 0:
        return f"exit status {status}"
    return f"signal {signal.Signals(-status).name}"


POLL_S = 0.05
FLUSH_S = 10.0
GUARDIAN_S = 2 * guardian.PATIENCE_S + 5.0


class ProcessGroup:
    """A running command, leader of a new session and process group; its output goes to a log without `secrets` and
    anything that looks like one, which only its owner can read."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], log_path: Path, secrets: Sequence[str] = ()
    ) -> None:
        """Start the command. Raises OSError when it cannot be executed."""
        self._mark = token_hex(8)
        # SPT_NOENV: vLLM's processes name themselves, and would write the name over the variables that mark them.
        env = {**env, guardian.MARK: self._mark, "SPT_NOENV": "1"}
        read, write = os.pipe()
        with os.fdopen(read, "rb"), os.fdopen(write, "wb") as output:
            self._guardian, self._control = self._start_guardian(read, log_path)
            self._tell(json.dumps(list(secrets)))
            try:
                with _interruptible():
                    self.leader = subprocess.Popen(
                        argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                    )
            except OSError:
                self._release()
                raise
        self._tell(str(self.leader.pid))

    def _start_guardian(self, output: int, log_path: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """The guardian, which copies the output to the log, and the socket that controls it."""
        ours, theirs = socket.socketpair()
        ours.settimeout(FLUSH_S)
        with theirs, Folder(log_path.parent).append(log_path.name, mode=0o600) as log:
            os.fchmod(log.fileno(), 0o600)
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guardian.__file__, self._mark, str(output)],
                env=without_secrets(os.environ),
                stdin=theirs.fileno(),
                stdout=log,
                stderr=subprocess.DEVNULL,
                pass_fds=[output],
                start_new_session=True,
            )
        return process, ours

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(f"{line}\n".encode())

    def flush(self) -> None:
        """Returns when the whole lines that the command has written so far are in its log."""
        with contextlib.suppress(OSError):
            self._control.sendall(b"\n")
            self._control.recv(1)

    def _release(self) -> None:
        """The guardian writes the rest of the log and ends."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        try:
            self._guardian.wait(GUARDIAN_S)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            self._guardian.wait()
        self._control.close()

    def poll(self) -> int | None:
        """The leader's exit status (negative: the signal that ended it), or None while it runs."""
        return self.leader.poll()

    def members(self) -> list[int]:
        """Ids of the command's running processes, also of those that started their own session."""
        return guardian.family(self.leader.pid, self._mark)

    def end(self, *, interrupt_s: float, terminate_s: float) -> bool:
        """SIGINT to the leader, then SIGTERM, then SIGKILL to the processes that are left. True: none is left."""
        known = {pid: guardian.started(pid) for pid in self.members()}
        if self.poll() is None:
            self.leader.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.leader.wait(interrupt_s)
        for number, patience_s in ((signal.SIGTERM, terminate_s), (signal.SIGKILL, terminate_s)):
            if not self._wait_gone(known, 0.0):
                guardian.signal_all(self._left(known), number)
                self._wait_gone(known, patience_s)
        self._release()
        return self._wait_gone(known, 0.0)

    def _left(self, known: Mapping[int, str | None]) -> list[int]:
        """Members now, and known ones that still run: once a parent has ended, its children are not found by it."""
        kept = (pid for pid, begun in known.items() if begun is not None and guardian.started(pid) == begun)
        return sorted({*self.members(), *kept})

    def _wait_gone(self, known: Mapping[int, str | None], patience_s: float) -> bool:
        deadline = time.monotonic() + patience_s
        while self.poll() is None or self._left(known):
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A shell's background job (`nohup loadgen sweep &`) ignores SIGINT, and what Ray starts blocks it. A server would
    inherit that."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


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
        ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(tasks, ours)) as pool,
    ):
        free: list[Path] = []
        for place in range(len(tasks)):
            waiting.append(pool.submit(_result, place, free.pop() if free else Path(folder, str(place))))
            if len(waiting) > 2 * processes:
                yield _unpacked(waiting.popleft().result(), free)
        while waiting:
            yield _unpacked(waiting.popleft().result(), free)


class _Packed(NamedTuple):
    """A result on its way. Its arrays and tables lie in a file: through the pool's pipe they would be copied half a
    dozen times."""

    frame: bytes
    path: Path
    spans: list[slice]


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
    gc.freeze()
    gc.disable()  # but once a task, and then of what the task left: the rest was looked through before


def _result(place: int, path: Path) -> _Packed:
    spans: list[slice] = []
    arrays: list[pickle.PickleBuffer] = []
    frame = pickle.dumps(_tasks[place](), protocol=5, buffer_callback=arrays.append)
    over_an_earlier_one = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(over_an_earlier_one, "wb") as file:
        file.write(bytes(_ALIGNED))  # an empty file cannot be mapped
        for array in arrays:
            begin = file.tell()
            spans.append(slice(begin, begin + file.write(array.raw())))
            file.write(bytes(-file.tell() % _ALIGNED))
    gc.collect()
    gc.freeze()
    return _Packed(frame, path, spans)


def _unpacked(packed: _Packed, free: list[Path]) -> Any:
    """The file is `free` for another result when the last array that lies in it is gone: to write over it takes the
    system about 0.57 of the time of a new one (40 MB, ext4)."""
    with packed.path.open("rb") as file:
        mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
    weakref.finalize(mapped, free.append, packed.path).atexit = False
    whole = memoryview(mapped)
    return pickle.loads(packed.frame, buffers=[whole[span] for span in packed.spans])
