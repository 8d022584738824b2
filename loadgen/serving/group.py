"""ProcessGroup: a process in its own session with everything it started, ended together and never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PROC = Path("/proc")
POLL_S = 0.05
GUARDIAN = """
import os, signal, sys, time
sys.stdin.buffer.read()
for number in (signal.SIGTERM, signal.SIGKILL):
    try:
        os.killpg(int(sys.argv[1]), number)
    except ProcessLookupError:
        break
    time.sleep(5)
"""
"""Waits for the end of its input, which comes when loadgen dies however it dies, and then ends the group."""


class ProcessGroup:
    """A running command, leader of a new session and process group; its output goes to a file."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log_path: Path) -> None:
        """Start the command. Raises OSError when it cannot be executed."""
        with log_path.open("ab") as log, _interruptible():
            self.leader = subprocess.Popen(
                argv,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", GUARDIAN, str(self.leader.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def poll(self) -> int | None:
        """The leader's exit status (negative: the signal that ended it), or None while it runs."""
        return self.leader.poll()

    def end(self, *, interrupt_s: float, terminate_s: float) -> bool:
        """SIGINT to the leader, then SIGTERM, then SIGKILL to whatever is left; whether nothing is left."""
        if self.poll() is None:
            self.leader.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.leader.wait(interrupt_s)
        for number, patience_s in ((signal.SIGTERM, terminate_s), (signal.SIGKILL, terminate_s)):
            if not self._wait_gone(0.0):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.leader.pid, number)
                self._wait_gone(patience_s)
        self._guardian.kill()
        self._guardian.wait()
        if self._guardian.stdin:
            self._guardian.stdin.close()
        return self._wait_gone(0.0)

    def _wait_gone(self, patience_s: float) -> bool:
        deadline = time.monotonic() + patience_s
        while self.poll() is None or living_members(self.leader.pid):
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


def living_members(session: int) -> list[int]:
    """Process ids of the session or process group that still run (zombies do not).

    Where there is no /proc, the session's own id stands for a group with any member.
    """
    if not (PROC / "self" / "stat").exists():
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return []
        return [session]
    members = []
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        state, _parent, group, own_session = stat.rpartition(")")[2].split()[:4]
        if state not in "ZX" and session in (int(group), int(own_session)):
            members.append(int(folder.name))
    return members
