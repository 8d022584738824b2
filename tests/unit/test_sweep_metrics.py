"""What Prometheus finds on a sweep's own page while it runs and when a cell has ended."""

from __future__ import annotations

import threading
import time

import pytest

from loadgen.client.exchange import Exchange
from loadgen.sweep.livewindow import LiveWindow
from loadgen.sweep.metrics import LAST_SCRAPE_S, SweepMetrics
from loadgen.sweep.observer import CellVerdict, Progress
from loadgen.sweep.plan import Cell

CELL = Cell(index=1, target="mine", precision="awq", concurrency=4, repeat=2)
LABELS = {"target": "mine", "precision": "awq", "concurrency": "4", "repeat": "2"}
VALID, INVALID = CellVerdict(valid=True), CellVerdict(valid=False, reasons="why")
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


def ended(*token_times: tuple[float, int], tokens: int | None = None, phase: str = "measured") -> Exchange:
    times = tuple((s(at_s), count) for at_s, count in token_times)
    return Exchange(
        slot=0, phase=phase, item_id="1", prompt_sha="", t_send_ns=times[0][0] - s(0.5), t_first_ns=times[0][0],
        t_end_ns=times[-1][0], token_times=times, output_tokens=tokens or sum(count for _, count in times),
    )  # fmt: skip


def window() -> LiveWindow:
    """Glances inside the window at 1, 2 and 3 s; 10 tokens between the first and the last of them."""
    live = LiveWindow()
    live.glance(glance("warm-up"), s(0))
    live.answered(ended((0.5, 64), phase="warmup"))
    live.glance(glance("window", running=4, power_w=100), s(1))
    live.glance(glance("window", running=2, power_w=200), s(2))
    live.answered(ended((0.9, 32), (1.5, 2), (2.5, 3), tokens=37))
    live.glance(glance("window", running=3, power_w=300, ttft_ms=250, accuracy=0.5), s(3))
    live.answered(ended((2.9, 4), (3.1, 8), tokens=12))
    live.glance(glance("drain", ttft_ms=500, tpot_ms=20, accuracy=0.75), s(3.2))
    live.answered(ended((3.0, 1), (3.15, 16), tokens=17))
    return live


def test_tokens_count_by_their_own_arrival_between_the_glances() -> None:
    figures = window().figures()
    assert figures.tokens_per_s == (2 + 3 + 4 + 1) / 2


def test_energy_is_mean_power_over_that_rate() -> None:
    figures = window().figures()
    assert figures.power_w == 200
    assert figures.energy_per_token_j == 200 / 5
    assert figures.energy_per_query_j == 200 / 5 * (37 + 12 + 17) / 3


def test_batch_and_accuracy_are_the_glances_and_latencies_those_of_the_table() -> None:
    """First tokens of measured requests in the window came at 2.9 and 3.0 s, each 0.5 s after its request; answers that
    ended in it: one, 36 later tokens in 1.6 s."""
    figures = window().figures()
    assert (figures.running, figures.running_peak) == (3, 4)
    assert (figures.ttft_s, figures.accuracy) == (0.5, 0.75)
    assert figures.tpot_s == pytest.approx(1.6 / 36)


def test_tokens_behind_a_glance_count_when_another_follows() -> None:
    live = LiveWindow()
    live.glance(glance("window"), s(1))
    live.answered(ended((1.5, 6)))
    assert live.figures().tokens_per_s is None
    live.glance(glance("window"), s(3))
    assert live.figures().tokens_per_s == 3


def test_a_cell_that_never_opened_its_window_has_no_figures() -> None:
    live = LiveWindow()
    live.glance(glance("warm-up", running=4, power_w=100), s(1))
    live.answered(ended((1.5, 6)))
    figures = live.figures()
    assert figures.tokens_per_s is None and figures.power_w is None and figures.energy_per_token_j is None


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def metrics_of_one_cell(clock: Clock) -> SweepMetrics:
    metrics = SweepMetrics(simulated=True, run="one", model="m", dataset="sample", now_ns=clock)
    metrics.run_begins("title", 4, True, 100.0)
    clock.ns = s(1)
    metrics.progress(glance("window", running=4, power_w=200, share=0.5))
    clock.ns = s(3)
    metrics.answered(CELL, ended((1.5, 10), (2.5, 10)))
    metrics.progress(glance("window", running=4, power_w=200, tokens_per_s=10, accuracy=0.5, share=1.0))
    return metrics


def test_the_running_cell_is_shown_and_goes_when_it_ends() -> None:
    metrics = metrics_of_one_cell(Clock())
    value = metrics.registry.get_sample_value
    assert value("loadgen_concurrency", LABELS) == 4
    assert value("loadgen_power_watts", LABELS) == 200
    assert value("loadgen_energy_per_token_joules", LABELS) == 20
    assert value("loadgen_cell_info", LABELS | {"stage": "window"}) == 1
    metrics.cell_ends(CELL, "", VALID)
    for name in ("concurrency", "power_watts", "energy_per_token_joules", "requests_in_flight", "accuracy_ratio"):
        assert value(f"loadgen_{name}", LABELS) is None


def test_what_a_cell_came_to_stays_under_its_run() -> None:
    metrics = metrics_of_one_cell(Clock())
    metrics.cell_ends(CELL, "", VALID)
    other = Cell(index=2, target="mine", precision="awq", concurrency=1, repeat=2)
    metrics.progress(glance("window", cell=other))
    metrics.cell_ends(other, "", INVALID)

    def value(name: str, concurrency: str = "4") -> float | None:
        labels = LABELS | {"run": "one", "concurrency": concurrency}
        return metrics.registry.get_sample_value(f"loadgen_{name}", labels)

    assert value("ended_cell_concurrency") == 4
    assert value("ended_cell_output_tokens_per_second") == 10
    assert value("ended_cell_energy_per_token_joules") == 20
    assert value("ended_cell_energy_per_query_joules") == 400
    assert (value("ended_cell_valid"), value("ended_cell_valid", "1")) == (1, 0)
    assert value("ended_cell_output_tokens_per_second", "1") is None, "not measured is no series, never 0"
    assert value("cell_start_timestamp_seconds") == pytest.approx(time.time(), abs=60)


def test_a_cell_that_was_not_judged_is_neither_valid_nor_invalid() -> None:
    metrics = metrics_of_one_cell(Clock())
    metrics.cell_ends(CELL, "", UNJUDGED)
    value = metrics.registry.get_sample_value
    assert value("loadgen_ended_cell_valid", LABELS | {"run": "one"}) is None
    assert value("loadgen_ended_cell_output_tokens_per_second", LABELS | {"run": "one"}) == 10


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
    assert left_s() == 100 - 3
    clock.ns = s(10)
    metrics.cell_ends(CELL, "", VALID)
    assert (cells("valid"), cells("invalid"), cells("left")) == (1, 0, 3)
    assert left_s() == 30
    metrics.cell_ends(CELL, "", INVALID)
    assert (cells("valid"), cells("invalid"), cells("left")) == (1, 1, 2)
    assert cells("unjudged") is None
    metrics.cell_ends(CELL, "", UNJUDGED)
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
