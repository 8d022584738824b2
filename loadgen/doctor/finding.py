"""Finding: one thing that the doctor looked at, what it saw and what to do."""

from __future__ import annotations

from typing import Literal

import msgspec

Mode = Literal["simulated", "cpu", "gpu", "docker"]
"""How the servers of the sweep are to be run."""
State = Literal["ok", "warning", "missing", "not applicable"]
"""`missing`: no sweep in this mode without it; `warning`: a sweep runs, but loses something."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the doctor's report."""

    check: str
    state: State
    seen: str
    advice: str = ""
    """What to do; empty when there is nothing to do."""


def absent(check: str, seen: str, advice: str, *, needed: bool) -> Finding:
    """`missing` where the mode needs it, else `not applicable`."""
    return Finding(check=check, state="missing" if needed else "not applicable", seen=seen, advice=advice)
