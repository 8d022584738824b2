"""Continuous batching without a clock (`Engine`), and `StepLoop`, which runs it on an event loop against deadlines."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from loadgen.power.simulated import PowerCurve
from loadgen.serving.simulated.cost import BLOCK_TOKENS, Cost, Step
from loadgen.serving.simulated.metrics import EngineStats


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's limits under vLLM's names."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 8192


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
        self.kv_capacity_tokens = cost.kv_capacity_tokens

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
