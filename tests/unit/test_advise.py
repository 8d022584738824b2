"""Advice for a traffic: the queue that a replica is, the fleet that follows from it, and what is said."""

from __future__ import annotations

import heapq
import html
import io
import json
import math
import random
import re
import shutil
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from made_run import made_open_run
from made_study import WATTS, made_study
from rich.console import Console

import loadgen
from loadgen.analysis.advise import Advice, Demand, choose
from loadgen.analysis.analyse import analyse
from loadgen.analysis.day import Day, traffic_of
from loadgen.analysis.ratetable import rate_table, rates_of
from loadgen.analysis.replica import Fleet, Replica, replicas_of, scatter
from loadgen.analysis.verification import Verification, arrivals_asked, verification_of
from loadgen.analysis.warnings import KEPT_SERVERS
from loadgen.cli.advise import command
from loadgen.errors import UsageError
from loadgen.record.cell import Slo
from loadgen.reports.advise import print_verification, sentences, verification_sentences
from loadgen.reports.compare import pair_note
from loadgen.reports.html.advice import advice
from loadgen.words import number


def replica(rates: list[float], watts: list[float] | None = None, rest_w: float | None = None,
            kept: list[float] | None = None) -> Replica:  # fmt: skip
    """Without noise: X(n), P(n) and the share that keeps the objectives, for n = 1, 2, ..."""
    return Replica(
        target="t", precision="fp16", gpus=1, fewest=1, rate_per_s=np.array([rates]),
        power_w=None if watts is None else np.array([watts]),
        rest_w=None if rest_w is None else np.array([rest_w]),
        slo_share=None if kept is None else np.array(kept), accuracy=None, drawn=False,
    )  # fmt: skip


def test_servers_in_parallel_hold_poisson_many_requests() -> None:
    """X(n) = n mu is M/M/inf: the number in it is Poisson with mean lambda / mu."""
    one = replica([2.0 * n for n in range(1, 41)])
    load = one.load(np.array([6.0]))
    assert load.in_flight[0] == pytest.approx(3.0, rel=1e-9)
    assert load.share[0, :4] == pytest.approx(np.exp(-3) * np.array([1, 3, 9 / 2, 27 / 6]))


def test_a_server_that_gains_nothing_by_batching_is_a_queue() -> None:
    """X(n) = mu is M/M/1: rho / (1 - rho) requests, idle for 1 - rho, beyond n for rho^(n + 1) of the time."""
    one = replica([10.0] * 8)
    load = one.load(np.array([5.0]))
    assert load.in_flight[0] == pytest.approx(1.0)
    assert load.share[0, 0] == pytest.approx(0.5)
    assert load.beyond[0] == pytest.approx(0.5**9)
    # At most 1% of the time beyond 8 requests: rho^9 = 0.01.
    assert one.capacity_per_s(0.99) == pytest.approx(10 * 0.01 ** (1 / 9), rel=1e-3)


def test_a_single_batch_does_not_tell_whether_more_would_gain() -> None:
    """10 to 10.4 requests/s from half of the batches on gain 4%."""
    assert [replica(rates).saturated for rates in ([10.0], [5.0, 10.0], [5.0, 10.0, 10.2, 10.4])] == [
        False,
        False,
        True,
    ]


def test_power_is_that_of_every_state_and_at_rest() -> None:
    one = replica([10.0] * 8, watts=[200.0] * 8, rest_w=60.0)
    load = one.load(np.array([5.0]))
    assert one.power(load) == pytest.approx([0.5 * 60 + 0.5 * 200])
    assert replica([10.0] * 8, watts=[200.0] * 8).power(load) is None, "it rests, and that power is not known"


def test_lengths_do_not_matter_where_requests_share_the_server_equally() -> None:
    """The mean number in flight by events, one by one: a replica whose throughput saturates, answers of two lengths."""
    rates = [4.0 * n / (1 + 0.15 * (n - 1)) for n in range(1, 33)]
    one, arrivals = replica(rates), 9.0
    rng, now, area = random.Random(5), 0.0, 0.0
    left: list[float] = []  # virtual work at which each request ends
    work, next_arrival = 0.0, 0.0
    while now < 4000:
        speed = rates[len(left) - 1] / len(left) if left else 0.0
        ends = now + (left[0] - work) / speed if left else float("inf")
        at = min(ends, next_arrival)
        area += len(left) * (at - now)
        work, now = work + speed * (at - now), at
        if at == ends:
            heapq.heappop(left)
        else:
            heapq.heappush(left, work + rng.choice([0.2, 1.8]))
            next_arrival = now + rng.expovariate(arrivals)
    assert one.load(np.array([arrivals])).in_flight[0] == pytest.approx(area / now, rel=0.05)


def test_windows_scatter_as_the_formula_says() -> None:
    """200 windows by events, one by one, each beside the prediction for its own arrivals and lengths."""
    rates = np.array([4.0 * n / (1 + 0.15 * (n - 1)) for n in range(1, 65)])
    rng, window_s, off = random.Random(3), 40.0, []
    heap: list[tuple[float, float]] = []
    now, work, arrival, area, lengths = 0.0, 0.0, 0.0, 0.0, list[float]()
    close = window_s
    while len(off) < 200:
        speed = rates[len(heap) - 1] / len(heap) if heap else 0.0
        ends = now + (heap[0][0] - work) / speed if heap else math.inf
        at = min(ends, arrival, close)
        area, work, now = area + len(heap) * (at - now), work + speed * (at - now), at
        if at == close:
            came = replica(list(rates / np.mean(lengths)))
            share = came.states(len(lengths) / window_s)
            off.append(area / window_s - share @ np.arange(len(share)))
            area, lengths, close = 0.0, [], close + window_s
        elif at == ends:
            heapq.heappop(heap)
        else:
            lengths.append(rng.expovariate(1.0))
            heapq.heappush(heap, (work + lengths[-1], 0.0))
            arrival = now + rng.expovariate(9.0)
    share = replica(list(rates)).states(9.0)
    expected = scatter(np.arange(len(share)).astype(float), share, 9.0, window_s)
    assert np.std(off) == pytest.approx(expected, rel=0.2)  # of 200 draws: 5%, and a window is not long
    assert abs(np.mean(off)) < expected


def test_servers_in_parallel_scatter_by_the_windows_edges_alone() -> None:
    """X(n) = n mu: so many requests of such lengths keep it busy for as long, but for those that an edge cuts."""
    one = replica([2.0 * n for n in range(1, 41)])
    share = one.states(6.0)
    held = np.arange(len(share)).astype(float)
    assert scatter(held, share, 6.0, 50.0) == pytest.approx(math.sqrt(2 * 3.0) * 0.5 / 50, rel=0.01)


def test_nothing_is_said_of_batches_that_were_not_measured() -> None:
    """However much is asked for: no replica has more requests than were measured for over 1% of the time."""
    fleet = Fleet(replica([4.0 * n / (1 + 0.15 * (n - 1)) for n in range(1, 17)]), attainment=0.99)
    for rate in (1.0, 10.0, 19.0, 100.0, 5000.0):
        share = fleet.for_rate(rate)
        assert not isinstance(share, str)
        assert share.load.beyond[0] <= 0.01 + 1e-9
    few = replica([4.0 * n for n in range(1, 33)])
    few = msgspec.structs.replace(few, fewest=16)
    assert "below 16, the smallest that was measured, for" in str(Fleet(few, attainment=0.99).for_rate(8.0))
    assert not few.states(4.0 * 32).size, "more than it completes at the largest measured batch"


def test_the_fleet_is_the_smallest_that_keeps_the_objectives() -> None:
    """Only a batch of 1 keeps them: an arriving request must find nobody, 1 - rho >= 0.9."""
    fleet = Fleet(replica([10.0] * 8, kept=[1.0] + [0.0] * 7), attainment=0.9)
    assert fleet.capacity_per_s == pytest.approx(1.0, rel=1e-6)
    share = fleet.for_rate(7.5)
    assert not isinstance(share, str)
    assert share.count[0] == 8
    assert fleet.limit == "slo"
    kept = Fleet(replica([10.0] * 8, kept=[1.0] * 8), attainment=0.9)
    assert kept.limit == "range", "in each batch that was measured they are kept: larger ones may keep them too"
    assert Fleet(replica([10.0], kept=[0.5]), attainment=0.9).for_rate(1.0) == (
        "50% of its requests keep the objectives at B = 1, and 90% are asked for"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> loadgen.analysis.run.Run:
    return loadgen.load_run(made_study(tmp_path_factory.mktemp("advise") / "run"))


def test_a_run_is_advised_from_what_it_measured(run: loadgen.analysis.run.Run) -> None:
    """AWQ is faster alone and draws less; where a GPU has a price its GPUs count first."""
    advice = loadgen.advise(run.path, rate=1.0, carbon=0.4)
    assert isinstance(advice, Advice)
    assert (advice.choice, advice.second) == ("awq", "fp16")
    by_name = {arm.target: arm for arm in advice.arms}
    for name, arm in by_name.items():
        cells = run.cells[(run.cells["target"] == name) & (run.cells["concurrency"] == 1)]
        alone = float((cells["tokens_per_s"] / cells["output_tokens_mean"]).mean())
        assert arm.gpus == 1
        assert arm.e2e_mean_s == pytest.approx(arm.in_flight)  # Little's law at one request a second
        assert arm.e2e_mean_s == pytest.approx(1 / alone, rel=0.1)
        assert arm.energy_per_query_j is not None
        busy, rest = WATTS[name] * 1.06 + 3, 60.0
        assert arm.energy_per_query_j.value == pytest.approx(
            rest + (busy - rest) * (1 - (arm.idle_share or 0)), rel=0.02
        )
        assert arm.kwh_per_1000 == pytest.approx(arm.energy_per_query_j.value / 3600)
        assert arm.co2_kg_per_1000 == pytest.approx(0.4 * (arm.kwh_per_1000 or 0))
        assert arm.cost_per_1000 is None
    priced = loadgen.advise(run.path, rate=200.0, price=3.0, per="correct")
    assert isinstance(priced, Advice)
    best = priced.arms[0]
    assert best.accuracy is not None
    assert best.gpus == min((arm.gpus or 0) / (arm.accuracy or 1) for arm in priced.arms) * best.accuracy
    assert best.cost_per_1000 == pytest.approx((best.gpus or 0) * 3.0 / 200 * 1000 / 3600 / best.accuracy)


def test_the_report_has_what_the_command_says_at_each_of_its_rates(run: loadgen.analysis.run.Run) -> None:
    """From 0.1 requests in flight on one replica of the slowest target to 8 replicas of the best one."""
    table = rate_table(run)
    rates = [at.rate_per_s for at in table]
    alone = min(one.rate_per_s[0, 0] for one in replicas_of(run) if isinstance(one, Replica))
    assert rates[0] / 1.2 < 0.1 * alone <= rates[0]
    assert max(arm.replicas or 0 for arm in table[-1].by_joules.arms) >= 7
    assert min(arm.replicas or 99 for arm in table[-1].by_joules.arms) in (7, 8)
    assert max(b / a for a, b in pairwise(rates)) <= 1.26
    at = table[2 * len(table) // 3]
    assert at.by_joules == loadgen.advise(run.path, rate=at.rate_per_s)
    assert at.by_gpus == loadgen.advise(run.path, rate=at.rate_per_s, price=1.0)
    content = advice(run)
    ((told,),) = [re.findall("<template>(.*)</template>", content)]
    page = json.loads(html.unescape(told))
    shown = page["rates"][2 * len(table) // 3]
    awq = next(arm for arm in at.by_gpus.arms if arm.target == "awq")
    assert shown["rate"] == at.rate_per_s
    assert awq.energy_per_query_j is not None
    assert number(awq.energy_per_query_j.value) in shown["rows"][1].split("|")
    assert shown["gpuHours"][1] == pytest.approx((awq.gpus or 0) / at.rate_per_s / 3.6, rel=1e-5)
    assert [page["texts"][place] for place in shown["joules"]["said"]] == list(sentences(at.by_joules))
    assert shown["joules"]["best"] == (
        {"fp16": 0, "awq": 1}[at.by_joules.choice or ""] if at.by_joules.decided else None
    )
    assert content.count("<tr") == 1 + 5 * 3, "a heading, and three targets at five rates without JavaScript"


def test_a_start_without_a_cell_counts_for_its_idle_power(tmp_path: Path) -> None:
    """A sweep killed between a server's start and its first cell: the report is written."""
    path = made_study(tmp_path / "run")
    manifest = json.loads((path / "manifest.json").read_text())
    first = next(block for block in manifest["power_blocks"] if block["target"] == "fp16")
    manifest["power_blocks"].append({**first, "repeat": 3, "rest_w": {"GPU-a": 90.0}})
    (path / "manifest.json").write_text(json.dumps(manifest))
    analyse(path)
    one = next(one for one in replicas_of(loadgen.load_run(path)) if isinstance(one, Replica) and one.target == "fp16")
    assert one.rest_w is not None and one.rest_w[0] == pytest.approx((60 * 60 * 90) ** (1 / 3))


def test_many_batches_have_fewer_rates_and_too_many_none() -> None:
    """A rate takes as long as there are batches: 24,000 in all."""
    few, more, none = (
        rates_of([Fleet(replica([0.5 * n for n in range(1, most + 1)]), 0.99)]) for most in (64, 1000, 14_000)
    )
    assert len(few) * 64 <= 24_000
    assert len(few) > len(more) > 0
    assert len(more) * 1000 <= 24_000
    assert none == []


def test_an_objective_that_is_not_the_runs_own_is_counted_anew(run: loadgen.analysis.run.Run) -> None:
    before = (run.path / "analysis.json").read_bytes()
    advice = loadgen.advise(run.path, rate=1.0, slo="ttft:1ms")
    assert isinstance(advice, Advice)
    assert advice.choice is None
    assert all("0% of its requests keep the objectives at B = 1" in (arm.refusal or "") for arm in advice.arms)
    assert (run.path / "analysis.json").read_bytes() == before


def test_a_day_is_the_sum_of_its_hours(run: loadgen.analysis.run.Run, tmp_path: Path) -> None:
    day = tmp_path / "day.csv"
    day.write_text("hour,rate\n0,0.5\n8,40\n20,2\n")
    found = loadgen.advise(run.path, traffic=day)
    assert isinstance(found, Day)
    joules = {}
    for rate, hours in ((0.5, 8), (40.0, 12), (2.0, 4)):
        advice = loadgen.advise(run.path, rate=rate)
        assert isinstance(advice, Advice)
        for arm in advice.arms:
            assert arm.energy_per_query_j is not None
            joules[arm.target, rate] = arm.energy_per_query_j.value * rate * hours * 3600
    for arm in found.arms:
        assert arm.kwh is not None
        total = sum(j for (name, _), j in joules.items() if name == arm.target)
        assert arm.kwh.value == pytest.approx(total / 3.6e6)
    best = [min(("fp16", "awq", "bnb-nf4"), key=lambda name: joules[name, rate]) for rate in (0.5, 40.0, 2.0)]
    assert list(found.chosen) == best


def test_traffic_is_a_file_or_a_cosine(tmp_path: Path) -> None:
    steps = traffic_of("diurnal:40/10")
    assert sum(step.rate_per_s for step in steps) / 24 == pytest.approx(25)
    assert max(steps, key=lambda step: step.rate_per_s).from_h in (11, 12)
    bad = tmp_path / "bad.csv"
    for text, said in (("rate,hour\n1,2\n", "must be `hour,rate`"), ("hour,rate\n0,x\n", "'0,x' is not an hour"),
                       ("hour,rate\n1,5\n", "begin at 0"), ("hour,rate\n0,5\n24,5\n", "below 24"),
                       ("hour,rate\n0,0\n", "every rate is 0")):  # fmt: skip
        bad.write_text(text)
        with pytest.raises(UsageError, match=said):
            traffic_of(str(bad))
    bad.write_text("hour,rate\n0,5\n", encoding="utf-8-sig")
    assert traffic_of(str(bad))[0].rate_per_s == 5, "as spreadsheets save it"
    with pytest.raises(UsageError, match="as in diurnal:40/5"):
        traffic_of("diurnal:5/40")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give either --rate R, the requests a second, or --traffic"),
        (("--rate", "1", "--traffic", "diurnal:2/1"), "give either --rate R"),
        (("--rate", "0"), "--rate 0: give a finite number above zero"),
        (("--rate", "1", "--attainment", "2"), "--attainment 2 is not between 0 and 1"),
        (("--rate", "1", "--duration", "5"), "--duration 5.0 needs --verify: without it nothing is measured"),
        (
            ("--traffic", "diurnal:2/1", "--verify"),
            "--verify measures one rate: give --rate 1.99572, the peak, instead",
        ),
    ],
)
def test_what_cannot_be_advised_is_said(run: loadgen.analysis.run.Run, options: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(command, [str(run.path), *options])
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_the_answer_names_the_choice_and_what_to_measure_next(run: loadgen.analysis.run.Run) -> None:
    done = CliRunner().invoke(command, [str(run.path), "--rate", "30/s", "--price", "2.5/h", "--attainment", "99%"])
    assert done.exit_code == 0, done.output
    assert "30 requests/s: " in done.output
    assert "measure up to B = 16 first" in done.output  # B = 8 still gained
    assert f"loadgen advise {run.path} --rate 30 --attainment 0.99 --price 2.5 --verify" in done.output
    one = CliRunner().invoke(command, [str(run.path), "--rate", "1"])
    assert "first" not in one.output  # there are no fewer GPUs than one
    day = CliRunner().invoke(command, [str(run.path), "--traffic", "diurnal:60/1"])
    assert "Best by the hour: 0–" in day.output


@pytest.fixture(scope="module")
def beside(run: loadgen.analysis.run.Run, tmp_path_factory: pytest.TempPathFactory) -> loadgen.analysis.run.Run:
    """Four requests in a second: E2E 60, 100, 210 and 410 ms."""
    folder = tmp_path_factory.mktemp("beside") / "run"
    made_open_run(folder, targets=("fp16", "awq"), arrival="poisson:4", repeats=1)
    return loadgen.load_run(folder)


def test_a_verification_compares_what_was_predicted_for_the_requests_that_came(
    run: loadgen.analysis.run.Run, beside: loadgen.analysis.run.Run
) -> None:
    found = verification_of(run, beside, {"fp16": 5.0, "awq": 5.0, "bnb-nf4": 5.0})
    fp16, awq, other = found.arms
    assert (fp16.rate_asked_per_s, fp16.rate_per_s, fp16.tokens_per_answer) == (5.0, 4.0, 2.0)
    assert other.refusal == "it was not measured"
    assert not found.complete
    figures = {one.figure: one for one in fp16.figures}
    assert list(figures) == ["in_flight", "e2e_s"], "power was not measured, and nothing is asked of latencies"
    assert figures["e2e_s"].measured.value == pytest.approx((60 + 100 + 210 + 410) / 4e3, abs=1e-3)
    cells = run.cells[(run.cells["target"] == "fp16") & (run.cells["concurrency"] == 1)]
    alone_s = 2 / float(cells["tokens_per_s"].mean())  # answers of two tokens
    assert figures["e2e_s"].predicted == pytest.approx(alone_s, rel=0.1)
    assert figures["in_flight"].predicted == pytest.approx(4 * figures["e2e_s"].predicted)
    assert not figures["e2e_s"].by_chance
    one = next(one for one in replicas_of(run) if isinstance(one, Replica) and one.target == "fp16")
    states = msgspec.structs.replace(one, rate_per_s=one.rate_per_s * one.tokens_per_answer / 2).states(4.0)
    error, measured = scatter(np.arange(len(states)) * 1.0, states, 4.0, 1.0), figures["in_flight"].measured
    assert measured.lo == pytest.approx(measured.value - 1.96 * error, rel=1e-3)
    assert measured.hi == pytest.approx(measured.value + 1.96 * error, rel=1e-3)
    assert awq.figures
    assert arrivals_asked(run.manifest, {"awq": 2.5, "fp16": 5.0}) == "fp16=poisson:5,awq=poisson:2.5,bnb-nf4=none"
    with pytest.raises(UsageError, match="--verify has nothing to measure: no target can be advised at this rate"):
        arrivals_asked(run.manifest, {})


def test_what_a_verification_found_is_told(
    run: loadgen.analysis.run.Run, beside: loadgen.analysis.run.Run, tmp_path: Path
) -> None:
    found = verification_of(run, beside, {"fp16": 5.0, "bnb-nf4": 5.0})
    console = Console(file=io.StringIO(), width=120)
    nothing = verification_of(
        run, loadgen.load_run(changed(beside, tmp_path, valid=False, rate_per_s=0.0)), {"awq": 0.01}
    )
    assert nothing.arms[0].refusal == "no request came in 1 s at 0.01 a second; give a longer --duration"
    print_verification(found, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"fp16 +requests/s +5.00 asked +4.00", shown)
    assert re.search(r"E2E mean, s +0\.\d+ +0\.195 +\S+ to \S+ +\+\d+\.\d%", shown)
    assert "More than chance explains: fp16 in flight (+" in shown
    assert "bnb-nf4 is not compared: it was not measured." in shown
    assert "To measure again, name another folder with --out." in shown
    assert f"Measured in {beside.path}" in shown
    fast = msgspec.structs.replace(found.arms[0], figures=())
    assert "The largest difference" not in " ".join(
        verification_sentences(Verification(path="p", arms=(fast,), changed=(), simulated=False))
    )


def changed(run: loadgen.analysis.run.Run, folder: Path, *, mode: str = "simulated", **columns: object) -> Path:
    """A copy of the run in which awq's cells have these values, and whose servers were started so."""
    copy = folder / "run"
    shutil.copytree(run.path, copy)
    cells = pd.read_csv(copy / "cells.csv")
    for column, value in columns.items():
        cells[column] = cells[column].where(cells["target"] != "awq", value)
    cells.to_csv(copy / "cells.csv", index=False)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["config"]["mode"] = mode
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_a_target_without_a_valid_cell_is_named_not_left_out(run: loadgen.analysis.run.Run, tmp_path: Path) -> None:
    advice = loadgen.advise(changed(run, tmp_path, valid=False), rate=1.0)
    assert isinstance(advice, Advice)
    assert {arm.target: arm.refusal for arm in advice.arms if arm.refusal} == {
        "awq": "none of its cells has a valid load"
    }
    day = loadgen.advise(tmp_path / "run", traffic="diurnal:2/1")
    assert isinstance(day, Day)
    assert [arm.target for arm in day.arms if arm.refusal] == ["awq"]


def test_objectives_are_never_ignored_for_want_of_valid_latencies(
    run: loadgen.analysis.run.Run, tmp_path: Path
) -> None:
    """awq's latencies count at B = 1 alone: that is then the largest batch of which its objectives are known."""
    analyse(run.path, slo=Slo.parse("ttft:1s"), out=tmp_path / "judged")
    judged = loadgen.load_run(tmp_path / "judged")
    cells = judged.cells
    valid = (cells["target"] != "awq") | (cells["concurrency"] == 1)
    cells.assign(latency_valid=cells["latency_valid"] & valid).to_csv(tmp_path / "judged" / "cells.csv", index=False)
    advice = loadgen.advise(tmp_path / "judged", rate=1.0)
    assert isinstance(advice, Advice)
    by_name = {arm.target: arm for arm in advice.arms}
    assert (by_name["awq"].largest_batch, by_name["fp16"].largest_batch) == (1, 8)
    said = "Batches of awq above 1, up to 8, do not count: their latencies are not valid"
    assert [said in sentence for sentence in sentences(advice)].count(True) == 1
    assert not any("awq (B ≤ 1)" in sentence for sentence in sentences(advice)), "they were measured"
    at = rate_table(loadgen.load_run(tmp_path / "judged"))[30]
    assert at.by_joules == loadgen.advise(tmp_path / "judged", rate=at.rate_per_s)
    none = loadgen.advise(changed(judged, tmp_path, latency_valid=False), rate=1.0)
    assert isinstance(none, Advice)
    assert "valid latencies" in str({arm.target: arm.refusal for arm in none.arms}["awq"])


def test_gpus_that_nobody_knows_cost_nothing_that_is_known(run: loadgen.analysis.run.Run, tmp_path: Path) -> None:
    """Where the GPUs of no target are known, replicas stand for them."""
    some = changed(run, tmp_path, gpus=math.nan)
    advice, all_known = loadgen.advise(some, rate=1.0, price=3.0), loadgen.advise(run.path, rate=1.0, price=3.0)
    assert isinstance(advice, Advice) and isinstance(all_known, Advice) and all_known.choice == "awq"
    awq = next(arm for arm in advice.arms if arm.target == "awq")
    assert (awq.gpus, awq.cost_per_1000, advice.choice) == (None, None, "fp16")
    assert awq.replicas == 1 and awq.kwh_per_1000
    assert "The cost of awq is not known" in " ".join(sentences(advice))
    by_joules = loadgen.advise(some, rate=1.0)
    assert isinstance(by_joules, Advice) and by_joules.choice == "awq"
    day = loadgen.advise(some, traffic="diurnal:2/1", price=3.0)
    assert isinstance(day, Day) and set(day.chosen) == {"fp16"}
    spent = {arm.target: (arm.most_gpus, arm.gpu_h, arm.cost) for arm in day.arms}
    assert spent["awq"] == (None, None, None) and None not in spent["fp16"]
    known = [msgspec.structs.replace(one, gpus=None) for one in replicas_of(run) if isinstance(one, Replica)]
    none = choose(known, Demand(rate_per_s=1.0, price_per_gpu_h=3.0))
    assert none.choice == "awq"
    assert next(sentences(none)).startswith("1 requests/s: awq (1 replica, ")
    assert "by the fewest replicas, then fewest joules" in next(sentences(none))


def test_repeats_of_servers_that_were_kept_are_said_to_lack_a_restart(
    run: loadgen.analysis.run.Run, tmp_path: Path
) -> None:
    kept = changed(run, tmp_path, mode="target")
    for options in (["--rate", "1"], ["--traffic", "diurnal:2/1"]):
        assert KEPT_SERVERS not in CliRunner().invoke(command, [str(run.path), *options]).output
        assert KEPT_SERVERS in CliRunner().invoke(command, [str(kept), *options]).output
    analyse(kept)
    assert KEPT_SERVERS in loadgen.load_run(kept).analysis.warnings
    pair = loadgen.compare(run.path, kept).pair
    assert pair is not None
    assert len(pair.kept_servers) == 1
    assert "a difference may be no more than that" in pair_note(pair)
