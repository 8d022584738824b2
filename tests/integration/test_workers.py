"""`--workers N`: several client processes that are one client to the server, the journal and the user."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import uvloop
from conftest import KnownServer, known_server

import loadgen
from loadgen.guardian import PROC
from loadgen.load.exchange import Exchange
from loadgen.load.worker import Assignment
from loadgen.load.workers import Workers
from loadgen.record.journal import CellEnd, cell_files, read_records
from loadgen.workload.protocol import load_protocol
from loadgen.workload.questions import sample_items, warmup_items

B, N = 10, 4
REQUESTS = 43
DEADLINE_S = 180.0


@pytest.fixture(scope="module")
def server() -> Iterator[KnownServer]:
    with known_server(ttft_s=0.1, itl_s=0.02, tokens=20) as known:
        yield known


def sweep(server: KnownServer, out: Path, **options: object) -> loadgen.Run:
    return loadgen.sweep(
        targets={"fp16": server.url}, concurrency=[B], dataset="sample", max_tokens=server.tokens, repeats=1,
        power="none", out=out, metrics_port=None, **options,
    )  # fmt: skip


def measured(run: loadgen.Run) -> pd.DataFrame:
    return run.requests[run.requests["phase"] == "measured"].sort_values("t_send_ns")


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), N])
def run(request: pytest.FixtureRequest, server: KnownServer, tmp_path_factory: pytest.TempPathFactory) -> loadgen.Run:
    return sweep(server, tmp_path_factory.mktemp("workers") / "run", requests=REQUESTS, workers=request.param)


class TestAsOneProcess:
    """The same of one process and of four."""

    def test_every_item_is_asked_once(self, run: loadgen.Run) -> None:
        assert sorted(measured(run)["item_id"]) == [f"sample-{n:04d}" for n in range(REQUESTS)]

    def test_b_requests_are_in_flight(self, run: loadgen.Run) -> None:
        (cell,) = run.cells.to_dict("records")
        assert cell["valid"], cell["reasons"]
        assert cell["inflight_mean"] == pytest.approx(B, rel=0.02)
        assert cell["recorded_tokens"] == cell["server_tokens"]

    def test_no_slot_holds_two_requests_and_never_are_more_than_b_in_flight(self, run: loadgen.Run) -> None:
        assert set(run.requests["slot"]) == set(range(B))
        for _, own in run.requests.sort_values("t_send_ns").groupby("slot"):
            assert (own["t_send_ns"].to_numpy()[1:] >= own["t_end_ns"].to_numpy()[:-1]).all()

    def test_the_stagger_goes_over_all_of_b(self, run: loadgen.Run, server: KnownServer) -> None:
        warmups = run.requests[run.requests["phase"] == "warmup"].sort_values("t_send_ns")
        first = warmups.groupby("slot")["output_tokens"].first()
        assert list(first) == [server.tokens * (slot + 1) // B for slot in range(B)]

    def test_the_window_opens_when_every_slot_is_on_a_measured_item(self, run: loadgen.Run) -> None:
        first = measured(run).groupby("slot")["t_first_ns"].min()
        assert (first <= run.cells["window_open_ns"].iloc[0]).all()

    def test_the_window_closes_when_the_first_slot_finds_no_item(self, run: loadgen.Run) -> None:
        last_end = run.requests.groupby("slot")["t_end_ns"].max()
        closed = run.cells["window_close_ns"].iloc[0]
        assert closed == pytest.approx(last_end.min(), abs=50e6)
        assert closed >= last_end.min()


def test_each_process_asks_its_share_in_the_items_order(run: loadgen.Run) -> None:
    asked = measured(run)
    of = int(run.manifest.config.workers or 0)
    for first in range(of):
        own = asked[asked["slot"] % of == first]
        assert list(own["item_id"]) == [f"sample-{n:04d}" for n in range(first, REQUESTS, of)]


def test_the_client_says_how_many_processes_it_had(run: loadgen.Run) -> None:
    *_, end = read_records(cell_files(run.path)[0])
    assert isinstance(end, CellEnd)
    assert end.client_processes == run.manifest.config.workers
    assert end.client_cpu_s is not None
    assert end.client_cpu_share is not None
    assert 0 < end.client_cpu_share <= end.client_cpu_s / run.cells["window_s"].iloc[0] * 1.2


@pytest.mark.slow
def test_more_workers_than_slots_are_as_many_as_slots(server: KnownServer, tmp_path: Path) -> None:
    run = loadgen.sweep(
        targets={"fp16": server.url}, concurrency=[2], dataset="sample", max_tokens=4, requests=8, repeats=1,
        power="none", out=tmp_path / "run", workers=5, metrics_port=None,
    )  # fmt: skip
    *_, end = read_records(cell_files(run.path)[0])
    assert isinstance(end, CellEnd)
    assert end.client_processes == 2


@pytest.mark.slow
def test_the_sdk_transport_works_in_workers_too(server: KnownServer, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    run = sweep(server, tmp_path / "run", requests=REQUESTS, workers=2, transport="openai", api="chat")
    assert sorted(measured(run)["item_id"]) == [f"sample-{n:04d}" for n in range(REQUESTS)]
    assert set(run.requests["status"]) == {"ok"}


@contextmanager
def begun(run_dir: Path, server: KnownServer) -> Iterator[subprocess.Popen[str]]:
    """A sweep with two workers on its way, from the command line; it would last a minute."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "loadgen", "sweep", "--target", f"fp16={server.url}", "--concurrency", str(B),
            "--dataset", "sample", "--max-tokens", str(server.tokens), "--duration", "60", "--repeats", "1",
            "--workers", "2", "--power", "none", "--quiet", "--out", str(run_dir),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        wait_until(lambda: answered(run_dir) >= 2 * B, process)
        yield process
    finally:
        process.kill()
        process.wait()


def answered(run_dir: Path) -> int:
    return sum(isinstance(record, Exchange) for file in cell_files(run_dir) for record in read_records(file))


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not get so far"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = (PROC / str(process.pid) / "task").glob("*/children")
    ids = [int(child) for file in children for child in file.read_text().split()]
    return [child for child in ids if "loadgen.load.worker" in (PROC / str(child) / "cmdline").read_text()]


def is_running(pid: int) -> bool:
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class TestEnds:
    @pytest.mark.parametrize(
        ("number", "given_up"),
        [(signal.SIGINT, []), pytest.param(signal.SIGTERM, list(range(B)), marks=pytest.mark.slow)],
    )
    def test_what_is_in_flight_is_finished_on_ctrl_c_and_given_up_on_sigterm(
        self, server: KnownServer, tmp_path: Path, number: signal.Signals, given_up: list[int]
    ) -> None:
        with begun(tmp_path / "run", server) as process:
            workers = workers_of(process)
            assert len(workers) == 2
            process.send_signal(number)
            _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        *records, end = read_records(cell_files(tmp_path / "run")[0])
        assert isinstance(end, CellEnd)
        assert end.aborted == "interrupted"
        ended = [record for record in records if isinstance(record, Exchange)]
        assert sorted(e.slot for e in ended if e.status == "broken") == given_up
        assert {e.slot for e in ended if e.status == "ok"} == set(range(B))
        assert not any(map(is_running, workers))

    def test_a_worker_that_dies_ends_the_cell_with_a_sentence(self, server: KnownServer, tmp_path: Path) -> None:
        with begun(tmp_path / "run", server) as process:
            first, second = workers_of(process)
            os.kill(first, signal.SIGKILL)
            _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 1, err
        run = loadgen.load_run(tmp_path / "run")
        (cell,) = run.cells.to_dict("records")
        assert not cell["valid"]
        assert "client worker 1 of 2 ended with signal SIGKILL" in cell["reasons"]
        assert not is_running(second)

    def test_workers_do_not_outlive_a_parent_that_is_killed(self, server: KnownServer, tmp_path: Path) -> None:
        with begun(tmp_path / "run", server) as process:
            workers = workers_of(process)
            journalled = answered(tmp_path / "run")
            process.kill()
            process.communicate(timeout=DEADLINE_S)
        wait_until(lambda: not any(map(is_running, workers)))
        assert answered(tmp_path / "run") >= journalled, "what had come back is kept"


def test_a_parent_that_is_held_up_disturbs_no_stamp(server: KnownServer) -> None:
    """The parent's event loop stands still for five answers' time; tokens are stamped at their pace meanwhile."""
    held_s = 5 * server.e2e_s
    ended: list[Exchange] = []

    async def drive() -> tuple[int, int]:
        assignment = Assignment(
            url=server.url, model="known-timing", api_key=None, transport="raw", timeout_s=60.0,
            protocol=load_protocol("sample", shots_file=None), seed=0, max_tokens=server.tokens, fixed_length=None,
            thinking=None, items=tuple(sample_items()), warmup_items=tuple(warmup_items()), concurrency=2,
            requests=None,
        )  # fmt: skip
        load = Workers(assignment, 2, ended.append)
        await load.prepare()
        load.start()
        await asyncio.sleep(0.2)
        held_ns = time.monotonic_ns()
        time.sleep(held_s)  # noqa: ASYNC251
        freed_ns = time.monotonic_ns()
        await asyncio.sleep(0.2)
        load.stop_feeding()
        await load.drained()
        await load.close()
        assert load.failure is None
        return held_ns, freed_ns

    held_ns, freed_ns = uvloop.run(drive())
    stamped = sorted(t for e in ended for t, _ in e.token_times if held_ns < t < freed_ns)
    expected = 2 * held_s / server.e2e_s * server.tokens
    assert len(stamped) > 0.7 * expected
    assert {e.status for e in ended} == {"ok"}
    assert sum(held_ns < e.t_end_ns < freed_ns for e in ended) >= 6, "slots were refilled, too"


def test_the_manifest_has_what_was_asked(run: loadgen.Run) -> None:
    config = json.loads((run.path / "manifest.json").read_bytes())["config"]
    assert config["workers"] in (1, N)
