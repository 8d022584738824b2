"""How a process that loadgen started for itself ends with it, however that ends.

ProcessGroup: a process in its own session with everything it started, ended together and never left behind.
"""

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
    """From now on this process is killed when its parent's main thread ends; at once, if that was before.

    `parent` is the parent's process id. Only Linux knows how: elsewhere it lives on until it notices.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def exit_words(status: int) -> str:
    """How a process ended, by what `Popen.returncode` says."""
    if status >= 0:
        return f"exit status {status}"
    return f"signal {signal.Signals(-status).name}"


POLL_S = 0.05
FLUSH_S = 10.0
GUARDIAN_S = 2 * guardian.PATIENCE_S + 5.0


class ProcessGroup:
    """A running command, leader of a new session and process group; its output goes to a log, masked."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], log_path: Path, secrets: Sequence[str] = ()
    ) -> None:
        """Start the command. Raises OSError when it cannot be executed.

        The log can be read by its owner alone, and has no `secrets` and nothing that looks like one.
        """
        self._mark = token_hex(8)
        # SPT_NOENV: vLLM's processes name themselves, and would write the name over the variables that mark them.
        env = {**env, guardian.MARK: self._mark, "SPT_NOENV": "1"}
        ends = os.pipe()
        with os.fdopen(ends[0], "rb") as said, os.fdopen(ends[1], "wb") as output:
            self._guardian, self._control = self._guarded(said.fileno(), log_path)
            self._tell(json.dumps(list(secrets)))
            try:
                with _interruptible():
                    self.leader = subprocess.Popen(
                        argv,
                        env=env,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
            except OSError:
                self._release()
                raise
        self._tell(str(self.leader.pid))

    def _guarded(self, said: int, log_path: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """The guardian, which copies the output to the log, and the socket to tell it something."""
        ours, theirs = socket.socketpair()
        ours.settimeout(FLUSH_S)
        with theirs, Folder(log_path.parent).append(log_path.name, mode=0o600) as log:
            os.fchmod(log.fileno(), 0o600)
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guardian.__file__, self._mark, str(said)],
                env=without_secrets(os.environ),
                stdin=theirs.fileno(),
                stdout=log,
                stderr=subprocess.DEVNULL,
                pass_fds=[said],
                start_new_session=True,
            )
        return process, ours

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(f"{line}\n".encode())

    def flush(self) -> None:
        """Returns when whole lines that the command has written by now are in its log."""
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
        """Ids of all processes of the command that still run, also of those that made a session of their own."""
        return guardian.family(self.leader.pid, self._mark)

    def end(self, *, interrupt_s: float, terminate_s: float) -> bool:
        """SIGINT to the leader, then SIGTERM, then SIGKILL to whatever is left; whether nothing is left."""
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
        """Members now, and those known before that still run: a parent's end may hide its children."""
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
    """A shell's background job (`nohup loadgen sweep &`) ignores SIGINT, and so would a server that inherited that."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
