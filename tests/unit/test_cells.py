"""A cell's row from journals made by hand; the window is (1000 ms, 2000 ms]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from made_run import answer, cell_data, ended, scrape

from loadgen.analysis.celldata import answered_in
from loadgen.analysis.cells import CellSummary, grade_cell, lengths_of, summarize_cell
from loadgen.analysis.energy import ServerMemory
from loadgen.load.exchange import Exchange
from loadgen.record.journal import CellEnd
from loadgen.record.manifest import KvCache
from loadgen.serving.exposition import ServerSample
from loadgen.workload.grading import Grader
from loadgen.workload.item import ItemFacts


def row(
    tmp_path: Path,
    exchanges: Sequence[Exchange],
    samples: Sequence[ServerSample] = (),
    *,
    b: int = 1,
    end: CellEnd | None = None,
    gold: dict[str, str] | None = None,
) -> CellSummary:
    data = cell_data(tmp_path, exchanges, samples, b=b, end=end)
    grader = Grader({item: ItemFacts(gold=answer) for item, answer in (gold or {}).items()}, "gsm8k")
    return summarize_cell(data, grade_cell(data, grader))


def test_tokens_count_by_their_own_arrival(tmp_path: Path) -> None:
    spanning = answer(900, [(950, 10), (1000, 20), (1001, 1), (1500, 2), (2000, 3), (2001, 40)])
    figures = row(tmp_path, [spanning])
    assert figures.output_tokens == 1 + 2 + 3
    assert figures.tokens_per_s == 6.0
    assert figures.requests == 0, "it ended after the window"


def test_tokens_of_warm_up_and_failed_requests_in_the_window_were_made_too(tmp_path: Path) -> None:
    lines = [
        answer(900, [(1500, 1)], phase="warmup"),
        answer(900, [(1500, 2)], status="broken", error="cut"),
        answer(900, [(1500, 4)]),
    ]
    assert row(tmp_path, lines).output_tokens == 7


def test_the_rate_is_over_the_windows_length(tmp_path: Path) -> None:
    figures = row(tmp_path, [answer(900, [(1200, 30)])], end=ended((1000, 1500)))
    assert (figures.window_s, figures.tokens_per_s) == (0.5, 60.0)


def test_in_flight_is_the_time_weighted_mean(tmp_path: Path) -> None:
    lines = [
        answer(0, end=3000),
        answer(500, end=1250, slot=1),
        answer(1500, end=2500, slot=1),
        answer(2100, end=2200, slot=2),
    ]
    assert row(tmp_path, lines, b=2).inflight_mean == 1 + 0.25 + 0.5


def test_requests_are_the_measured_ones_that_ended_in_the_window(tmp_path: Path) -> None:
    lines = [
        answer(500, [(900, 7)]),
        answer(900, [(1100, 2)]),
        answer(1100, [(1900, 4)]),
        answer(1900, [(2100, 9)]),
        answer(900, [(1100, 5)], phase="warmup", slot=1),
    ]
    figures = row(tmp_path, lines)
    assert figures.requests == 2
    assert figures.output_tokens_mean == 3.0
    assert figures.answers == 4, "all measured answers are graded, those of the drain too"


def test_only_samples_of_the_window_count(tmp_path: Path) -> None:
    samples = [
        scrape(999, running=90.0, waiting=90.0, preemptions=0.0),
        scrape(1000, running=1.0, waiting=0.0, preemptions=10.0),
        scrape(2000, running=2.0, waiting=1.0, preemptions=13.0),
        scrape(2001, running=90.0, waiting=90.0, preemptions=90.0),
    ]
    figures = row(tmp_path, [answer(900, [(1500, 1)])], samples)
    assert (figures.server_samples, figures.running_gauge_mean, figures.waiting_mean) == (2, 1.5, 0.5)
    assert figures.preemptions == 3.0


def test_what_was_not_measured_is_none_and_not_zero(tmp_path: Path) -> None:
    figures = row(tmp_path, [answer(900, end=1500, token_source=None)])
    for name in (
        "tokens_per_s", "running_mean", "running_gauge_mean", "waiting_mean", "preemptions", "server_tokens",
        "recorded_tokens", "ttft_ms_mean", "ttft_ms_p99", "itl_ms_p50", "icl_ms_mean", "tpot_ms_mean",
        "output_tokens_mean", "accuracy", "truncated_rate", "unparsed_rate",
    ):  # fmt: skip
        assert getattr(figures, name) is None, name


def test_a_cell_that_never_got_warm_has_no_window_and_no_figures(tmp_path: Path) -> None:
    figures = row(tmp_path, [answer(1, [(2, 1)])], end=ended(None, aborted="the server died"))
    assert (figures.validity.valid, figures.validity.sentence) == (False, "the server died")
    assert figures.window_s is figures.output_tokens is figures.tokens_per_s is figures.inflight_mean is None
    assert figures.e2e_ms_mean is None


def test_recorded_tokens_are_all_of_the_cells_and_unknown_when_one_request_failed(tmp_path: Path) -> None:
    lines = [answer(1, [(2, 5)], phase="warmup"), answer(900, [(1500, 7)]), answer(1900, [(2500, 9)])]
    assert row(tmp_path / "a", lines).recorded_tokens == 21
    failed = answer(900, [(950, 1)], status="timeout", error="600 s")
    assert row(tmp_path / "b", [*lines, failed]).recorded_tokens is None


def test_failures_outside_the_window_are_counted_apart_and_told(tmp_path: Path) -> None:
    early = answer(10, end=20, status="broken", error="connection lost before the answer", phase="warmup")
    late = answer(2001, end=2500, status="timeout", error="600 s")
    figures = row(tmp_path, [early, answer(900, [(1500, 7)]), late])
    assert (figures.errors, figures.failures) == (0, 2)
    assert figures.first_failure == "broken: connection lost before the answer"
    assert row(tmp_path / "none", [answer(900, [(1500, 7)])]).failures == 0


def test_a_request_that_stalled_in_the_window_is_an_error_of_it_whenever_it_was_given_up(tmp_path: Path) -> None:
    stalled = answer(500, end=60_000, status="timeout", error="no complete answer within 59.5 s")
    figures = row(tmp_path, [stalled, answer(900, [(1500, 7)])])
    assert figures.errors == 1
    assert "1 of 2 requests failed, the first: timeout: no complete answer within 59.5 s" in figures.validity.sentence


def test_answers_whose_tokens_are_unknown_are_told(tmp_path: Path) -> None:
    figures = row(tmp_path, [answer(900, [(1500, 7)]), answer(900, end=1500), answer(900, end=1600)])
    assert "2 of 3 answers came without token usage" in figures.validity.sentence


def test_a_server_that_was_restarted_is_found_out_by_its_counters(tmp_path: Path) -> None:
    """A batch of 2 before and after; the differences alone would say (30 - 900) / (10 - 300) = 3."""
    samples = [
        scrape(t, running=2.0, generation_tokens=tokens, iterations=steps, preemptions=0.0)
        for t, tokens, steps in ((1100, 900.0, 300.0), (1400, 940.0, 320.0), (1900, 30.0, 10.0))
    ]
    figures = row(tmp_path, [answer(900, [(1500, 1)])], samples, b=2)
    assert "the server's counters went back: it was restarted within the cell" in figures.validity.sentence
    assert figures.running_mean == 2.0, "the gauge's, which a restart does not falsify"
    assert figures.preemptions == 0.0


def test_a_server_whose_metrics_fall_silent_is_told(tmp_path: Path) -> None:
    """The window has 10 s; /metrics answers in the first 4."""
    samples = [scrape(1000 + 500 * k, running=1.0) for k in range(9)]
    figures = row(tmp_path, [answer(900, [(1500, 1)])], samples, end=ended((1000, 11_000)))
    assert "the server's /metrics did not answer for 6.0 s of the window" in figures.validity.sentence


def test_latency_figures_are_the_mean_and_the_percentiles_in_ms(tmp_path: Path) -> None:
    lines = [answer(1000, [(1000 + ttft, 1)]) for ttft in (100, 200, 300, 400)]
    figures = row(tmp_path, lines)
    assert figures.ttft_ms_mean == pytest.approx(250)
    assert figures.ttft_ms_p50 == pytest.approx(250)
    assert figures.ttft_ms_p90 == pytest.approx(300 + 0.7 * 100), "linear between order statistics"


def test_accuracy_is_over_all_measured_answers_and_failures_are_none(tmp_path: Path) -> None:
    lines = [
        answer(1100, [(1200, 1)], item_id="a", text="#### 5"),
        answer(1900, [(2500, 1)], item_id="a", text="#### 6"),
        answer(1100, [(1200, 1)], item_id="b", text="12", finish_reason="length"),
        answer(1100, [(1200, 1)], item_id="b", text="none"),
        answer(1100, [(1200, 1)], item_id="a", text="#### 5", status="broken", error="cut"),
        answer(1100, [(1200, 1)], item_id="a", text="#### 5", phase="warmup"),
        answer(1100, [(1200, 1)], item_id="unknown", text="#### 5"),
    ]
    figures = row(tmp_path, lines, gold={"a": "5", "b": "12"})
    assert (figures.accuracy, figures.truncated_rate, figures.unparsed_rate) == (0.25, 0.25, 0.25)


def test_errors_of_the_window_count_and_the_first_is_quoted(tmp_path: Path) -> None:
    lines = [
        answer(1, end=900, status="connect", error="refused"),
        answer(900, end=1100, status="http", error="503: full"),
        answer(900, end=1200, status="timeout", error="late", phase="warmup"),
        answer(2001, end=2100, status="broken", error="cut"),
        answer(900, [(1500, 1)]),
    ]
    figures = row(tmp_path, lines)
    assert (figures.requests, figures.errors) == (1, 2)
    assert "2 of 3 requests failed, the first: http: 503: full" in figures.validity.sentence


def test_an_answer_of_unknown_length_is_in_no_figure_of_lengths(tmp_path: Path) -> None:
    """Its columns hold -1, which is no length."""
    told = answer(1000, [(1100, 1), (1500, 1)], prompt_tokens=19)
    untold = answer(1200, [(1300, 1), (1600, 1)], prompt_tokens=None, output_tokens=None)
    data, facts = cell_data(tmp_path, [told, untold]), {"sample-0000": ItemFacts(input_tokens=20, output_tokens=9)}
    lengths = lengths_of(data, answered_in(data, (1_000_000_000, 2_000_000_000)), facts)
    assert lengths.means.prompt_tokens_mean == 19
    assert lengths.means.prompts_off == 1
    assert lengths.means.output_tokens_asked == 9
    assert lengths.other_outputs == (2,)
    cache = KvCache(tokens=8_000, blocks=500, block_tokens=16)
    known = cell_data(tmp_path / "known", [told])
    grader = Grader({}, "gsm8k")
    both, one = (
        summarize_cell(d, grade_cell(d, grader), memory=ServerMemory(kv_cache=cache)).kv_batch for d in (data, known)
    )
    assert both == one is not None
