"""The running batch of a window: tokens per step or the gauge, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from made_run import scrape

from loadgen.analysis.batch import RunningBatch, held_back, running_batch, tokens_per_step
from loadgen.serving.exposition import EngineReading, ServerSample


def window(
    gauge: Sequence[float | None], per_step: float | None = None, *, waiting: float | None = 0.0
) -> list[ServerSample]:
    """A reading every 100 ms, in which the engine makes 100 steps of `per_step` tokens."""
    counters = [
        {} if per_step is None else {"iterations": 100.0 * k, "generation_tokens": 100.0 * k * per_step}
        for k in range(len(gauge))
    ]
    return [
        scrape(1000 + 100 * k, running=shown, waiting=waiting, **counted)
        for k, (shown, counted) in enumerate(zip(gauge, counters, strict=True))
    ]


def of(
    gauge: Sequence[float | None], per_step: float | None = None, *, inflight: float = 4.0, length: float = 50.0
) -> RunningBatch:
    return running_batch(window(gauge, per_step), inflight=inflight, tokens_per_answer=length)


STEADY = [4.0] * 20
DIPPING = [4.0, 4.0, 4.0, 3.0] * 5
"""Mean 3.75 with answers of 16 steps: of each, the gauge misses the last."""


def test_the_running_batch_is_tokens_per_engine_step() -> None:
    samples = [
        scrape(1100, running=7.0, generation_tokens=100.0, iterations=50.0),
        scrape(1500, running=8.0, generation_tokens=250.0, iterations=70.0),
        scrape(1900, running=7.0, generation_tokens=420.0, iterations=90.0),
    ]
    found = running_batch(samples)
    assert (found.mean, found.source, str(found.note)) == ((420 - 100) / (90 - 50), "counters", "")


def test_a_gauge_that_misses_the_last_step_of_every_answer_agrees() -> None:
    found = of(DIPPING, 4.0, length=16.0)
    assert (found.mean, found.source, str(found.note)) == (4.0, "counters", "")


def test_steps_are_an_engines_own_and_their_batches_add_up() -> None:
    """Two engines, 2 requests on each: all tokens over all steps would be 2."""
    samples = [
        ServerSample(
            t_ns=t, scrape_ns=1, running=4.0, generation_tokens=400.0 * t, iterations=200.0 * t,
            engines=(EngineReading("0", 2.0, 200.0 * t, 100.0 * t), EngineReading("1", 2.0, 200.0 * t, 100.0 * t)),
        )
        for t in range(5)
    ]  # fmt: skip
    assert tokens_per_step(samples) == 4.0
    found = running_batch(samples, inflight=4.0, tokens_per_answer=50.0)
    assert (found.mean, found.source, str(found.note)) == (4.0, "counters", "")


def test_an_engine_that_took_no_step_adds_nothing_and_one_that_was_restarted_spoils_the_sum() -> None:
    def samples(*second: float) -> list[ServerSample]:
        return [
            ServerSample(
                t_ns=t, scrape_ns=1, generation_tokens=1.0, iterations=1.0,
                engines=(EngineReading("0", 2.0, 20.0 * t, 10.0 * t), EngineReading("1", 0.0, value, value)),
            )
            for t, value in enumerate(second)
        ]  # fmt: skip

    assert tokens_per_step(samples(7.0, 7.0, 7.0)) == 2.0
    assert tokens_per_step(samples(7.0, 9.0, 1.0)) is None


def test_engines_that_take_turns_are_counted_by_the_gauge() -> None:
    """B = 1 on two engines: each makes 1 token a step while it runs, and never both run."""
    samples = [
        ServerSample(
            t_ns=t, scrape_ns=1, running=1.0, generation_tokens=20.0 * t, iterations=20.0 * t,
            engines=(EngineReading("0", t % 2, 10.0 * t, 10.0 * t), EngineReading("1", 1 - t % 2, 10.0 * t, 10.0 * t)),
        )
        for t in range(10)
    ]  # fmt: skip
    found = running_batch(samples, inflight=1.0, tokens_per_answer=50.0)
    assert (found.mean, found.source) == (1.0, "gauge")
    assert "engines that take turns" in str(found.note)


@pytest.mark.parametrize("stages", [2, 4])
def test_steps_of_a_pipelines_micro_batches_leave_the_gauge(stages: int) -> None:
    found = of(STEADY, 4.0 / stages)
    assert (found.mean, found.source) == (4.0, "gauge")
    assert "pipeline parallelism; the gauge is taken" in str(found.note)


def test_prompts_in_chunks_leave_the_gauge() -> None:
    """Answers of 60 tokens, 7 steps of which each brings its request none: 4 · 60 / 67 tokens a step."""
    found = of(STEADY, 4.0 * 60 / 67, length=60.0)
    assert (found.mean, found.source) == (4.0, "gauge")
    assert str(found.note).startswith("the gauge shows 4.00 running requests, a step makes 3.58 tokens: ")
    assert "chunked prefill" in str(found.note)
    assert found.slack == pytest.approx(1 / 67), "an answer takes 67 steps, and the gauge misses one"


@pytest.mark.parametrize(("short", "source"), [(0.029, "counters"), (0.032, "gauge")])
def test_where_the_choice_could_decide_a_verdict_it_is_made(short: float, source: str) -> None:
    """A gauge of B over tokens per step that are within 3% of it makes no difference to `running < 0.97 B`."""
    assert of(STEADY, 4.0 / (1 + short)).source == source


@pytest.mark.parametrize("several", [1.1, 1.5, 3.0])
def test_several_tokens_a_sequence_and_step_leave_the_gauge(several: float) -> None:
    found = of(STEADY, 4.0 * several, length=12.0)
    assert (found.mean, found.source) == (4.0, "gauge")
    assert "speculative decoding" in str(found.note)


def test_speculative_decoding_under_a_cap_shows_the_cap() -> None:
    """2 of 4 run, 2 wait, 2 tokens a step each: 4 tokens a step are no 4 requests."""
    found = running_batch(window([2.0] * 20, 4.0, waiting=2.0), inflight=4.0, tokens_per_answer=50.0)
    assert (found.mean, found.source) == (2.0, "gauge")


def test_a_gauge_that_lags_behind_is_not_believed() -> None:
    """Long prompts: most of the time the gauge still shows the end of the step before a newcomer's."""
    found = of([1.0, 4.0, 1.0, 1.0] * 5, 3.9, length=12.0)
    assert (found.mean, found.source) == (3.9, "counters")
    assert "the gauge lags behind; tokens per step are taken" in str(found.note)
    assert of([0.0] * 20, 3.9).source == "counters", "nothing runs, and yet tokens come"
    assert of([64.0] * 20, 3.9).source == "counters", "the gauge of the cell before"


def test_more_than_in_flight_by_both_is_more() -> None:
    """Somebody else has 4 requests of their own there."""
    found = of([8.0] * 20, 8.0)
    assert (found.mean, found.source) == (8.0, "counters")


@pytest.mark.parametrize(
    "counters", [{}, {"generation_tokens": 100.0}, {"iterations": 50.0}, {"generation_tokens": 9.0, "iterations": 5.0}]
)
def test_without_moving_counters_the_gauge_counts(counters: dict[str, float]) -> None:
    found = running_batch([scrape(1100, running=3.0, **counters), scrape(1900, running=4.0, **counters)])
    assert (found.mean, found.source) == (3.5, "gauge")


def test_a_gauge_alone_may_be_a_step_per_answer_too_low_and_off_by_chance() -> None:
    found = of(DIPPING, None, length=16.0)
    assert (found.mean, found.source, found.slack) == (3.75, "gauge", 1 / 16)
    assert found.noise == pytest.approx(3 * math.sqrt(20 / 19 * 0.75 * 0.25 / 20))


def test_a_gauge_that_is_seldom_set_proves_a_full_batch_and_a_limit_and_nothing_else() -> None:
    """SGLang sets it at a prefill, without the newcomers, and every 40 decode steps."""

    def lagging(gauge: Sequence[float], waiting: float = 0.0) -> RunningBatch:
        samples = window(gauge, waiting=waiting)
        return running_batch(samples, inflight=4.0, tokens_per_answer=50.0, lags=True)

    assert (lagging(STEADY).mean, lagging(STEADY).source) == (4.0, "gauge")
    assert lagging([3.0] * 20).source == "none", "the newcomer is not counted yet"
    assert str(lagging([3.0, 4.0] * 10).note) == (
        "the gauge shows 3.50 of 4.00 requests, but it is set too seldom to tell what ran"
    )
    assert lagging([2.0] * 20).mean == 2.0, "two are missing all the time: held back"
    assert lagging([2.0] * 20, waiting=2.0).mean == 2.0, "capped"


def test_a_server_that_tells_neither_has_no_running_batch() -> None:
    for samples in ([], [scrape(1100), scrape(1900)]):
        found = running_batch(samples, inflight=4.0, tokens_per_answer=50.0)
        assert (found.mean, found.source) == (None, "none")


def test_tokens_per_step_without_a_gauge_count_while_they_can_be_requests() -> None:
    assert of([None] * 5, 3.9).mean == 3.9
    found = of([None] * 5, 12.0)
    assert (found.mean, found.source) == (None, "none")
    assert str(found.note) == "a step makes 12.00 tokens, 4.00 requests are in flight, and no gauge counts them"


def test_an_open_loop_is_idle_between_requests_and_keeps_its_steps() -> None:
    samples = window([0.0, 1.0, 0.0, 2.0] * 5, 1.5)
    found = running_batch(samples, inflight=0.8, tokens_per_answer=50.0, open_loop=True)
    assert (found.mean, found.source, str(found.note)) == (1.5, "counters", "")


def held(gauge: Sequence[float], per_step: float, *, b: int = 4, waiting: float = 0.0, length: float = 12.0) -> bool:
    samples = window(gauge, per_step, waiting=waiting)
    running = running_batch(samples, inflight=float(b), tokens_per_answer=length)
    return held_back(samples, running, concurrency=b, inflight=float(b), tokens_per_answer=length)


def test_requests_that_neither_run_nor_wait_are_held_back() -> None:
    assert held([2.0] * 20, 2.0)
    assert held([3.0] * 20, 3.0), "a count that stands at its maximum shows a limit, however short the answers"
    assert held([58.0, 61.0, 59.0, 56.0] * 5, 60.0, b=128), "more is missing than the gaps between answers explain"


def test_requests_that_wait_in_the_servers_queue_are_not_held_back_by_another() -> None:
    assert not held([2.0] * 20, 2.0, waiting=2.0)


def test_gaps_between_short_answers_hold_nothing_back() -> None:
    assert not held([13.0, 12.0, 11.0, 14.0, 12.0] * 4, 12.4, b=16)
    assert not held([60.0, 58.0, 61.0], 59.1, b=64, length=100.0), "a busy machine, in a window of few readings"
    assert not held([4.0, 2.0, 2.0, 2.0] * 5, 2.5), "it had all four at times: a stall"
