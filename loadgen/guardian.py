"""The processes that a command started, wherever they went; run as a script, the guardian that ends them.

The guardian outlives a killed loadgen. It also masks what the processes print before it writes their log.
Standard library only: the guardian runs this file outside loadgen's package and environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc")
MARK = "LOADGEN_SERVER"
"""The variable that marks a process of the family even after it left its session and lost its parent."""

PIECE_BYTES, PIECES = 2**16, 16
"""A pipe holds 64 KiB, or 1 MiB where it was made longer."""
LONGEST_LINE_BYTES = 2**20
PATIENCE_S = 5.0
"""How long to wait after each signal."""


def process_stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from its second: name, state, parent, group, session, ... None: no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    name, _, fields = text.partition("(")[2].rpartition(")")
    return [name, *fields.split()]


def family(leader: int, mark: str = "") -> list[int]:
    """Ids of the running processes (not zombies) in the leader's session or group, of its descendants, and of those
    with the variable `MARK` set to `mark`; the leader included. Without /proc, the leader's id while its group has a
    member. A negative `leader` has no processes.
    """
    if not (PROC / "self" / "stat").exists():
        if leader < 0:
            return []
        try:
            os.killpg(leader, 0)
        except (ProcessLookupError, PermissionError):
            return []
        return [leader]
    members, living = {leader}, set()
    parents: dict[int, int] = {}
    for folder in PROC.iterdir():
        stat = process_stat(int(folder.name)) if folder.name.isdigit() else None
        if stat is None or stat[1] in "ZX":
            continue
        pid, (parent, group, session) = int(folder.name), map(int, stat[2:5])
        living.add(pid)
        parents[pid] = parent
        if leader in (group, session) or (mark and _carries(folder, mark)):
            members.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in members and pid not in members}:
        members |= more
    members.discard(os.getpid())
    return sorted(members & living)


def started(pid: int) -> str | None:
    """Start time of a running process in the kernel's ticks, which tells it from a later one of the same id; None: it
    ended."""
    stat = process_stat(pid)
    return None if stat is None or stat[1] in "ZX" else stat[20]


def _carries(folder: Path, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def signal_all(members: list[int], number: int) -> None:
    """Send a signal to each that still runs."""
    for pid in members:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


class Output:
    """The content of a pipe, appended to a file in whole, masked lines."""

    def __init__(self, pipe: int, file: int, mask: Callable[[str], str]) -> None:
        os.set_blocking(pipe, False)
        self.pipe, self._file, self._mask = pipe, file, mask
        self._begun = b""
        self.open = True
        """Whether a process may still write."""

    def copy(self) -> None:
        """Take what is in the pipe now, at most a full pipe. An incomplete line is kept back."""
        for _ in range(PIECES):
            try:
                piece = os.read(self.pipe, PIECE_BYTES)
            except BlockingIOError:
                return
            if not piece:
                self.open = False
                self._write(len(self._begun))
                return
            self._begun += piece
            end = max(self._begun.rfind(b"\n"), self._begun.rfind(b"\r")) + 1
            if not end and len(self._begun) > LONGEST_LINE_BYTES:
                end = len(self._begun)
            self._write(end)

    def end(self) -> None:
        """Take the rest, with an incomplete last line."""
        self.copy()
        self._write(len(self._begun))

    def _write(self, end: int) -> None:
        lines, self._begun = self._begun[:end], self._begun[end:]
        masked = self._mask(lines.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        while masked:
            try:
                masked = masked[os.write(self._file, masked) :]
            except OSError:  # the disk is full: the server goes on without a log
                return


def _guard(mark: str, pipe: int) -> None:
    """Copy the log until standard input ends, which it does however loadgen dies; then end the family.

    Lines on standard input: the secrets, as JSON; the leader's id; an empty one whenever the log must be up to date.
    """
    control = socket.socket(fileno=sys.stdin.fileno())
    lines = control.makefile("rb", buffering=0)
    if not (first := lines.readline()):
        return
    mask = runpy.run_path(str(Path(__file__).with_name("secret.py")))["Mask"](*json.loads(first), environ={})
    output, leader = Output(pipe, sys.stdout.fileno(), mask), -1
    while True:
        ready, _, _ = select.select([control.fileno(), *([pipe] if output.open else [])], [], [])
        output.copy()
        if control.fileno() in ready:
            line = lines.readline()
            if not line:
                break
            if line.strip():
                leader = int(line)
            else:
                control.sendall(b"\n")
    for number in (signal.SIGTERM, signal.SIGKILL):
        signal_all(family(leader, mark), number)
        deadline = time.monotonic() + PATIENCE_S
        while family(leader, mark) and time.monotonic() < deadline:
            output.copy()
            time.sleep(0.1)
    output.end()


if __name__ == "__main__":
    _guard(sys.argv[1], int(sys.argv[2]))
