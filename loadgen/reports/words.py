"""Figures as they are read in a tooltip.

The word that stands by everything that came from a cost model.

The console on stdout. No text is taken for markup, since any may come from a server.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from loadgen.analysis.intervals import too_wide
from loadgen.analysis.run import Run
from loadgen.secret import VisibleStream
from loadgen.serving.metrics import UNVERIFIED

STAMP = "SIMULATED"


def stamped(name: str, *, simulated: bool) -> str:
    """The name, followed by the stamp where it was not measured."""
    return f"{name} {STAMP}" if simulated else name


def known(value: Any) -> bool:
    """Whether it was measured: neither None nor nan."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def figure(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def interval(low: Any, high: Any, *, floor: float | None = None) -> str:
    """As ` (12 to 15)`; empty without both ends. `floor`: as `too_wide` takes it, of an interval over repeats."""
    if not known(low) or not known(high):
        return ""
    if floor is not None and too_wide(low, high, floor=floor):
        return " (interval not known: the repeats differ too much)"
    return f" ({figure(low)} to {figure(high)})"


def quantity(estimate: Mapping[str, Any], *, percent: bool = False, floor: float | None = None) -> str:
    """A value with its interval, from a mapping with `value`, `lo` and `hi`; `floor` as `interval` takes it."""
    scale, unit = (100, "%") if percent else (1, "")
    low, high = (scale * estimate[end] if known(estimate[end]) else None for end in ("lo", "hi"))
    return f"{figure(scale * estimate['value'])}{unit}{interval(low, high, floor=floor)}"


def asked(run: Run) -> str:
    """On how many questions accuracies rest: `n = 300 questions`, or `n = 20 to 300 questions`; empty without any."""
    counts = run.summary["questions"].dropna()
    if counts.empty:
        return ""
    low, high = int(counts.min()), int(counts.max())
    return f"n = {low:,} questions" if low == high else f"n = {low:,} to {high:,} questions"


def place(target: str, concurrency: int, batch: Any = None, *, verified: bool = True) -> str:
    """As `awq · B = 16: running 15.9,`, or `in flight 16 (batch not verified),`; the second part only if known."""
    if not known(batch):
        return f"{target} · B = {concurrency}:"
    return f"{target} · B = {concurrency}: " + (
        f"running {figure(batch)}," if verified else f"in flight {figure(batch)} ({UNVERIFIED}),"
    )


def stdout_console(*, width: int) -> Console:
    """Writes to stdout past `VisibleStream`, because rich's own control sequences are meant to be obeyed; whoever
    prints makes texts visible first. `width`: where stdout is no terminal."""
    file = sys.stdout.stream if isinstance(sys.stdout, VisibleStream) else sys.stdout
    return Console(file=file, width=None if file.isatty() else width, markup=False, highlight=False, emoji=False)
