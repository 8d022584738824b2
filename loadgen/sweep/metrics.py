"""The running sweep's own `/metrics`: what Grafana shows beside the servers' and the exporter's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from loadgen.client.exchange import Exchange
from loadgen.sweep.observer import Observer, Progress
from loadgen.sweep.plan import Cell

LABELS = ("target", "precision", "concurrency", "repeat")
TTFT_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0)
TPOT_BUCKETS_S = (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3)


class SweepMetrics(Observer):
    """Prometheus series of the cell that runs now, by target, precision, asked B and repeat; loopback only.

    Figures of ended requests, none of them final: the run directory has those.
    """

    def __init__(self, *, simulated: bool) -> None:
        self.registry = registry = CollectorRegistry()
        name = "loadgen_"
        self._info = Gauge(f"{name}cell_info", "1 while the cell runs.", (*LABELS, "stage"), registry=registry)
        self._in_flight = Gauge(f"{name}requests_in_flight", "Requests in flight.", LABELS, registry=registry)
        self._running = Gauge(f"{name}server_requests_running", "Running on the server.", LABELS, registry=registry)
        self._rate = Gauge(f"{name}output_tokens_per_second", "Of ended requests.", LABELS, registry=registry)
        self._energy = Gauge(
            f"{name}energy_per_token_joules", "Power now over tokens per second.", LABELS, registry=registry
        )
        self._accuracy = Gauge(f"{name}accuracy_ratio", "Share of graded answers correct.", LABELS, registry=registry)
        self._tokens = Counter(f"{name}output_tokens", "Tokens of ended requests.", LABELS, registry=registry)
        self._requests = Counter(f"{name}requests", "Ended requests.", (*LABELS, "status"), registry=registry)
        self._ttft = Histogram(
            f"{name}ttft_seconds", "Send to first token.", LABELS, buckets=TTFT_BUCKETS_S, registry=registry
        )
        self._tpot = Histogram(
            f"{name}tpot_seconds", "Time per later token.", LABELS, buckets=TPOT_BUCKETS_S, registry=registry
        )
        Gauge(f"{name}simulated", "1: the servers are simulated.", registry=registry).set(float(simulated))
        self._server: object | None = None

    def serve(self, port: int) -> None:
        """Listen on 127.0.0.1. Raises OSError when the port is taken."""
        self._server, _ = start_http_server(port, addr="127.0.0.1", registry=self.registry)

    def close(self) -> None:
        shutdown = getattr(self._server, "shutdown", None)
        close = getattr(self._server, "server_close", None)
        if shutdown is not None and close is not None:
            shutdown()
            close()

    def progress(self, progress: Progress) -> None:
        labels = _labels(progress.cell)
        self._info.clear()
        self._info.labels(*labels, progress.stage).set(1)
        figures = {
            self._in_flight: progress.in_flight,
            self._running: progress.running,
            self._rate: progress.tokens_per_s,
            self._energy: progress.energy_per_token_j,
            self._accuracy: progress.accuracy,
        }
        for gauge, figure in figures.items():
            if figure is not None:
                gauge.labels(*labels).set(figure)

    def answered(self, cell: Cell, exchange: Exchange) -> None:
        labels = _labels(cell)
        self._requests.labels(*labels, exchange.status).inc()
        if exchange.output_tokens:
            self._tokens.labels(*labels).inc(exchange.output_tokens)
        if exchange.status != "ok" or exchange.t_first_ns is None:
            return
        self._ttft.labels(*labels).observe((exchange.t_first_ns - exchange.t_send_ns) / 1e9)
        if exchange.output_tokens and exchange.output_tokens > 1:
            decode_s = (exchange.token_times[-1][0] - exchange.t_first_ns) / 1e9
            self._tpot.labels(*labels).observe(decode_s / (exchange.output_tokens - 1))

    def cell_ends(self, cell: Cell, line: str, valid: bool) -> None:
        """Gauges of a cell that has ended would stand still: they go; counters and histograms stay."""
        for gauge in (self._info, self._in_flight, self._running, self._rate, self._energy, self._accuracy):
            gauge.clear()


def _labels(cell: Cell) -> tuple[str, str, str, str]:
    return cell.target, cell.precision, str(cell.concurrency), str(cell.repeat)
