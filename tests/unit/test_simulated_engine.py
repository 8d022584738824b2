"""Continuous batching in virtual time."""

import pytest

from loadgen.power.simulated import PowerCurve
from loadgen.serving.simulated import engine
from loadgen.serving.simulated.cost import load_presets
from loadgen.serving.simulated.engine import Engine, EngineLimits, EngineStats, Histogram, Sequence

PRESETS = load_presets()
FP16 = PRESETS.cost("fp16")


class VirtualServer:
    """An engine whose clock jumps from step end to step end."""

    def __init__(self, precision="fp16", **limits):
        self.stats = EngineStats()
        self.engine = Engine(PRESETS.cost(precision), EngineLimits(**limits), self.stats)
        self.now_s = 0.0
        self.tokens = {}

    def request(self, name, prompt_tokens=10, output_tokens=5, on_last=None):
        def deliver(emitted):
            self.tokens[name] = emitted
            if emitted == output_tokens and on_last:
                on_last()

        return Sequence(
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            finish_reason="stop",
            arrival_s=self.now_s,
            deliver=deliver,
        )

    def submit(self, *arguments, **options):
        sequence = self.request(*arguments, **options)
        self.engine.submit(sequence)
        return sequence

    def step(self):
        step = self.engine.begin_step(self.now_s)
        if step is None:
            return None
        self.now_s += step.duration_s
        self.engine.end_step(self.now_s)
        return step


def closed_loop_tokens_per_s(precision, concurrency, prompt_tokens=50, output_tokens=80):
    server = VirtualServer(precision)

    def refill():
        server.submit(object(), prompt_tokens, output_tokens, on_last=refill)

    for _ in range(concurrency):
        refill()
    while server.now_s < 5:
        server.step()
    return server.stats.generation_tokens / server.now_s


def test_every_running_request_gets_one_token_a_step():
    server = VirtualServer()
    for name in "abc":
        server.submit(name, output_tokens=4)
    server.step()
    assert server.tokens == {"a": 1, "b": 1, "c": 1}
    assert server.stats.running == 3
    for _ in range(3):
        server.step()
    assert server.tokens == {"a": 4, "b": 4, "c": 4}
    assert server.stats.running == 0
    assert server.step() is None


def test_a_request_that_arrives_during_a_step_joins_the_next_one_without_counting_as_waiting():
    server = VirtualServer()
    server.submit("early", output_tokens=10)
    server.engine.begin_step(0.0)
    server.submit("late", output_tokens=10)
    server.engine.end_step(0.01)
    assert server.tokens == {"early": 1}
    assert (server.stats.running, server.stats.waiting) == (1, 0)
    server.step()
    assert server.tokens == {"early": 2, "late": 1}
    assert server.stats.running == 2


def test_the_batch_is_clamped_at_max_num_seqs_and_the_rest_waits():
    server = VirtualServer(max_num_seqs=4)
    for name in range(6):
        server.submit(name, output_tokens=3)
    server.step()
    assert (server.stats.running, server.stats.waiting) == (4, 2)
    assert len(server.tokens) == 4
    while server.step() is not None:
        pass
    assert server.tokens == dict.fromkeys(range(6), 3)
    assert server.stats.queue_s.sum > 0


def test_a_long_prompt_is_processed_in_chunks_beside_running_decodes():
    server = VirtualServer(max_num_batched_tokens=100)
    server.submit("short", prompt_tokens=10, output_tokens=50)
    server.step()
    server.submit("long", prompt_tokens=250, output_tokens=2)
    # one decode takes one token of each step's budget: 99 + 99 + 52
    assert server.step() == FP16.step(batch=1, context_tokens=11, prefill_tokens=99)
    server.step()
    assert "long" not in server.tokens
    server.step()
    assert server.tokens == {"short": 4, "long": 1}


def test_a_request_waits_while_the_kv_cache_is_full():
    server = VirtualServer()
    capacity = server.engine.kv_capacity_tokens
    server.submit("big", prompt_tokens=capacity - 100, output_tokens=50)
    server.submit("next", prompt_tokens=100, output_tokens=50)
    while not server.tokens:
        server.step()
    assert (server.stats.running, server.stats.waiting) == (1, 1)
    assert 0.99 < server.stats.kv_usage <= 1
    used = server.engine.memory_used_bytes
    assert used == pytest.approx(0.92 * 80e9, rel=0.01)
    while server.step() is not None:
        pass
    assert server.tokens == {"big": 50, "next": 50}
    assert server.stats.kv_usage == 0


def test_counters_equal_the_tokens_delivered():
    server = VirtualServer(max_num_seqs=3)
    lengths = {name: 3 + name for name in range(7)}
    for name, length in lengths.items():
        server.submit(name, prompt_tokens=20 + name, output_tokens=length)
    while server.step() is not None:
        pass
    stats = server.stats
    prompt_tokens = sum(20 + name for name in lengths)
    assert server.tokens == lengths
    assert stats.generation_tokens == sum(lengths.values())
    assert stats.prompt_tokens == prompt_tokens
    assert stats.iteration_tokens.sum == prompt_tokens + sum(lengths.values())
    assert stats.finished == {"stop": 7, "length": 0, "abort": 0}
    assert sum(stats.first_token_s.counts) == sum(stats.e2e_s.counts) == 7
    assert sum(stats.inter_token_s.counts) == sum(lengths.values()) - 7


def test_mean_batch_of_a_closed_loop_is_the_asked_one_less_the_refill_step():
    server = VirtualServer()

    def refill():
        server.submit(object(), 50, 80, on_last=refill)

    for _ in range(8):
        refill()
    while server.now_s < 5:
        server.step()
    steps = sum(server.stats.iteration_tokens.counts)
    assert server.stats.generation_tokens / steps == pytest.approx(8, rel=1e-3)


@pytest.mark.parametrize("place", ["arrived", "waiting", "running", "finished"])
def test_an_aborted_request_leaves_from_wherever_it_is(place):
    server = VirtualServer(max_num_seqs=1)
    if place == "waiting":
        server.submit("first", output_tokens=3)
    sequence = server.submit("aborted", output_tokens=2)
    for _ in range({"arrived": 0, "waiting": 1, "running": 1, "finished": 2}[place]):
        server.step()
    server.engine.abort(sequence)
    assert server.stats.finished["abort"] == (0 if place == "finished" else 1)
    while server.step() is not None:
        pass
    assert server.tokens.get("aborted", 0) == {"running": 1, "finished": 2}.get(place, 0)
    assert server.stats.kv_usage == 0


def test_awq_beats_fp16_in_a_small_closed_loop_and_loses_in_a_large_one():
    assert closed_loop_tokens_per_s("awq", 1) > 1.5 * closed_loop_tokens_per_s("fp16", 1)
    assert closed_loop_tokens_per_s("awq", 128) < 0.8 * closed_loop_tokens_per_s("fp16", 128)


def test_histogram_buckets_are_cumulative_and_inclusive():
    histogram = Histogram((1.0, 8.0))
    histogram.observe(1)
    histogram.observe(5, times=3)
    histogram.observe(9)
    assert histogram.cumulative() == [("1.0", 1), ("8.0", 4), ("+Inf", 5)]
    assert histogram.sum == 25


class LateLoop:
    """An event loop on virtual time whose timers all fire late."""

    def __init__(self, late_s):
        self.late_s = late_s
        self.now_s = 0.0
        self.queue = []

    def call_soon(self, callback, *arguments):
        self.queue.append((self.now_s, callback, arguments))

    def call_later(self, delay_s, callback, *arguments):
        self.queue.append((self.now_s + delay_s + self.late_s, callback, arguments))

    def run(self):
        while self.queue:
            self.now_s, callback, arguments = self.queue.pop(0)
            callback(*arguments)


def test_late_timers_slow_neither_the_mean_rate_nor_the_energy(monkeypatch):
    server = VirtualServer()
    loop = LateLoop(late_s=0.003)
    monkeypatch.setattr(engine.time, "monotonic", lambda: loop.now_s)
    curve = PowerCurve(idle_w=FP16.gpu.idle_w, start_ns=0)
    loop.call_later(0.5, lambda: steps.submit(server.request("a", prompt_tokens=10, output_tokens=200)))
    steps = engine.StepLoop(server.engine, server.stats, curve, loop)
    loop.run()
    costs = [
        FP16.step(batch=0, context_tokens=0, prefill_tokens=10),
        *(FP16.step(batch=1, context_tokens=10 + n, prefill_tokens=0) for n in range(1, 200)),
    ]
    end_s = 0.503 + sum(step.duration_s for step in costs)
    assert server.tokens == {"a": 200}
    # late by one timer at the end (3 ms and the rounding to whole milliseconds), not by 200 of them
    assert end_s <= loop.now_s <= end_s + 0.004
    joules = FP16.gpu.idle_w * 0.503 + sum(step.energy_j for step in costs)
    assert curve.joules(round(end_s * 1e9)) == pytest.approx(joules, rel=1e-6)
