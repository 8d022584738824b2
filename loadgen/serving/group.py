"""ProcessGroup: a process in its own session with everything it started, ended together and never left behind."""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from loadgen.serving import family

POLL_S = 0.05


class ProcessGroup:
    """A running command, leader of a new session and process group; its output goes to a file."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log_path: Path) -> None:
        """Start the command. Raises OSError when it cannot be executed."""
        self._mark = secrets.token_hex(8)
        # SPT_NOENV: vLLM's processes name themselves, and would write the name over the variables that mark them.
        env = {**env, family.MARK: self._mark, "SPT_NOENV": "1"}
        with log_path.open("ab") as log, _interruptible():
            self.leader = subprocess.Popen(
                argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", family.__file__, str(self.leader.pid), self._mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def poll(self) -> int | None:
        """The leader's exit status (negative: the signal that ended it), or None while it runs."""
        return self.leader.poll()

    def members(self) -> list[int]:
        """Ids of all processes of the command that still run, also of those that made a session of their own."""
        return family.family(self.leader.pid, self._mark)

    def end(self, *, interrupt_s: float, terminate_s: float) -> bool:
        """SIGINT to the leader, then SIGTERM, then SIGKILL to whatever is left; whether nothing is left."""
        known = {pid: family.started(pid) for pid in self.members()}
        if self.poll() is None:
            self.leader.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.leader.wait(interrupt_s)
        for number, patience_s in ((signal.SIGTERM, terminate_s), (signal.SIGKILL, terminate_s)):
            if not self._wait_gone(known, 0.0):
                family.signal_all(self._left(known), number)
                self._wait_gone(known, patience_s)
        self._guardian.kill()
        self._guardian.wait()
        if self._guardian.stdin:
            self._guardian.stdin.close()
        return self._wait_gone(known, 0.0)

    def _left(self, known: Mapping[int, str | None]) -> list[int]:
        """Members now, and those known before that still run: a parent's end may hide its children."""
        kept = (pid for pid, begun in known.items() if begun is not None and family.started(pid) == begun)
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
