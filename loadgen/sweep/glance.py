"""Glance: how the running cell is doing, for the live view and the sweep's own metrics."""

from __future__ import annotations

from collections import deque
from statistics import fmean

from loadgen.client.exchange import Exchange
from loadgen.client.latency import exchange_tpot_s, exchange_ttft_s
from loadgen.sweep.observer import Arrived, Progress
from loadgen.sweep.plan import Cell
from loadgen.workload.grading import Grader


class Glance:
    """Running figures of one cell, from ended requests."""

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

    def add(self, exchange: Exchange) -> None:
        if exchange.status == "dropped":
            return
        if exchange.status != "ok":
            self._errors += 1
            self.last_error = f"{exchange.status}: {exchange.error}"
            return
        self._requests += 1
        self._tokens += exchange.output_tokens or 0
        if exchange.phase == "measured":
            verdict = self._grader.grade(exchange.item_id, exchange.text, exchange.finish_reason)
            self._graded += verdict is not None
            self._correct += verdict is not None and verdict.outcome == "correct"
        if (ttft_s := exchange_ttft_s(exchange)) is not None:
            self._ttfts_s.append(ttft_s)
        if (tpot_s := exchange_tpot_s(exchange)) is not None:
            self._tpots_s.append(tpot_s)

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
        arrived: Arrived | None = None,
    ) -> Progress:
        return Progress(
            cell=cell,
            stage=stage,
            in_flight=in_flight,
            running=running,
            requests=self._requests,
            errors=self._errors,
            tokens_per_s=self._tokens / elapsed_s if self._tokens else None,
            ttft_ms=fmean(self._ttfts_s) * 1e3 if self._ttfts_s else None,
            tpot_ms=fmean(self._tpots_s) * 1e3 if self._tpots_s else None,
            power_w=power_w,
            accuracy=self._correct / self._graded if self._graded else None,
            share=share,
            arrived=arrived,
            elapsed_s=elapsed_s,
        )
