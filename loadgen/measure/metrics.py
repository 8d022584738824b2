"""The running sweep's own `/metrics`: what Grafana shows besides the servers' and the exporter's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from time import monotonic_ns
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from loadgen.load.exchange import Exchange
from loadgen.load.latency import Latencies
from loadgen.measure.observer import Observer, Pace, Progress, Timetable
from loadgen.record.cell import Cell, CellVerdict, Step
from loadgen.webserver import MetricsServer, listen

LABELS = ("target", "precision", "concurrency", "arrival", "repeat")
"""`arrival` is `closed`, or an open loop's rate as `poisson:5`. A run with several shapes also has `shape`."""
LAST_SCRAPE_S = 5.0
"""How long the end waits for two more scrapes, if there were any: rules look at the first until the second."""
TTFT_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0)
TPOT_BUCKETS_S = (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3)
NOW: dict[str, tuple[str, Callable[[Progress], float | None]]] = {
    "concurrency": ("Requests to hold in flight, B; open loop: at most.", lambda p: p.cell.concurrency),
    "requests_in_flight": ("Requests in flight.", lambda p: p.in_flight),
    "arrivals_asked_per_second": ("Open loop: the rate asked for.", lambda p: p.cell.rate_asked_per_s),
    "arrivals_sent_per_second": ("Open loop: the rate sent so far.", lambda p: p.sent_per_s),
    "arrivals_late": ("Open loop: sent over 5 ms late.", lambda p: p.arrived.late if p.arrived else None),
    "arrivals_dropped": ("Open loop: found every slot busy.", lambda p: p.arrived.dropped if p.arrived else None),
    "server_requests_running": ("Running on the server.", lambda p: p.running),
    "output_tokens_per_second": (
        "Tokens of requests that ended in the window, over its time so far.",
        lambda p: p.tokens_per_s,
    ),
    "power_watts": ("Power now, the target's GPUs together.", lambda p: p.power_w),
    "energy_per_token_joules": ("Power now over tokens per second.", lambda p: p.energy_per_token_j),
    "accuracy_ratio": ("Share correct of the answers graded so far, a sample.", lambda p: p.accuracy),
    "graded_answers": ("Answers graded so far, the sample that the accuracy rests on.", lambda p: p.graded),
    "cell_progress_ratio": ("Share of the cell's window that is over.", lambda p: p.share),
}
"""Gauges of the cell that runs: name after `loadgen_`, help, figure."""
ENDED: dict[str, tuple[str, Callable[[Mapping[str, Any]], float | None]]] = {
    "running_requests": ("Mean running batch on the server.", lambda row: row["running_mean"]),
    "batch_verified": (
        "1: the server reported its running batch; 0: it did not.",
        lambda row: float(row["running_mean"] is not None),
    ),
    "running_requests_peak": ("Largest running batch on the server.", lambda row: row["running_peak"]),
    "output_tokens_per_second": ("Tokens that arrived in the window, a second.", lambda row: row["tokens_per_s"]),
    "power_watts": ("Mean power of the target's GPUs.", lambda row: row["power_w_mean"]),
    "energy_per_token_joules": ("Energy of the window over its tokens.", lambda row: row["energy_per_token_j"]),
    "energy_per_query_joules": ("Energy per token times tokens per answer.", lambda row: row["energy_per_query_j"]),
    "ttft_seconds": ("Mean send, or due, to first token.", lambda row: _seconds(row["ttft_ms_mean"])),
    "tpot_seconds": ("Mean time per later token.", lambda row: _seconds(row["tpot_ms_mean"])),
}
"""Gauges of cells that have ended: name after `loadgen_ended_cell_`, help, figure of the cell's row in cells.csv."""
VERDICTS: dict[str, tuple[str, Callable[[CellVerdict], bool | None]]] = {
    "valid": ("Batch and load, 1: valid, 0: invalid, as in cells.csv.", lambda v: v.valid),
    "latency_valid": ("Latencies, 1: valid, 0: invalid.", lambda v: v.latency_valid),
    "energy_valid": ("Energy, 1: valid, 0: invalid; no series: not measured.", lambda v: v.energy_valid),
    "answers_valid": ("Answers, 1: valid, 0: invalid; no series: not graded.", lambda v: v.answers_valid),
}
"""Likewise, of the verdict."""


class SweepMetrics(Observer):
    """Prometheus series of a sweep: the cell that runs now, and what every ended cell came to.

    Those of the running cell are figures of the moment, those of ended cells are cells.csv's. By target, precision,
    asked B, arrival and repeat, by shape where there are several, and by run where a series outlives its cell.
    """

    def __init__(
        self,
        *,
        simulated: bool,
        run: str = "",
        model: str = "",
        dataset: str = "",
        shapes: bool = False,
        now_ns: Callable[[], int] = monotonic_ns,
    ) -> None:
        """`run` names the run directory; without a name the run's title is used. `shapes`: cells differ in theirs."""
        cell_labels = (*LABELS, "shape") if shapes else LABELS
        self._labels_of = _labels_with_shape if shapes else _labels
        self._run, self._model, self._dataset = run, model, dataset
        self._now_ns = now_ns
        self.registry = registry = CollectorRegistry()
        self._scrapes = _Scrapes(now_ns)
        registry.register(self._scrapes)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ("run", *cell_labels)) -> Gauge:
            return Gauge(f"loadgen_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"loadgen_{name}", text, cell_labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"loadgen_{name}", f"{text}, warm-up and drain included.", labels, registry=registry)

        self._info = gauge("cell_info", "1 while the cell runs.", (*cell_labels, "stage"))
        self._now = {key: gauge(key, text, cell_labels) for key, (text, _) in NOW.items()}
        self._tokens = counter("output_tokens", "Tokens of ended requests", cell_labels)
        self._requests = counter("requests", "Ended requests", (*cell_labels, "status"))
        self._ttft = histogram(
            "ttft_seconds", "Send, or due, to first token, of measured requests in the window.", TTFT_BUCKETS_S
        )
        self._tpot = histogram(
            "tpot_seconds",
            "Time per later token, of measured requests that ended in the window (open loop: were due in it).",
            TPOT_BUCKETS_S,
        )
        gauge("simulated", "1: SIMULATED, the servers are a model.", ()).set(float(simulated))
        self._run_info = gauge("run_info", "1: what is measured.", ("run", "title", "model", "dataset"))
        self._cells = gauge("run_cells", "Cells by state.", ("run", "state"))
        self._left = gauge("run_left_seconds", "Expected time to the run's end.", ("run",))
        self._start = gauge("cell_start_timestamp_seconds", "Unix time of the cell's first progress report.")
        ended = "ended_cell_"
        self._batch = gauge(f"{ended}concurrency", "Requests held in flight, B.")
        self._valid = {key: gauge(ended + key, text) for key, (text, _) in VERDICTS.items()}
        self._ended = {key: gauge(ended + key, text) for key, (text, _) in ENDED.items()}
        self._accuracy = gauge(f"{ended}accuracy_ratio", "Share correct of the answers graded in it, a sample.")
        self._series: Callable[..., Any] = cache(lambda metric, *labels: metric.labels(*labels))
        """Of metrics that no `clear` empties: an answer finds its own here in half of the time."""
        self._last: Progress | None = None
        self._pace = Pace(now_ns=now_ns)
        self.server: MetricsServer | None = None

    def serve(self, port: int, host: str = "127.0.0.1") -> None:
        """Listens on `host`. Raises UsageError when the port is taken."""
        self.server = MetricsServer(self.registry, listen(host, port), host=host)

    def close(self, *, wait: bool = True) -> None:
        """Stops listening; with `wait`, not before a scraper, if there is one, has seen the last cell's end."""
        if self.server is not None and wait:
            self._scrapes.wait_for_two(LAST_SCRAPE_S)
        if self.server is not None:
            self.server.close()

    def run_begins(self, title: str, timetable: Timetable, simulated: bool) -> None:
        self._run = self._run or title
        self._run_info.labels(self._run, title, self._model, self._dataset).set(1)
        self._pace = Pace(timetable, self._now_ns)
        self._tell_pace()

    def step_begins(self, step: Step, timetable: Timetable) -> None:
        self._pace.add(timetable)
        self._tell_pace()

    def progress(self, progress: Progress) -> None:
        cell, labels = progress.cell, self._labels_of(progress.cell)
        if self._last is None or cell != self._last.cell:
            self._start.labels(self._run, *labels).set(time.time())
            for histogram in (self._ttft, self._tpot):
                histogram.labels(*labels)  # from 0 on: a rate needs a sample before the first observation
        self._last = progress
        self._info.clear()
        self._info.labels(*labels, progress.stage).set(1)
        for key, (_, figure_of) in NOW.items():
            _set(self._now[key], labels, figure_of(progress))
        self._pace.progress(progress)
        self._tell_pace()

    def answered(self, cell: Cell, exchange: Exchange, latencies: Latencies) -> None:
        labels = self._labels_of(cell)
        self._series(self._requests, *labels, exchange.status).inc()
        if exchange.output_tokens:
            self._series(self._tokens, *labels).inc(exchange.output_tokens)
        for latency_s, histogram in zip(latencies, (self._ttft, self._tpot), strict=True):
            if latency_s is not None:
                self._series(histogram, *labels).observe(latency_s)

    def cell_ends(self, cell: Cell, line: str, verdict: CellVerdict) -> None:
        """Removes the gauges of the running cell and sets those of the ended one."""
        for gauge in (self._info, *self._now.values()):
            gauge.clear()
        labels = (self._run, *self._labels_of(cell))
        self._batch.labels(*labels).set(cell.concurrency)
        for key, (_, verdict_of) in VERDICTS.items():
            _set(self._valid[key], labels, verdict_of(verdict))
        if verdict.figures:
            for key, (_, figure_of) in ENDED.items():
                _set(self._ended[key], labels, figure_of(verdict.figures))
        if self._last is not None and cell == self._last.cell:
            _set(self._accuracy, labels, self._last.accuracy)
        self._pace.cell_ends(cell, verdict)
        self._tell_pace()

    def not_measured(self, cells: Sequence[Cell], why: str) -> None:
        self._pace.not_measured(cells)
        self._tell_pace()

    def _tell_pace(self) -> None:
        for state, count in self._pace.counts.items():
            self._cells.labels(self._run, state).set(count)
        self._left.labels(self._run).set(self._pace.left_s)


class _Scrapes(Collector):
    """Counts how often the page is read, without a series. It is registered first, so it hears a scrape begin."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._changed = threading.Condition()
        self._count = 0
        self._last_ns: int | None = None

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        with self._changed:
            self._count += 1
            self._last_ns = self._now_ns()
            self._changed.notify_all()
        yield from ()

    def wait_for_two(self, timeout_s: float) -> None:
        """Not for one who has gone, or comes so rarely that nothing more is to be expected within the time."""
        with self._changed:
            before, last_ns = self._count, self._last_ns
            if last_ns is not None and self._now_ns() - last_ns <= timeout_s * 1e9:
                self._changed.wait_for(lambda: self._count >= before + 2, timeout_s)


def _labels(cell: Cell) -> tuple[str, ...]:
    return cell.target, cell.precision, str(cell.concurrency), cell.arrival, str(cell.repeat)


def _labels_with_shape(cell: Cell) -> tuple[str, ...]:
    return *_labels(cell), cell.shape or ""


def _set(gauge: Gauge, labels: tuple[str, ...], figure: float | None) -> None:
    if figure is not None:
        gauge.labels(*labels).set(figure)


def _seconds(latency_ms: float | None) -> float | None:
    return latency_ms / 1e3 if latency_ms is not None else None
