"""What Prometheus finds on a sweep's own page while it runs and when a cell has ended."""

from __future__ import annotations

import threading
import time

import pytest
from msgspec.structs import replace

from loadgen.load.exchange import Exchange
from loadgen.load.latency import Latencies
from loadgen.measure.metrics import LAST_SCRAPE_S, SweepMetrics
from loadgen.measure.observer import LiveFigures, Progress, Timetable
from loadgen.record.cell import Cell, CellVerdict
from loadgen.workload.grading import Grade

CELL = Cell(index=1, target="mine", precision="awq", concurrency=4, repeat=2)
LABELS = {"target": "mine", "precision": "awq", "concurrency": "4", "arrival": "closed", "repeat": "2"}
CELLS = (CELL, *(replace(CELL, index=index, concurrency=16) for index in (2, 3, 4)))
"""4 cells of 20 s each after a start of 20 s are expected."""
ROW = {
    "running_mean": 3.9, "running_peak": 4.0, "tokens_per_s": 10.5, "power_w_mean": 210.0, "energy_per_token_j": 20.0,
    "energy_per_query_j": 400.0, "ttft_ms_mean": 250.0, "tpot_ms_mean": None,
}  # fmt: skip
"""A row of cells.csv."""
VALID, INVALID = CellVerdict(valid=True, figures=ROW), CellVerdict(valid=False, reasons="why")
NO_ENERGY = CellVerdict(valid=True, latency_valid=True, energy_valid=False, reasons="energy invalid: a reset")
UNJUDGED = CellVerdict(valid=None, reasons="too large")


def s(seconds: float) -> int:
    return round(seconds * 1e9)


def glance(stage: str, cell: Cell = CELL, **figures: float | None) -> Progress:
    given = {
        "in_flight": 4, "running": None, "requests": 0, "errors": 0, "tokens_per_s": None, "ttft_ms": None,
        "tpot_ms": None, "power_w": None, "accuracy": None, "share": 0.0,
    }  # fmt: skip
    return Progress(cell=cell, stage=stage, **(given | figures))


def ended(phase: str = "measured") -> Exchange:
    return Exchange(
        slot=0, phase=phase, item_id="1", prompt_sha="", t_send_ns=s(1.0), t_first_ns=s(1.5), t_end_ns=s(2.5),
        token_times=((s(1.5), 10), (s(2.5), 10)), output_tokens=20,
    )  # fmt: skip


class Graded:
    """A grader that finds every answer right."""

    def grade(self, *_: object) -> Grade:
        return Grade(outcome="correct")


def test_the_warm_up_is_in_no_figure_of_the_live_view() -> None:
    """The window opened at 2 s; 20 tokens of an answer that ended at 2.5 s, in half a second."""
    live, window = LiveFigures(Graded()), (s(2.0), s(2.5))
    live.add(ended(phase="warmup"), Latencies(), None)
    assert (live.requests, live.tokens_per_s(None), live.ttft_ms, live.accuracy) == (1, None, None, None)
    for ttft_s in (0.5, 0.1, 0.2):
        live.add(ended(), Latencies(ttft_s=ttft_s), window)
    assert (live.requests, live.tokens_per_s(window), live.accuracy) == (4, 120, 1)
    assert (live.ttft_ms, live.tpot_ms) == (200, None)


def test_of_many_answers_a_second_some_are_graded_while_the_cell_runs() -> None:
    """200 at once and 20 a second: 210 in half a second."""
    live, window = LiveFigures(Graded()), (s(2.0), s(3.0))
    answers = [replace(ended(), t_end_ns=s(2.5) + round(k * 0.5e9 / 999)) for k in range(1000)]
    for answer in answers:
        live.add(answer, Latencies(), window)
    assert (live.requests, live.graded, live.accuracy) == (1000, 210, 1)


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def metrics_of_one_cell(clock: Clock) -> SweepMetrics:
    metrics = SweepMetrics(simulated=True, run="one", model="m", dataset="sample", now_ns=clock)
    metrics.run_begins("title", Timetable(cells=CELLS, cells_s=(20.0,) * 4, start_s=20.0), True)
    clock.ns = s(1)
    metrics.progress(glance("window", running=4, power_w=200, share=0.5))
    clock.ns = s(3)
    metrics.answered(CELL, ended(phase="warmup"), Latencies())
    metrics.answered(CELL, ended(), Latencies(ttft_s=0.5, tpot_s=None))
    metrics.progress(glance("window", running=4, power_w=200, tokens_per_s=10, accuracy=0.5, graded=4, share=1.0))
    return metrics


def test_histograms_hold_what_counts_in_the_window_and_counters_every_request() -> None:
    value = metrics_of_one_cell(Clock()).registry.get_sample_value
    assert value("loadgen_requests_total", LABELS | {"status": "ok"}) == 2
    assert value("loadgen_output_tokens_total", LABELS) == 40
    assert (value("loadgen_ttft_seconds_count", LABELS), value("loadgen_ttft_seconds_sum", LABELS)) == (1, 0.5)
    assert value("loadgen_tpot_seconds_count", LABELS) == 0


def test_the_running_cell_is_shown_and_goes_when_it_ends() -> None:
    metrics = metrics_of_one_cell(Clock())
    value = metrics.registry.get_sample_value
    assert value("loadgen_concurrency", LABELS) == 4
    assert value("loadgen_power_watts", LABELS) == 200
    assert value("loadgen_energy_per_token_joules", LABELS) == 20
    assert value("loadgen_graded_answers", LABELS) == 4
    assert value("loadgen_cell_info", LABELS | {"stage": "window"}) == 1
    metrics.cell_ends(CELL, "", VALID)
    for name in ("concurrency", "power_watts", "energy_per_token_joules", "requests_in_flight", "accuracy_ratio"):
        assert value(f"loadgen_{name}", LABELS) is None


def test_an_ended_cell_has_the_figures_of_its_row_in_cells_csv() -> None:
    metrics = metrics_of_one_cell(Clock())
    metrics.cell_ends(CELL, "", VALID)
    other = Cell(index=2, target="mine", precision="awq", concurrency=1, repeat=2)
    metrics.progress(glance("window", cell=other))
    metrics.cell_ends(other, "", INVALID)

    def value(name: str, concurrency: str = "4") -> float | None:
        labels = LABELS | {"run": "one", "concurrency": concurrency}
        return metrics.registry.get_sample_value(f"loadgen_{name}", labels)

    assert value("ended_cell_concurrency") == 4
    assert value("ended_cell_output_tokens_per_second") == 10.5
    assert (value("ended_cell_running_requests"), value("ended_cell_running_requests_peak")) == (3.9, 4)
    assert (value("ended_cell_ttft_seconds"), value("ended_cell_tpot_seconds")) == (0.25, None)
    assert (value("ended_cell_power_watts"), value("ended_cell_accuracy_ratio")) == (210, 0.5)
    assert value("ended_cell_energy_per_token_joules") == 20
    assert value("ended_cell_energy_per_query_joules") == 400
    assert (value("ended_cell_valid"), value("ended_cell_valid", "1")) == (1, 0)
    assert value("ended_cell_output_tokens_per_second", "1") is None, "not measured is no series, never 0"
    assert value("cell_start_timestamp_seconds") == pytest.approx(time.time(), abs=60)


def test_each_rate_of_an_open_loop_has_its_series() -> None:
    metrics = SweepMetrics(simulated=True, run="one")
    for rate, figure in ((5, 10.0), (20, 40.0)):
        cell = replace(CELL, arrival=f"poisson:{rate}")
        metrics.cell_ends(cell, "", CellVerdict(valid=True, figures=ROW | {"tokens_per_s": figure}))
    labels = LABELS | {"run": "one"}
    found = [
        metrics.registry.get_sample_value(
            "loadgen_ended_cell_output_tokens_per_second", labels | {"arrival": f"poisson:{rate}"}
        )
        for rate in (5, 20)
    ]
    assert found == [10, 40]


def test_a_cell_that_was_not_judged_is_neither_valid_nor_invalid_and_has_no_figures() -> None:
    metrics = metrics_of_one_cell(Clock())
    metrics.cell_ends(CELL, "", UNJUDGED)
    value = metrics.registry.get_sample_value
    assert value("loadgen_ended_cell_valid", LABELS | {"run": "one"}) is None
    assert value("loadgen_ended_cell_output_tokens_per_second", LABELS | {"run": "one"}) is None


def test_each_quantity_has_its_verdict_and_one_that_was_not_measured_none() -> None:
    metrics = metrics_of_one_cell(Clock())
    metrics.cell_ends(CELL, "", NO_ENERGY)

    def verdict(quantity: str) -> float | None:
        return metrics.registry.get_sample_value(f"loadgen_ended_cell_{quantity}", LABELS | {"run": "one"})

    quantities = ("valid", "latency_valid", "energy_valid", "answers_valid")
    assert [verdict(quantity) for quantity in quantities] == [1, 1, 0, None]
    state = {"run": "one", "state": "partly_valid"}
    assert metrics.registry.get_sample_value("loadgen_run_cells", state) == 1


def test_cells_by_state_and_the_time_left() -> None:
    clock = Clock()
    metrics = metrics_of_one_cell(clock)

    def cells(state: str) -> float | None:
        return metrics.registry.get_sample_value("loadgen_run_cells", {"run": "one", "state": state})

    def left_s() -> float | None:
        return metrics.registry.get_sample_value("loadgen_run_left_seconds", {"run": "one"})

    assert (cells("valid"), cells("invalid"), cells("left")) == (0, 0, 4)
    assert left_s() == 4 * 20 - 2, "the server is up and the first cell is 2 s old"
    clock.ns = s(11)
    metrics.cell_ends(CELL, "", VALID)
    assert (cells("valid"), cells("invalid"), cells("left")) == (1, 0, 3)
    assert left_s() == 3 * 10, "the first took half of what was expected"
    metrics.cell_ends(CELLS[1], "", INVALID)
    assert (cells("valid"), cells("invalid"), cells("left")) == (1, 1, 2)
    assert cells("unjudged") is None
    metrics.cell_ends(CELLS[2], "", UNJUDGED)
    assert (cells("valid"), cells("invalid"), cells("unjudged"), cells("left")) == (1, 1, 1, 1)


def test_the_run_says_who_it_is_and_that_it_is_simulated() -> None:
    metrics = metrics_of_one_cell(Clock())
    info = {"run": "one", "title": "title", "model": "m", "dataset": "sample"}
    assert metrics.registry.get_sample_value("loadgen_run_info", info) == 1
    assert metrics.registry.get_sample_value("loadgen_simulated") == 1


def test_the_end_waits_until_two_scrapes_have_seen_it() -> None:
    metrics = SweepMetrics(simulated=True, run="one")
    metrics.serve(0)
    list(metrics.registry.collect())
    closed = threading.Event()
    thread = threading.Thread(target=lambda: (metrics.close(), closed.set()))
    thread.start()
    list(metrics.registry.collect())
    assert not closed.wait(0.2)
    list(metrics.registry.collect())
    thread.join(30)
    assert closed.is_set()


class Impatient(threading.Condition):
    """Fails the test where somebody waits."""

    def wait_for(self, *_: object) -> bool:
        pytest.fail("waited")


@pytest.mark.parametrize("scrapes", [0, 3])
def test_the_end_waits_for_nobody_who_is_not_there(scrapes: int) -> None:
    """Prometheus never was, or scraped thrice and went away 6 s ago."""
    now_s = 0.0
    metrics = SweepMetrics(simulated=True, run="one", now_ns=lambda: round(now_s * 1e9))
    metrics.serve(0)
    metrics._scrapes._changed = Impatient()
    for _ in range(scrapes):
        list(metrics.registry.collect())
        now_s += 1.0
    now_s += LAST_SCRAPE_S
    metrics.close()
