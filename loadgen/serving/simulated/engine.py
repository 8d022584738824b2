"""Continuous batching without a clock: what each step holds, how long it takes, which tokens it yields.

The step loop: runs the engine on the event loop against absolute deadlines.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

import msgspec

from loadgen.power.simulated import PowerCurve
from loadgen.serving.simulated.cost import Cost, Step
from loadgen.serving.simulated.metrics import EngineStats
from loadgen.serving.simulated.steadystate import BLOCK_TOKENS


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's limits under vLLM's names."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 8192


class Sequence:
    """One request in the engine."""

    __slots__ = (
        "arrival_s",
        "deliver",
        "emitted",
        "finish_reason",
        "output_tokens",
        "prefill_left",
        "prompt_tokens",
        "scheduled_s",
    )

    def __init__(
        self,
        *,
        prompt_tokens: int,
        output_tokens: int,
        finish_reason: str,
        arrival_s: float,
        deliver: Callable[[int], None],
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.finish_reason = finish_reason
        self.arrival_s = arrival_s
        self.deliver = deliver
        """Called after each token with the number of tokens generated so far."""
        self.scheduled_s = arrival_s
        self.prefill_left = prompt_tokens
        self.emitted = 0

    @property
    def reserved_tokens(self) -> int:
        """KV cache that it will need at most, in whole blocks."""
        return -(-(self.prompt_tokens + self.output_tokens) // BLOCK_TOKENS) * BLOCK_TOKENS


class Engine:
    """A scheduler like vLLM's with chunked prefill; the caller keeps the time.

    `begin_step` forms a batch and says what it costs, `end_step` yields its tokens. Requests submitted
    during a step are looked at when the next one begins. KV cache is reserved for a sequence's whole length
    when it is admitted, so nothing is ever preempted.
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
        """Hands a request in; it joins the batch when a later step begins."""
        self._arrived.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Drops a request whose client has gone; one that has finished is left alone."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._reserved_tokens -= sequence.reserved_tokens
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence in self._arrived:
            self._arrived.remove(sequence)
        else:
            return
        self._stats.finished["abort"] += 1
        self._update_gauges()

    @property
    def memory_used_bytes(self) -> int:
        """The weights, and the keys and values of what is in the batch."""
        return int(self._cost.weight_bytes + self._reserved_tokens * self._cost.model.kv_bytes_per_token)

    def begin_step(self, now_s: float) -> Step | None:
        """Forms the next batch; returns what it costs, None when there is nothing to do."""
        self._waiting.extend(self._arrived)
        self._arrived.clear()
        batch = context_tokens = 0
        prefilling = []
        for sequence in self._running:
            if sequence.prefill_left:
                prefilling.append(sequence)
            else:
                batch += 1
                context_tokens += sequence.prompt_tokens + sequence.emitted
        budget = self._limits.max_num_batched_tokens - batch
        prefill_tokens = 0
        for sequence in prefilling:
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
        """Yields one token of every sequence whose prompt is done, and lets the finished ones go."""
        stats = self._stats
        generated = continued = prompt_tokens = 0
        finished = False
        ready = [sequence for sequence in self._running if not sequence.prefill_left]
        for sequence in ready:
            sequence.emitted += 1
            generated += 1
            if sequence.emitted == 1:
                prompt_tokens += sequence.prompt_tokens
                stats.first_token_s.observe(now_s - sequence.arrival_s)
            else:
                continued += 1
            if sequence.emitted == sequence.output_tokens:
                finished = True
                self._finish(sequence, now_s)
        if finished:
            self._running = [s for s in self._running if s.emitted < s.output_tokens]
        if generated:
            stats.prompt_tokens += prompt_tokens
            stats.generation_tokens += generated
            stats.iteration_tokens.observe(prompt_tokens + generated)
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

    def _finish(self, sequence: Sequence, now_s: float) -> None:
        self._reserved_tokens -= sequence.reserved_tokens
        self._stats.finished[sequence.finish_reason] += 1
        self._stats.e2e_s.observe(now_s - sequence.arrival_s)
        self._stats.queue_s.observe(sequence.scheduled_s - sequence.arrival_s)

    def _update_gauges(self) -> None:
        self._stats.running = len(self._running)
        self._stats.waiting = len(self._waiting)
        self._stats.kv_usage = self._reserved_tokens / self.kv_capacity_tokens


def _prefill(sequence: Sequence, budget: int) -> int:
    """Takes as much of the prompt into the step as the budget allows; returns how many tokens."""
    tokens = min(sequence.prefill_left, budget)
    sequence.prefill_left -= tokens
    return tokens


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
