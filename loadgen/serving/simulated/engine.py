"""Continuous batching without a clock (`Engine`), and `StepLoop`, which runs it on an event loop against deadlines.

`EngineStats`: its /metrics under vLLM's names and labels; and its GPU, whose power it serves as an exporter.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import msgspec
from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from loadgen.power.exporter import add_routes
from loadgen.power.sample import GpuInfo
from loadgen.power.sampler import Sampler
from loadgen.power.simulated import Fault, PowerCurve, Sensors, SimulatedReader
from loadgen.serving.simulated.cost import BLOCK_TOKENS, MEMORY_SHARE, Cost, Gpu, Step

_STEP_TOKENS = tuple(float(n) for n in (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384))
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)

_LABELS = ("model_name", "engine")
FINISHED_REASONS = ("stop", "length", "abort")


class Histogram:
    """Counts per bucket and the sum of all values; one call can record a value many times."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> list[tuple[str, float]]:
        """Upper bound and number of values up to it, ending with +Inf."""
        labels = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(labels, accumulate(self.counts), strict=True))


class EngineStats:
    """Figures of the engine; latencies in seconds of real time."""

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.kv_usage = 0.0
        self.lag_s = 0.0
        self.preemptions = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished = dict.fromkeys(FINISHED_REASONS, 0)
        self.iteration_tokens = Histogram(_STEP_TOKENS)
        self.first_token_s = Histogram(_TTFT_S)
        self.inter_token_s = Histogram(_ITL_S)
        self.e2e_s = Histogram(_REQUEST_S)
        self.queue_s = Histogram(_REQUEST_S)


class StatsCollector(Collector):
    """Turns EngineStats into Prometheus families when /metrics is read."""

    def __init__(
        self, stats: EngineStats, *, model_name: str, kv_capacity_tokens: int, blocks_override: int | None = None
    ) -> None:
        self._stats = stats
        self._labels = (model_name, "0")
        self._created = time.time()
        self._cache_config = {
            "block_size": str(BLOCK_TOKENS),
            "num_gpu_blocks": str(kv_capacity_tokens // BLOCK_TOKENS),
            "num_gpu_blocks_override": str(blocks_override),
            "kv_cache_size_tokens": str(kv_capacity_tokens),
            "kv_cache_memory_bytes": "None",
            "gpu_memory_utilization": str(MEMORY_SHARE),
            "enable_prefix_caching": "False",
            "engine": "0",
        }

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        yield GaugeMetricFamily("loadgen_simulated", "1: nothing here was measured on a GPU.", value=1)
        yield GaugeMetricFamily(
            "loadgen_simulated_lag_seconds", "How far the last step ended behind its deadline.", value=stats.lag_s
        )
        cache = GaugeMetricFamily("vllm:cache_config_info", "Simulated KV cache.", labels=list(self._cache_config))
        cache.add_metric(list(self._cache_config.values()), 1)
        yield cache
        for name, text, value in (
            ("num_requests_running", "Requests in the batch at the end of the last step.", stats.running),
            ("num_requests_waiting", "Requests not admitted at the end of the last step.", stats.waiting),
            ("kv_cache_usage_perc", "Share of the KV cache in use, 1 is all.", stats.kv_usage),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=_LABELS)
            gauge.add_metric(self._labels, value)
            yield gauge
        for name, text, count in (
            ("num_preemptions", "Preempted requests.", stats.preemptions),
            ("prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.generation_tokens),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=_LABELS)
            counter.add_metric(self._labels, count, created=self._created)
            yield counter
        success = CounterMetricFamily(
            "vllm:request_success", "Finished requests.", labels=[*_LABELS, "finished_reason"]
        )
        for reason, count in stats.finished.items():
            success.add_metric([*self._labels, reason], count, created=self._created)
        yield success
        for name, text, histogram in (
            ("iteration_tokens_total", "Tokens per engine step.", stats.iteration_tokens),
            ("time_to_first_token_seconds", "Arrival to first token.", stats.first_token_s),
            ("inter_token_latency_seconds", "Token to token.", stats.inter_token_s),
            ("e2e_request_latency_seconds", "Arrival to last token.", stats.e2e_s),
            ("request_queue_time_seconds", "Arrival to admission.", stats.queue_s),
        ):
            family = HistogramMetricFamily(f"vllm:{name}", text, labels=_LABELS)
            family.add_metric(self._labels, buckets=histogram.cumulative(), sum_value=histogram.sum)
            yield family


PREFIX = "/power"


class GpuOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The GPU's preset, its sensors and their faults."""

    preset: str
    sensors: Sensors = Sensors()
    faults: tuple[Fault, ...] = ()
    time_scale: float = 1.0
    """For the GPU's name: its figures are scaled already."""


class SimulatedGpu:
    """Serves `/power/clock`, `/gpus`, `/samples`, ...; the engine gives it the power of each step through `curve`."""

    def __init__(self, gpu: Gpu, options: GpuOptions, *, memory_used_bytes: Callable[[], int], seed: int) -> None:
        self.curve = PowerCurve(gpu.idle_w, time.monotonic_ns())
        scale = "" if options.time_scale == 1 else f", time and power x {options.time_scale:g}"
        self.info = GpuInfo(
            uuid=f"SIMULATED-{options.preset}",
            index=0,
            name=f"SIMULATED {gpu.name}{scale}",
            power_limit_enforced_w=gpu.limit_w,
            power_limit_default_w=gpu.limit_w,
            power_limit_max_w=gpu.limit_w,
            memory_total_bytes=int(gpu.memory_bytes),
            simulated=True,
        )
        self._reader = SimulatedReader(
            self.curve,
            self.info,
            sensors=options.sensors,
            faults=options.faults,
            memory_used_bytes=memory_used_bytes,
            seed=seed,
        )

    def add_to(self, app: web.Application) -> None:
        """Adds the routes below /power of the application; samples are taken while it runs."""
        sampler = Sampler(self._reader, [self.info.uuid])
        add_routes(app, sampler, self._reader.gpus(), "simulated", prefix=PREFIX, server_pid=os.getpid())

        async def sample(_app: web.Application) -> AsyncIterator[None]:
            sampler.start()
            yield
            sampler.stop()

        app.cleanup_ctx.append(sample)


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's limits under vLLM's names."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 8192
    num_gpu_blocks_override: int | None = None
    """Of the KV cache; None: as many as the memory holds."""


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """One request in the engine; times by the caller's clock."""

    prompt_tokens: int
    output_tokens: int
    finish_reason: str
    arrival_s: float
    deliver: Callable[[int], None]
    """Called after each token with the number of tokens generated so far."""
    scheduled_s: float = 0.0
    prefill_left: int = field(init=False)
    emitted: int = 0

    def __post_init__(self) -> None:
        self.prefill_left = self.prompt_tokens

    @property
    def reserved_tokens(self) -> int:
        """Tokens of KV cache that it can need, in whole blocks."""
        return -(-(self.prompt_tokens + self.output_tokens) // BLOCK_TOKENS) * BLOCK_TOKENS


class Engine:
    """A scheduler like vLLM's with chunked prefill; the caller keeps the time.

    `begin_step` forms a batch and returns its cost, `end_step` yields its tokens. Requests submitted during a step wait
    for the next. KV cache is reserved for a sequence's whole length when it is admitted, so nothing is preempted.
    """

    def __init__(self, cost: Cost, limits: EngineLimits, stats: EngineStats) -> None:
        self._cost = cost
        self._limits = limits
        self._stats = stats
        self._arrived: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._reserved_tokens = 0
        self._last_end_s = 0.0
        self.kv_capacity_tokens = BLOCK_TOKENS * (limits.num_gpu_blocks_override or cost.kv_blocks)

    def submit(self, sequence: Sequence) -> None:
        """Adds a request, which joins the batch when a later step begins."""
        self._arrived.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Drops a request whose client has gone, unless it has finished."""
        for queue in (self._running, self._waiting, self._arrived):
            if sequence in queue:
                queue.remove(sequence)
                self._reserved_tokens -= sequence.reserved_tokens if queue is self._running else 0
                self._stats.finished["abort"] += 1
                self._update_gauges()

    @property
    def memory_used_bytes(self) -> int:
        """Bytes of the weights, and of the keys and values of the batch."""
        return int(self._cost.weight_bytes + self._reserved_tokens * self._cost.model.kv_bytes_per_token)

    def begin_step(self, now_s: float) -> Step | None:
        """Forms the next batch and returns its cost; None: there is nothing to do."""
        self._waiting.extend(self._arrived)
        self._arrived.clear()
        decoding = [sequence for sequence in self._running if not sequence.prefill_left]
        batch = len(decoding)
        context_tokens = sum(sequence.prompt_tokens + sequence.emitted for sequence in decoding)
        budget = self._limits.max_num_batched_tokens - batch
        prefill_tokens = 0
        for sequence in self._running:
            if sequence.prefill_left:
                prefill_tokens += _prefill(sequence, budget - prefill_tokens)
        while self._waiting and prefill_tokens < budget and self._fits(self._waiting[0]):
            sequence = self._waiting.popleft()
            sequence.scheduled_s = now_s
            self._reserved_tokens += sequence.reserved_tokens
            self._running.append(sequence)
            prefill_tokens += _prefill(sequence, budget - prefill_tokens)
        if not batch and not prefill_tokens:
            return None
        return self._cost.step(batch=batch, context_tokens=context_tokens, prefill_tokens=prefill_tokens)

    def end_step(self, now_s: float) -> None:
        """Yields one token of every sequence whose prompt is done, and removes the finished ones."""
        stats = self._stats
        prompt_tokens = continued = 0
        ready = [sequence for sequence in self._running if not sequence.prefill_left]
        for sequence in ready:
            sequence.emitted += 1
            if sequence.emitted == 1:
                prompt_tokens += sequence.prompt_tokens
                stats.first_token_s.observe(now_s - sequence.arrival_s)
            else:
                continued += 1
            if sequence.emitted == sequence.output_tokens:
                self._reserved_tokens -= sequence.reserved_tokens
                stats.finished[sequence.finish_reason] += 1
                stats.e2e_s.observe(now_s - sequence.arrival_s)
                stats.queue_s.observe(sequence.scheduled_s - sequence.arrival_s)
        self._running = [s for s in self._running if s.emitted < s.output_tokens]
        if ready:
            stats.prompt_tokens += prompt_tokens
            stats.generation_tokens += len(ready)
            stats.iteration_tokens.observe(prompt_tokens + len(ready))
        if continued:
            stats.inter_token_s.observe(now_s - self._last_end_s, continued)
        self._last_end_s = now_s
        self._update_gauges()
        for sequence in ready:
            sequence.deliver(sequence.emitted)

    def _fits(self, sequence: Sequence) -> bool:
        return (
            len(self._running) < self._limits.max_num_seqs
            and self._reserved_tokens + sequence.reserved_tokens <= self.kv_capacity_tokens
        )

    def _update_gauges(self) -> None:
        self._stats.running = len(self._running)
        self._stats.waiting = len(self._waiting)
        self._stats.kv_usage = self._reserved_tokens / self.kv_capacity_tokens


def _prefill(sequence: Sequence, budget: int) -> int:
    """Processes as much of the prompt as the budget allows; returns how many tokens."""
    tokens = min(sequence.prefill_left, budget)
    sequence.prefill_left -= tokens
    return tokens


class StepLoop:
    """Runs steps while there is work, and records each step's power from deadline to deadline.

    A step's deadline counts from the deadline of the one before, not from when a timer woke up: mean rates are those of
    the cost model, though a single step may be about a millisecond late.
    """

    def __init__(self, engine: Engine, stats: EngineStats, curve: PowerCurve, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._stats = stats
        self._curve = curve
        self._loop = loop
        self._busy = False

    def submit(self, sequence: Sequence) -> None:
        """Adds a request, and wakes the engine when it is idle."""
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
