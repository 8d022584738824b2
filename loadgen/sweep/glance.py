"""Glance: how the running cell is doing, for the live view and the sweep's own metrics."""

from __future__ import annotations

import contextlib
from collections import deque
from statistics import median

from loadgen.client.exchange import Exchange
from loadgen.client.latency import Latencies, Window, inside
from loadgen.errors import UsageError
from loadgen.sweep.observer import Arrived, Progress
from loadgen.sweep.plan import Cell
from loadgen.workload.grading import Grader


class Glance:
    """Running figures of one cell, from ended requests; rates and latencies are the window's."""

    def __init__(self, grader: Grader) -> None:
        self._grader = grader
        self._graded = 0
        self._correct = 0
        self.next_ns = 0
        self.last_error = ""
        self._requests = 0
        self._errors = 0
        self._tokens = 0
        self._ttfts_s: deque[float] = deque(maxlen=256)
        self._tpots_s: deque[float] = deque(maxlen=256)

    def add(self, exchange: Exchange, latencies: Latencies, window: Window | None) -> None:
        """One ended request; `latencies`: what it adds to the window's figures, `window`: its time so far."""
        if exchange.status == "dropped":
            return
        if exchange.status != "ok":
            self._errors += 1
            self.last_error = f"{exchange.status}: {exchange.error}"
            return
        self._requests += 1
        if window is not None and inside(exchange.t_end_ns, window):
            self._tokens += exchange.output_tokens or 0
        if exchange.phase == "measured":
            verdict = None
            with contextlib.suppress(UsageError):  # the report says it
                verdict = self._grader.grade(exchange.item_id, exchange.text, exchange.finish_reason)
            self._graded += verdict is not None and verdict.correct is not None
            self._correct += verdict is not None and verdict.outcome == "correct"
        for latency_s, latest_s in zip(latencies, (self._ttfts_s, self._tpots_s), strict=True):
            if latency_s is not None:
                latest_s.append(latency_s)

    def progress(
        self,
        cell: Cell,
        stage: str,
        share: float,
        *,
        in_flight: int,
        running: float | None,
        power_w: float | None,
        elapsed_s: float,
        window: Window | None,
        arrived: Arrived | None = None,
    ) -> Progress:
        window_s = (window[1] - window[0]) / 1e9 if window is not None else 0.0
        return Progress(
            cell=cell,
            stage=stage,
            in_flight=in_flight,
            running=running,
            requests=self._requests,
            errors=self._errors,
            tokens_per_s=self._tokens / window_s if self._tokens and window_s else None,
            ttft_ms=median(self._ttfts_s) * 1e3 if self._ttfts_s else None,
            tpot_ms=median(self._tpots_s) * 1e3 if self._tpots_s else None,
            power_w=power_w,
            accuracy=self._correct / self._graded if self._graded else None,
            share=share,
            arrived=arrived,
            elapsed_s=elapsed_s,
            graded=self._graded,
        )
