"""ClientProbe: what the load costs this process, and how late its event loop is, over a window."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from statistics import fmean
from time import monotonic, process_time

import msgspec

PROBE_S = 0.02
_TICK_S = 0.001
"""uvloop's timers and clock."""


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True, tag="use"):
    """One process over its window."""

    cpu_s: float
    """CPU time of all its threads."""
    wall_s: float
    lag_ms_mean: float | None = None
    """How late its event loop came to a timer; None where no timer came due."""
    lag_ms_p50: float | None = None
    lag_ms_p90: float | None = None
    lag_ms_p99: float | None = None
    lag_ms_max: float | None = None


class ClientUse(msgspec.Struct, frozen=True, kw_only=True):
    """All processes that drove a cell's load, over its window, under the names that the journal has for it."""

    client_processes: int
    client_cpu_s: float
    client_cpu_share: float
    loop_lag_ms_mean: float | None
    loop_lag_ms_p50: float | None
    loop_lag_ms_p90: float | None
    loop_lag_ms_p99: float | None
    loop_lag_ms_max: float | None

    @classmethod
    def of(cls, uses: Sequence[ProcessUse], *, beside_s: float = 0.0) -> ClientUse:
        """CPU time is summed, and `beside_s` that of a process that sends no requests; the rest is the worst one's."""
        names = [name for name in ProcessUse.__struct_fields__ if name.startswith("lag_")]
        lags = {name: [lag for use in uses if (lag := getattr(use, name)) is not None] for name in names}
        return cls(
            client_processes=len(uses),
            client_cpu_s=sum(use.cpu_s for use in uses) + beside_s,
            client_cpu_share=max(use.cpu_s / use.wall_s for use in uses),
            **{f"loop_{name}": max(found, default=None) for name, found in lags.items()},
        )


class ClientProbe:
    """Watches its own process until `close`.

    A timer is due every `period_s`, on an absolute schedule: a loop that is held up misses several, and each counts
    with its own lateness. So the lateness is how long bytes that arrive at any instant wait for their stamp. On uvloop
    timers tick in milliseconds.
    """

    def __init__(self, period_s: float = PROBE_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._period_s = period_s
        self._lags_s: list[float] = []
        self._cpu_before_s, self._opened_s = process_time(), monotonic()
        self._due_s = self._loop.time() + period_s
        self._timer = self._loop.call_at(self._due_s, self._tick)

    def close(self) -> ProcessUse:
        """What was seen since the probe was made."""
        self._timer.cancel()
        lags_ms = [lag_s * 1e3 for lag_s in sorted(self._lags_s)]
        return ProcessUse(
            cpu_s=process_time() - self._cpu_before_s,
            wall_s=monotonic() - self._opened_s,
            lag_ms_mean=fmean(lags_ms) if lags_ms else None,
            lag_ms_p50=_quantile(lags_ms, 0.5),
            lag_ms_p90=_quantile(lags_ms, 0.9),
            lag_ms_p99=_quantile(lags_ms, 0.99),
            lag_ms_max=lags_ms[-1] if lags_ms else None,
        )

    def _tick(self) -> None:
        now_s = self._loop.time()
        while self._due_s < now_s + _TICK_S / 2:
            self._lags_s.append(max(0.0, now_s - self._due_s))
            self._due_s += self._period_s
        self._timer = self._loop.call_at(self._due_s, self._tick)


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
