"""Finding: one thing that the doctor looked at, what it saw and what to do.

ProgramResult: what another program says of itself, within a time limit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from loadgen.secret import without_secrets

Mode = Literal["simulated", "cpu", "gpu", "docker"]
"""How the servers of the sweep are to be run."""
State = Literal["ok", "warning", "missing", "not applicable"]
"""`missing`: no sweep in this mode without it; `warning`: a sweep runs, but loses something."""


class Finding(msgspec.Struct, frozen=True):
    """One line of the doctor's report."""

    check: str
    state: State
    seen: str
    advice: str = ""
    """What to do; empty when there is nothing to do."""


def judged(check: str, seen: str, advice: str = "") -> Finding:
    """`warning` where something is to be done, else `ok`."""
    return Finding(check, "warning" if advice else "ok", seen, advice)


def absent(check: str, seen: str, advice: str, *, needed: bool) -> Finding:
    """`missing` where the mode needs it, else `not applicable`."""
    return Finding(check, "missing" if needed else "not applicable", seen, advice)


class ProgramResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a program ended and what it said."""

    status: int | None
    """Exit status; None when it was ended at the time limit."""
    output: str = ""
    errors: str = ""

    @property
    def last_words(self) -> str:
        """The last line it said, errors first; or that it did not end."""
        if self.status is None:
            return "it did not end in time"
        lines = [line.strip() for line in (self.errors.strip() or self.output).splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.status}"


Ask = Callable[[Sequence[str], float], ProgramResult | None]
"""argv and a limit in seconds -> the answer; None: there is no such program. `ask` is the real one."""


def ask(argv: Sequence[str], timeout_s: float) -> ProgramResult | None:
    """Run a program in its own session, which is ended at the limit; None when it cannot be executed."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace",
            start_new_session=True, env=without_secrets(os.environ),
        )  # fmt: skip
    except OSError:
        return None
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1.0)
        return ProgramResult(status=None)
    return ProgramResult(status=process.returncode, output=output, errors=errors)
