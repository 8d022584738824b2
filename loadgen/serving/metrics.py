"""The server's own word on its batch: vLLM's `/metrics`, sampled beside the load."""

from __future__ import annotations

import contextlib
import http.client
import math
import random
import re
import threading
from time import monotonic, monotonic_ns
from urllib.parse import urlencode, urlsplit

import msgspec

SHORTEST_PERIOD_S = 0.1
LONGEST_PERIOD_S = 0.5
COST_FACTOR = 20
"""A scrape takes t (the least of the last nine) and the next comes after 20 t: 5% of the server's time."""
_PROBE_TIMEOUT_S = 10.0

_NAMES = {
    b"vllm:num_requests_running": "running",
    b"vllm:num_requests_waiting": "waiting",
    b"vllm:num_preemptions_total": "preemptions",
    b"vllm:kv_cache_usage_perc": "kv_usage",
    b"vllm:gpu_cache_usage_perc": "kv_usage",
    b"vllm:generation_tokens_total": "generation_tokens",
    b"vllm:prompt_tokens_total": "prompt_tokens",
    b"vllm:iteration_tokens_total_count": "iterations",
    b"vllm:prefix_cache_queries_total": "prefix_cache_queries",
    b"vllm:prefix_cache_hits_total": "prefix_cache_hits",
    b"vllm:external_prefix_cache_hits_total": "prefix_cache_hits",
    b"vllm:time_to_first_token_seconds_count": "ttft_count",
    b"vllm:time_to_first_token_seconds_sum": "ttft_sum_s",
}
_LINE = re.compile(
    rb"""^(vllm:[a-z_]+)(?:\{(?:[^"}\n]|"(?:\\.|[^"\\\n])*")*\})? ([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)(?=\s|\Z)""",
    re.MULTILINE,
)
"""A number that is no less than 0: none of these can be."""


class ServerSample(msgspec.Struct, frozen=True, kw_only=True, tag="server"):
    """One reading of `/metrics`: gauges now, counters since the server's start, summed over its engines."""

    t_ns: int
    """Middle of the scrape."""
    scrape_ns: int
    running: float | None = None
    waiting: float | None = None
    preemptions: float | None = None
    kv_usage: float | None = None
    generation_tokens: float | None = None
    prompt_tokens: float | None = None
    iterations: float | None = None
    """Engine steps (count of the histogram `vllm:iteration_tokens_total`)."""
    prefix_cache_queries: float | None = None
    """Prompt tokens that were looked up in the prefix cache, and those found there or in an external cache."""
    prefix_cache_hits: float | None = None
    ttft_count: float | None = None
    """First tokens, and the sum of their times by the server's clock (histogram `vllm:time_to_first_token_seconds`)."""
    ttft_sum_s: float | None = None


def read_metrics(text: bytes, *, t_ns: int, scrape_ns: int) -> ServerSample:
    """The sample in a `/metrics` page (Prometheus text format 0.0.4); names the server lacks stay None.

    Over several engines requests and counters add up, the KV usage is the fullest engine's.
    """
    values: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        field = _NAMES.get(name)
        if field is not None:
            so_far = values.get(field, 0.0)
            values[field] = max(so_far, float(value)) if field == "kv_usage" else so_far + float(value)
    known = {field: value for field, value in values.items() if math.isfinite(value)}
    return ServerSample(t_ns=t_ns, scrape_ns=scrape_ns, **known)


class MetricsProbe:
    """Scrapes one server over a kept connection; not thread-safe.

    Only the names above are asked for: prometheus_client's own endpoint (behind `/metrics/`, with the slash) then
    renders 1.5 KB instead of vLLM's 64 KB. Where that is not understood, the whole page is.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        whole = parts.path.rstrip("/") + "/metrics"
        wanted = urlencode([("name[]", name.decode()) for name in _NAMES])
        self._paths = [f"{whole}/?{wanted}", whole]
        self._connection = kind(parts.hostname or "", parts.port, timeout=_PROBE_TIMEOUT_S)

    def scrape(self) -> ServerSample | None:
        """A sample, or None when the server gives no `/metrics` now."""
        before_ns = monotonic_ns()
        text = self._get(self._paths[0])
        if len(self._paths) > 1 and (text is None or b"vllm:" not in text):
            self._paths.pop(0)
            text = self._get(self._paths[0])
        if text is None:
            return None
        after_ns = monotonic_ns()
        return read_metrics(text, t_ns=(before_ns + after_ns) // 2, scrape_ns=after_ns - before_ns)

    def _get(self, path: str) -> bytes | None:
        """The page, or None; a kept connection that the server has closed meanwhile is opened anew once."""
        for _ in range(2):
            try:
                self._connection.request("GET", path)
                answer = self._connection.getresponse()
                text = answer.read()
                return text if answer.status == 200 else None
            except (OSError, http.client.HTTPException):
                self._connection.close()
        return None

    def close(self) -> None:
        self._connection.close()


class MetricsSampler:
    """Scrapes in a thread of its own, about 10 times a second if that costs the server little.

    Every period is drawn from 0.75 to 1.25 times its mean: an even grid could stay in step with answers that take a
    multiple of it and always, or never, see the gap between two of them.
    """

    def __init__(self, url: str) -> None:
        self._probe = MetricsProbe(url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server-metrics", daemon=True)
        self._fresh: list[ServerSample] = []
        self._lock = threading.Lock()
        self.latest: ServerSample | None = None
        self.failures = 0

    def start(self) -> None:
        self._thread.start()

    def take(self) -> list[ServerSample]:
        """Samples that came since the last call."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
        return fresh

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._probe.close()

    def _run(self) -> None:
        costs_s: list[float] = []
        jitter = random.Random(0)
        deadline = monotonic()
        while not self._stop.is_set():
            sample = self._probe.scrape()
            if sample is None:
                self.failures += 1
            else:
                costs_s = [*costs_s[-8:], sample.scrape_ns / 1e9]
                self.latest = sample
                with self._lock:
                    self._fresh.append(sample)
            wanted = COST_FACTOR * min(costs_s, default=0.0)
            period_s = min(max(SHORTEST_PERIOD_S, wanted), LONGEST_PERIOD_S) * jitter.uniform(0.75, 1.25)
            deadline = max(deadline + period_s, monotonic())
            self._stop.wait(deadline - monotonic())
