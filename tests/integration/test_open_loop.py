"""An open loop against a server of known times, and against one that cannot keep up.

The known server answers every request TTFT + (n - 1) ITL after it came, whatever the load. So requests in flight obey
Little's law with known figures: L = rate x E2E, of the whole window but for what its edges cut.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import KnownServer, known_server
from dashboard_stack import serving

import loadgen
from loadgen.serving.process import free_port

RATE = 20


@pytest.fixture(scope="module")
def known() -> Iterator[KnownServer]:
    with known_server(ttft_s=0.2, itl_s=0.02, tokens=16) as server:
        yield server


@pytest.fixture(scope="module")
def run(known: KnownServer, tmp_path_factory: pytest.TempPathFactory) -> loadgen.Run:
    return loadgen.sweep(
        targets={"fp16": known.url, "again:fp16": known.url}, arrival=f"poisson:{RATE}", slo="ttft:1s,e2e:250ms",
        dataset="sample", duration=6, max_tokens=known.tokens, repeats=1, power="none", metrics_port=None,
        out=tmp_path_factory.mktemp("open") / "run",
    )  # fmt: skip


def test_nothing_stands_against_the_server_and_the_rate_is_what_was_asked_for(run: loadgen.Run) -> None:
    """A busy machine makes a client that is late, and a cell that says so."""
    reasons = run.cells["reasons"].tolist()
    assert not [reason for reason in reasons if reason and not reason.startswith("client-bound: ")], reasons
    assert set(run.cells["arrival"]) == {"poisson:20"}
    n = run.cells["arrivals"].to_numpy()
    assert abs(n - 6 * RATE).max() < 4 * (6 * RATE) ** 0.5, "a Poisson number"
    assert (6 * run.cells["rate_per_s"] + run.cells["late"] + 1 >= n - 1e-6).all(), "only late ones miss the window"
    assert (run.cells["dropped"] == 0).all()


def test_latency_from_the_schedule_is_the_servers(run: loadgen.Run, known: KnownServer) -> None:
    """But for the client's lateness, which is in it."""
    late = run.cells["late_ms_p99"].max()
    for cell in run.cells.to_dict("records"):
        assert known.ttft_s * 1e3 <= cell["ttft_ms_p50"] < known.ttft_s * 1e3 + 5 + late
        assert known.e2e_s * 1e3 <= cell["e2e_ms_p50"] < known.e2e_s * 1e3 + 5 + late
        assert cell["tpot_ms_p50"] == pytest.approx(known.itl_s * 1e3, rel=0.05)


def test_what_is_in_flight_obeys_littles_law(run: loadgen.Run, known: KnownServer) -> None:
    """Half an answer of each of 10 in flight at either edge is cut: at most 2% of the window if 3 more than that."""
    for cell in run.cells.to_dict("records"):
        assert cell["inflight_mean"] == pytest.approx(cell["rate_per_s"] * cell["e2e_ms_mean"] / 1e3, rel=0.1)
        assert cell["running_gauge_mean"] == pytest.approx(cell["inflight_mean"], rel=0.15)
        assert cell["completed_per_s"] == pytest.approx(cell["rate_per_s"], abs=2.5)


def test_targets_of_a_repeat_see_the_same_items_at_the_same_times(run: loadgen.Run) -> None:
    opened = run.cells.set_index("target")["window_open_ns"]
    measured = run.requests[run.requests["phase"] == "measured"]
    traffic = {
        target: list(zip(rows["t_scheduled_ns"] - opened[target], rows["item_id"], strict=True))
        for target, rows in measured.sort_values("t_scheduled_ns").groupby("target")
    }
    assert traffic["fp16"] == traffic["again"]
    assert [item for _, item in traffic["fp16"]][:3] == ["sample-0000", "sample-0001", "sample-0002"]


def test_warm_up_and_cool_down_surround_the_window_and_are_not_measured(run: loadgen.Run) -> None:
    for target, rows in run.requests.groupby("target"):
        cell = run.cells.set_index("target").loc[target]
        due = {phase: part["t_scheduled_ns"] for phase, part in rows.groupby("phase")}
        assert due["warmup"].max() <= cell["window_open_ns"] < due["measured"].min()
        assert due["measured"].max() <= cell["window_close_ns"] < due["cooldown"].min()
        assert set(rows["status"]) == {"ok"}
        assert rows.loc[rows["in_window"], "phase"].unique().tolist() == ["measured"]
        assert rows["in_window"].sum() == cell["requests"] == cell["arrivals"]
    assert (run.cells["recorded_tokens"] == run.cells["server_tokens"]).all()


def test_no_answer_keeps_an_objective_below_what_the_server_can(run: loadgen.Run, known: KnownServer) -> None:
    assert known.e2e_s > 0.25
    assert (run.cells["goodput_share"] == 0).all()
    assert run.summary["goodput_per_s_lo"].isna().all()


@pytest.fixture(scope="module")
def slow() -> Iterator[str]:
    """A simulated server that runs at most 2 requests at once: of 48 tokens each some 6 a second."""
    port = free_port()
    argv = [sys.executable, "-m", "loadgen", "simulate", "--precision", "fp16", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with serving([*argv, "--max-num-seqs", "2"], f"{url}/health"):
        yield url


@pytest.mark.slow
def test_a_server_that_cannot_keep_up_is_found_out_by_its_backlog(slow: str, tmp_path: Path) -> None:
    run = loadgen.sweep(
        targets={"fp16": slow}, arrival="poisson:20", dataset="sample", duration=3, max_tokens=48, repeats=1,
        metrics_port=None, out=tmp_path / "run",
    )  # fmt: skip
    (cell,) = run.cells.to_dict("records")
    assert not cell["valid"]
    assert "the server cannot keep up with 20 requests a second: it answered" in cell["reasons"]
    assert cell["dropped"] == 0
    assert cell["waiting_mean"] > 10
    assert set(run.requests["status"]) <= {"ok", "timeout"}, "what is not answered by then is given up"
    assert run.requests["error"].dropna().str.contains("too far behind").all()
    assert run.summary["ttft_ms_p50"].isna().all(), "there is no such figure: it grows with the window"


@pytest.mark.slow
def test_with_a_low_cap_it_is_found_out_by_what_was_dropped(slow: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "loadgen", "sweep", "--target", f"fp16={slow}", "--arrival", "constant:20",
            "--concurrency", "8", "--dataset", "sample", "--max-tokens", "96", "--requests", "60", "--repeats", "1",
            "--metrics-port", str(free_port()), "--slo", "e2e:30s", "--out", str(tmp_path / "run"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    run = loadgen.load_run(tmp_path / "run")
    (cell,) = run.cells.to_dict("records")
    measured = run.requests[run.requests["phase"] == "measured"]
    dropped = measured[measured["status"] == "dropped"]
    assert len(measured) == 60 == cell["arrivals"]
    assert cell["window_s"] == pytest.approx(3.0, abs=1e-6), "60 arrivals of 20 a second"
    assert len(dropped) == cell["dropped"] > 30
    assert (
        f"{len(dropped)} of 60 arrivals were dropped, with 8 requests in flight: the server cannot keep up"
        in (cell["reasons"])
    )
    assert cell["errors"] == cell["failures"] == 0
    assert cell["requests"] == 60 - len(dropped) == cell["good"]
    assert cell["goodput_share"] == pytest.approx(1 - len(dropped) / 60)
    assert "poisson" not in done.stdout
    assert "constant:20" in done.stdout


TRACE = ((0, 40, 3), (100, 1030, 16), (100, 25, 5), (500, 60, 1), (1400, 300, 8))
"""Milliseconds, tokens of a prompt (by this server: its words) and of an answer."""


def test_a_trace_is_replayed_with_its_lengths_and_times_at_each_scale_also_when_resumed(
    known: KnownServer, tmp_path: Path
) -> None:
    file, out = tmp_path / "trace.jsonl", tmp_path / "run"
    rows = [
        {"timestamp": ms, "input_length": asked, "output_length": tokens, "hash_ids": [0, k] if asked > 512 else [k]}
        for k, (ms, asked, tokens) in enumerate(TRACE, start=1)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = {"dataset": f"trace:{file}", "rate_scale": "1,2", "power": "none", "metrics_port": None}
    run = loadgen.sweep(targets={"fp16": known.url}, repeats=1, out=out, **options)
    journal = sorted((out / "journal").glob("*.jsonl"))
    assert len(journal) == 2
    journal[1].unlink()
    run = loadgen.sweep(resume=out, trust_manifest=True)
    own = 4 / 1.4
    assert run.cells["rate_asked_per_s"].tolist() == pytest.approx([own, 2 * own], rel=1e-5)
    assert run.summary["arrival"].tolist() == run.cells["arrival"].tolist(), "a row for each rate"
    for scale, (_, requests) in zip((1, 2), run.requests.groupby("arrival"), strict=True):
        measured = requests[requests["phase"] == "measured"].sort_values("item_id")
        assert (
            measured["prompt_tokens"].tolist() == measured["prompt_tokens_asked"].tolist() == [n for _, n, _ in TRACE]
        )
        assert measured["output_tokens"].tolist() == measured["output_tokens_asked"].tolist() == [n for *_, n in TRACE]
        due_s = (measured["t_scheduled_ns"] - measured["t_scheduled_ns"].iloc[0]) / 1e9
        assert due_s.tolist() == pytest.approx([ms / 1e3 / scale for ms, *_ in TRACE], abs=1e-4)
        assert (requests["prompt_tokens"] == requests["prompt_tokens_asked"]).sum() >= 5
    assert run.cells["prompts_off"].tolist() == [0, 0]
    assert not run.manifest.graded
    assert run.summary["accuracy"].isna().all()
