"""Clock and client: whether this machine can stamp tokens to a millisecond."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop

from loadgen.doctor.finding import Finding

CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
SLOW_CLOCKS = frozenset({"hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit"})
"""A reading of these takes microseconds, or is as coarse as the kernel's tick."""
LAG_LIMIT_MS = 5.0
"""Between two tokens of a stream lie 5 ms and more."""
PROBE_S = 0.5
STEP_S = 0.002


def clock_source(path: Path = CLOCKSOURCE) -> Finding:
    """The kernel's clock behind CLOCK_MONOTONIC."""
    check = "clock"
    try:
        source = path.read_text(encoding="utf-8").strip()
    except OSError:
        return Finding(check=check, state="not applicable", seen="this kernel does not name its clock source")
    if source not in SLOW_CLOCKS:
        return Finding(check=check, state="ok", seen=source)
    advice = "see the kernel's log for why it gave up tsc; time stamps cost the client more here"
    return Finding(check=check, state="warning", seen=f"{source}, slow to read", advice=advice)


def client_timing(lags_ms: Sequence[float] | None = None) -> Finding:
    """How late an idle event loop wakes: the 99th percentile over half a second."""
    check = "client timing"
    late_ms = float(np.quantile(lags_ms if lags_ms is not None else event_loop_lags_ms(), 0.99))
    seen = f"an idle event loop wakes at most {late_ms:.1f} ms late (p99)"
    if late_ms <= LAG_LIMIT_MS:
        return Finding(check=check, state="ok", seen=seen)
    advice = "something else computes here: stop it, or run the client on another machine"
    return Finding(check=check, state="warning", seen=seen, advice=advice)


def event_loop_lags_ms() -> list[float]:
    """How late each sleep of 2 ms ended, in half a second on the event loop that a sweep runs on."""

    async def probe() -> list[float]:
        loop = asyncio.get_running_loop()
        lags_ms = []
        end = loop.time() + PROBE_S
        while (now := loop.time()) < end:
            await asyncio.sleep(STEP_S)
            lags_ms.append(max(0.0, loop.time() - now - STEP_S) * 1e3)
        return lags_ms

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(probe())
