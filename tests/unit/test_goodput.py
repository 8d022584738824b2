"""Goodput under service level objectives, from journals made by hand; the window is (1000 ms, 2000 ms]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_run import answer, arrived, cell_data, ended, made_open_run, turned_away

from loadgen.analysis.analyse import analyse
from loadgen.analysis.celldata import Goodput, goodput_of
from loadgen.analysis.run import load_run
from loadgen.errors import UsageError
from loadgen.load.exchange import Exchange
from loadgen.record.cell import Slo


def good(
    tmp_path: Path, slo: str, exchanges: Sequence[Exchange], *, arrival: str = "closed", energy_j: float | None = None,
    **end: Any,
) -> Goodput:  # fmt: skip
    return goodput_of(cell_data(tmp_path, exchanges, arrival=arrival, end=ended(**end)), Slo.parse(slo), energy_j)


FAST = answer(1000, [(1150, 1), (1250, 1), (1350, 2)], end=1400)
"""TTFT 150 ms, TPOT 200 / 3 = 66.7 ms, E2E 400 ms."""


@pytest.mark.parametrize(
    ("slo", "kept"),
    [
        ("ttft:150ms", 1), ("ttft:149ms", 0), ("tpot:67ms", 1), ("tpot:66ms", 0), ("e2e:400ms", 1), ("e2e:399ms", 0),
        ("ttft:1s,tpot:1s,e2e:1s", 1), ("ttft:1s,tpot:66ms,e2e:1s", 0), ("e2e:0.4s", 1),
    ],
)  # fmt: skip
def test_a_good_request_keeps_every_objective(tmp_path: Path, slo: str, kept: int) -> None:
    assert good(tmp_path, slo, [FAST]).good == kept


def test_rate_share_and_energy_are_of_the_good_ones(tmp_path: Path) -> None:
    slow = answer(1000, [(1900, 1)])
    found = good(tmp_path, "ttft:200ms", [FAST, FAST, FAST, slow], energy_j=60.0)
    assert found == Goodput(good=3, goodput_per_s=3.0, goodput_share=0.75, energy_per_good_query_j=20.0)


def test_failed_requests_are_asked_and_not_good(tmp_path: Path) -> None:
    failed = answer(1000, [(1100, 1)], status="broken", error="cut")
    assert good(tmp_path, "ttft:200ms", [FAST, failed]).goodput_share == 0.5


def test_dropped_arrivals_are_asked_and_not_good_and_waiting_counts_from_when_they_were_due(tmp_path: Path) -> None:
    on_time = arrived(1100, [(1290, 1)])
    late = arrived(1200, [(1390, 1)], late=20)
    """190 ms like the other: the client's 20 ms are in it."""
    too_late = arrived(1200, [(1405, 1)], late=20)
    found = good(tmp_path, "ttft:200ms", [on_time, late, too_late, turned_away(1500)], arrival="poisson:4")
    assert (found.good, found.goodput_share) == (2, 0.5)


def test_in_an_open_loop_one_answered_behind_the_window_is_good_if_it_came_in_time(tmp_path: Path) -> None:
    found = good(tmp_path, "e2e:2s", [arrived(1999, [(3500, 1)]), arrived(2001, [(2100, 1)])], arrival="poisson:4")
    assert (found.good, found.goodput_share) == (1, 1.0)


def test_an_answer_of_one_token_keeps_any_time_per_token_and_one_of_unknown_length_none(tmp_path: Path) -> None:
    assert good(tmp_path / "a", "tpot:1ms", [answer(1000, [(1100, 1)])]).good == 1
    assert good(tmp_path / "b", "tpot:1s", [answer(1000, end=1100)]).good == 0


def test_a_truncated_answer_came_in_time_all_the_same(tmp_path: Path) -> None:
    assert good(tmp_path, "e2e:1s", [answer(1000, [(1100, 1)], finish_reason="length")]).good == 1


def test_none_asked_is_no_share_and_none_good_no_energy_per_good_one(tmp_path: Path) -> None:
    assert good(tmp_path / "a", "e2e:1s", [answer(2000, [(2500, 1)])], energy_j=5.0) == Goodput(
        good=0, goodput_per_s=0.0
    )
    assert good(tmp_path / "b", "ttft:1ms", [FAST], energy_j=5.0) == Goodput(
        good=0, goodput_per_s=0.0, goodput_share=0.0
    )


def test_without_objectives_or_a_window_there_is_none(tmp_path: Path) -> None:
    assert goodput_of(cell_data(tmp_path / "a", [FAST]), None, 5.0) == Goodput()
    assert good(tmp_path / "b", "ttft:1s", [FAST], window=None) == Goodput()


@pytest.mark.parametrize("text", ["ttft:200ms,tpot:50ms", "e2e:2s", "tpot:0.5ms", "e2e:1.5s,ttft:80ms"])
def test_objectives_print_as_they_are_written(text: str) -> None:
    assert str(Slo.parse(text)) == text


def test_objectives_are_seconds() -> None:
    assert Slo.parse("ttft:200ms, e2e:2s").limits_s == (("ttft", 0.2), ("e2e", 2.0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttft", "--slo ttft: ttft is given ''; write a time above 0 with its unit, as in 200ms or 2s"),
        ("ttft:200", "ttft is given '200'; write a time above 0 with its unit"),
        ("ttft:0ms", "'0ms'"),
        ("ttft:-1s", "'-1s'"),
        ("ttft:1.2.3s", "'1.2.3s'"),
        ("ttft:200us", "'200us'"),
        ("itl:20ms", "'itl' is not a latency of a request; write ttft, tpot, e2e with a limit"),
        ("", "'' is not a latency of a request"),
        ("ttft:1s,ttft:2s", "ttft is listed twice; give it one limit"),
    ],
)
def test_what_is_no_objective_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        Slo.parse(text)
    assert said in str(refused.value)


def test_a_run_is_told_its_objectives_again_without_a_server(tmp_path: Path) -> None:
    """Four requests in a window of 1 s: the first two keep 100 ms, all of them 500 ms."""
    run_dir = made_open_run(tmp_path / "run", slo="ttft:500ms")
    analyse(run_dir)
    run = load_run(run_dir)
    assert run.analysis.slo == "ttft:500ms"
    assert set(run.summary["goodput_per_s"]) == {4.0}
    analyse(run_dir, slo=Slo.parse("ttft:100ms"))
    run = load_run(run_dir)
    assert run.analysis.slo == "ttft:100ms"
    assert set(run.summary["goodput_share"]) == {0.5}
    assert set(run.summary["good"]) == {4}, "2 in each of two repeats"
    assert run.summary["goodput_per_s_lo"].tolist() == run.summary["goodput_per_s_hi"].tolist() == [2.0, 2.0]
