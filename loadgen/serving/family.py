"""The processes that a command started, wherever they went; run as a script, the guardian that ends them.

Standard library only: the guardian runs this file by itself, outside loadgen's package and environment.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

PROC = Path("/proc")
MARK = "LOADGEN_SERVER"
"""The variable by which a process is known that left its session and lost its parent."""


def family(leader: int, mark: str = "") -> list[int]:
    """Ids of processes that run (zombies do not) and belong to `leader`, its own included.

    They are in its session or group, descend from it, or carry the variable `MARK` with the value `mark`. Where there
    is no /proc, the leader's own id stands for a group with any member.
    """
    if not (PROC / "self" / "stat").exists():
        try:
            os.killpg(leader, 0)
        except (ProcessLookupError, PermissionError):
            return []
        return [leader]
    members, living = {leader}, set()
    parents: dict[int, int] = {}
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        state, parent, group, session = stat.rpartition(")")[2].split()[:4]
        pid = int(folder.name)
        if state in "ZX":
            continue
        living.add(pid)
        parents[pid] = int(parent)
        if leader in (int(group), int(session)) or (mark and _carries(folder, mark)):
            members.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in members and pid not in members}:
        members |= more
    members.discard(os.getpid())
    return sorted(members & living)


def started(pid: int) -> str | None:
    """When a running process began, in the kernel's ticks: tells it from a later one of the same id. None: it ended."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _carries(folder: Path, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def signal_all(members: list[int], number: int) -> None:
    """Send a signal to each; those that are gone by now are left out."""
    for pid in members:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _guard(leader: int, mark: str) -> None:
    """Wait for the end of the input, which comes when loadgen dies however it dies, and then end the family."""
    sys.stdin.buffer.read()
    for number in (signal.SIGTERM, signal.SIGKILL):
        members = family(leader, mark)
        if not members:
            return
        signal_all(members, number)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and family(leader, mark):
            time.sleep(0.2)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), sys.argv[2])
