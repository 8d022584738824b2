"""An open loop's cell from journals made by hand; the window is (1000 ms, 2000 ms]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_run import MS, WINDOW, answer, arrived, cell_data, ended, scrape, turned_away

from loadgen.analysis.celldata import Traffic, e2e_s, itl_s, tpot_s, ttft_s
from loadgen.analysis.cells import CellSummary, grade_cell, summarize_cell
from loadgen.analysis.validity import Evidence, late_tail, load_reasons
from loadgen.load.exchange import Exchange
from loadgen.workload.grading import Grader
from loadgen.workload.item import ItemFacts

OPEN_CLOSE = (WINDOW[0] * MS, WINDOW[1] * MS)
LATE = arrived(1100, [(1200, 1), (1300, 1), (1350, 2)], end=1400, late=30)
"""Due at 1100, sent 30 ms later; 4 tokens in 150 ms."""


def row(tmp_path: Path, *exchanges: Exchange, arrival: str = "poisson:5", b: int = 4, **end: Any) -> CellSummary:
    running = [scrape(1100, running=1.0), scrape(1900, running=1.0)]
    data = cell_data(tmp_path, exchanges, running, b=b, arrival=arrival, end=ended(**end))
    return summarize_cell(data, [None] * len(exchanges))


class TestLatency:
    def test_it_begins_when_the_request_was_due_and_not_when_the_client_got_round_to_it(self, tmp_path: Path) -> None:
        data = cell_data(tmp_path, [LATE], arrival="poisson:5")
        assert ttft_s(data, OPEN_CLOSE) == pytest.approx([0.100])
        assert e2e_s(data, OPEN_CLOSE) == pytest.approx([0.300])

    def test_what_passes_between_tokens_is_not_touched_by_it(self, tmp_path: Path) -> None:
        data = cell_data(tmp_path, [LATE], arrival="poisson:5")
        assert tpot_s(data, OPEN_CLOSE) == pytest.approx([0.150 / 3])
        assert itl_s(data, OPEN_CLOSE) == pytest.approx([0.100, 0.025, 0.025])

    @pytest.mark.parametrize(("due", "counts"), [(1000, False), (1001, True), (2000, True), (2001, False)])
    def test_a_request_counts_if_it_was_due_in_the_window(self, tmp_path: Path, due: float, counts: bool) -> None:
        data = cell_data(tmp_path, [arrived(due, [(due + 900, 1), (due + 950, 1)])], arrival="poisson:5")
        for of in (ttft_s, tpot_s, e2e_s):
            assert bool(of(data, OPEN_CLOSE).size) is counts

    def test_one_answered_long_after_the_window_counts_with_all_its_latency(self, tmp_path: Path) -> None:
        figures = row(tmp_path, arrived(1999, [(9000, 1)]))
        assert figures.requests == 1
        assert figures.ttft_ms_mean == pytest.approx(7001)
        assert figures.output_tokens == 0, "tokens count where they arrive"

    def test_warm_up_and_cool_down_have_none(self, tmp_path: Path) -> None:
        aside = [arrived(1500, [(1600, 1)], phase=phase) for phase in ("warmup", "cooldown")]
        figures = row(tmp_path, *aside)
        assert (figures.requests, figures.ttft_ms_mean) == (0, None)
        assert figures.output_tokens == 2, "but their tokens were made"


class TestTraffic:
    def test_of_a_closed_loop_there_is_none(self, tmp_path: Path) -> None:
        assert row(tmp_path, answer(900, [(1500, 1)]), arrival="closed").traffic == Traffic()

    def test_arrivals_are_counted_by_when_they_were_due(self, tmp_path: Path) -> None:
        figures = row(
            tmp_path,
            arrived(900, [(1100, 1)], phase="warmup"),
            arrived(1100, [(1200, 1)], late=4),
            arrived(1200, [(1300, 1)], late=6),
            arrived(1900, [(2500, 1)], late=200),
            turned_away(1950),
            arrived(2100, [(2200, 1)], phase="cooldown"),
        ).traffic
        assert (figures.arrival, figures.rate_asked_per_s) == ("poisson:5", 5.0)
        assert (figures.arrivals, figures.dropped) == (4, 1)
        assert figures.late == 2, "6 and 200 ms, not 4"
        assert figures.rate_per_s == 2.0, "the third was sent behind the window"
        assert figures.completed_per_s == 3.0, "the warm-up's answer too, of those the third came later"
        assert figures.late_ms_p99 == pytest.approx(200 - 0.02 * (200 - 6)), "linear between order statistics"

    @pytest.mark.parametrize(("late", "sent"), [(0, 2), (5, 2), (6, 1)])
    def test_what_was_due_at_the_close_may_be_sent_a_little_behind_it(
        self, tmp_path: Path, late: float, sent: int
    ) -> None:
        figures = row(tmp_path, arrived(1500, [(1600, 1)]), arrived(2000, [(2100, 1)], late=late)).traffic
        assert figures.rate_per_s == sent

    def test_a_dropped_arrival_is_no_error_and_no_answer_and_was_never_in_flight(self, tmp_path: Path) -> None:
        lines = [arrived(1100, [(1200, 3)], item_id="a", text="#### 5"), turned_away(1500)]
        data = cell_data(tmp_path, lines, b=4, arrival="poisson:2", end=ended(generation_tokens=3.0))
        verdicts = grade_cell(data, Grader({"a": ItemFacts(gold="5"), "sample-0000": ItemFacts(gold="5")}, "gsm8k"))
        figures = summarize_cell(data, verdicts)
        assert (figures.errors, figures.failures, figures.answers) == (0, 0, 1)
        assert figures.recorded_tokens == 3, "known, though one request has none"
        assert figures.accuracy == 1.0
        assert verdicts[1] is None
        assert figures.inflight_mean == pytest.approx(0.1)

    def test_failures_of_the_window_are_those_that_were_in_flight_in_it(self, tmp_path: Path) -> None:
        figures = row(
            tmp_path,
            arrived(800, end=900, status="broken", error="early", phase="warmup"),
            arrived(1100, [(1200, 1)]),
            arrived(1900, end=5000, status="timeout", error="late"),
            arrived(2100, end=2200, status="broken", error="behind it", phase="cooldown"),
        )
        assert (figures.errors, figures.failures) == (1, 3)
        assert "1 of 2 requests failed, the first: timeout: late" in figures.validity.sentence

    def test_slots_wait_for_arrivals_so_there_is_no_refill_gap(self, tmp_path: Path) -> None:
        assert row(tmp_path, arrived(1100, [(1200, 1)]), arrived(1500, [(1600, 1)])).client.refill_gap_ms_p99 is None


KEPT = Traffic(
    arrival="poisson:20", rate_asked_per_s=20.0, arrivals=1200, rate_per_s=20.0, completed_per_s=20.0,
    late=0, late_ms_p99=0.2, dropped=0,
)  # fmt: skip
GOOD: dict[str, Any] = {
    "concurrency": 64, "aborted": None, "has_window": True, "requests": 1200, "errors": 0, "first_error": None,
    "tokens_per_s": 500.0, "inflight_mean": 12.0, "running_mean": 9.0, "running_peak": 20.0, "waiting_mean": 0.0,
    "preemptions": 0.0, "server_tokens": 10_000.0, "recorded_tokens": 10_000, "window_s": 60.0,
    "uncounted": 0, "silent_s": 0.1, "restarted": False,
}  # fmt: skip


def reasons(*, traffic: dict[str, Any] | None = None, **changed: Any) -> list[str]:
    kept = Traffic(**{name: getattr(KEPT, name) for name in KEPT.__struct_fields__} | (traffic or {}))
    return load_reasons(Evidence(**GOOD | {"traffic": kept} | changed))


def test_an_open_loop_has_one_sender_and_is_not_told_to_take_more_workers(tmp_path: Path) -> None:
    figures = row(tmp_path, arrived(1100, [(1200, 1)]), client_processes=1, client_cpu_s=0.99, client_cpu_share=0.99)
    said = "client-bound: the busiest client process used 99% of a core (limit 95%); lower the rate"
    assert said in figures.validity.load


class TestValidity:
    def test_a_batch_far_below_the_cap_queues_and_preemptions_are_nothing_against_an_open_loop(self) -> None:
        assert reasons(waiting_mean=30.0, preemptions=5.0) == []

    def test_a_client_that_sends_late_is_what_was_measured(self) -> None:
        assert reasons(traffic={"late": 60, "late_ms_p99": 5.1}) == [], "5%"
        assert reasons(traffic={"late": 61, "late_ms_p99": 9.25}) == [
            "client-bound: 61 of 1200 requests were sent more than 5 ms after they were due (p99 9.2 ms), and 5% may be"
        ]
        assert reasons(traffic={"late": 1, "arrivals": 20}, window_s=1.0) == [], "one in a small cell"

    def test_from_1_percent_on_it_is_said_that_p99_holds_it(self) -> None:
        assert late_tail(msgspec.structs.replace(KEPT, late=12)) is None
        assert late_tail(msgspec.structs.replace(KEPT, late=13, late_ms_p99=9.25)) == (
            "13 of 1200 requests were sent more than 5 ms after they were due (p99 9.2 ms): p99 latencies include the "
            "client's lateness"
        )
        assert late_tail(msgspec.structs.replace(KEPT, late=1, arrivals=20)) is None
        assert late_tail(Traffic()) is None

    def test_a_client_that_does_not_come_round_to_sending_is_too(self) -> None:
        few = {"rate_asked_per_s": 1.0, "arrivals": 8, "completed_per_s": 8 / 60}
        assert reasons(traffic={"rate_per_s": 7 / 60} | few) == [], "3% of 8 are less than one"
        assert "client-bound" in reasons(traffic={"rate_per_s": 6 / 60} | few)[0]
        assert reasons(traffic={"rate_per_s": 19.4}) == [], "97%"
        assert reasons(traffic={"rate_per_s": 19.3}) == [
            "client-bound: 19.3 of 20 requests a second were sent in the window"
        ]

    def test_dropped_arrivals_beyond_1_percent_invalidate(self) -> None:
        some = {"rate_per_s": 19.8, "completed_per_s": 19.8}
        assert reasons(traffic={"dropped": 12, **some}) == []
        assert reasons(traffic={"dropped": 13, **some}) == [
            "13 of 1200 arrivals were dropped, with 64 requests in flight: raise --concurrency, or the server cannot "
            "keep up with 20 a second"
        ]
        [queued] = reasons(traffic={"dropped": 13, **some}, waiting_mean=2.0)
        assert queued.endswith("in flight: the server cannot keep up with 20 a second"), "it queues"

    def test_a_server_that_answers_fewer_than_arrive_cannot_keep_up(self) -> None:
        assert reasons(traffic={"completed_per_s": 19.0}, inflight_mean=60.0) == [], "60 of 1200 behind: 5%"
        assert reasons(traffic={"completed_per_s": 15.0}, inflight_mean=150.0) == [
            "the server cannot keep up with 20 requests a second: it answered 15, and 300 more were in flight at the "
            "window's end than at its beginning"
        ]

    def test_the_noise_of_what_is_in_flight_is_no_backlog(self) -> None:
        """24 in flight on average: two Poisson counts differ by 7 (one sd), and 3 sd are 21.2."""
        short = {"arrivals": 40, "rate_per_s": 20.0}
        assert reasons(traffic={**short, "completed_per_s": 10.0}, window_s=2.0, inflight_mean=24.0) == []
        assert len(reasons(traffic={**short, "completed_per_s": 9.0}, window_s=2.0, inflight_mean=24.0)) == 1

    def test_what_else_stands_against_a_cell_does_so_in_an_open_loop_too(self) -> None:
        assert reasons(aborted="the server died") == ["the server died"]
        assert reasons(errors=7, first_error="x") == ["7 of 1207 requests failed, the first: x"]
