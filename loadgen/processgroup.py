"""ProcessGroup: a command in its own session with every process it started, which never outlives loadgen."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from secrets import token_hex

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
    """A shell's background job (`nohup loadgen sweep &`) ignores SIGINT, and a server would inherit that."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
