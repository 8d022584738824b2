"""The step loop: runs the engine on the event loop against absolute deadlines."""

from __future__ import annotations

import asyncio
import math
import time

from loadgen.power.simulated import PowerCurve
from loadgen.serving.simulated.engine import Engine, Sequence
from loadgen.serving.simulated.metrics import EngineStats


class StepLoop:
    """While there is work, a step ends its duration after the *deadline* of the one before, not after the moment
    when a timer woke up: mean rates are those of the cost model, though single steps are late by up to a
    millisecond or so. Each step's power is recorded from deadline to deadline.
    """

    def __init__(self, engine: Engine, stats: EngineStats, curve: PowerCurve, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._stats = stats
        self._curve = curve
        self._loop = loop
        self._busy = False

    def submit(self, sequence: Sequence) -> None:
        """Hands a request to the engine and wakes it up when it is idle."""
        self._engine.submit(sequence)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._begin, time.monotonic())

    def abort(self, sequence: Sequence) -> None:
        self._engine.abort(sequence)

    def _begin(self, start_s: float) -> None:
        step = self._engine.begin_step(time.monotonic())
        if step is None:
            self._busy = False
            return
        deadline_s = start_s + step.duration_s
        self._curve.record(round(start_s * 1e9), round(deadline_s * 1e9), step.power_w)
        delay_ms = math.ceil(1e3 * (deadline_s - time.monotonic()))
        self._loop.call_later(max(0, delay_ms) / 1e3, self._end, deadline_s)

    def _end(self, deadline_s: float) -> None:
        now_s = time.monotonic()
        self._stats.lag_s = max(0.0, now_s - deadline_s)
        self._engine.end_step(now_s)
        self._begin(deadline_s)
