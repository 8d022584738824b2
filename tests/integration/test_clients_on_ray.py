"""`--workers ray:N`: client processes on another node of a real Ray cluster, whose clock is an hour ahead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import KnownServer, known_server
from programs import package
from ray_cluster import cluster

import loadgen
from loadgen.guardian import family, signal_all
from loadgen.record.journal import CellEnd, cell_files, read_records

package("ray")
pytestmark = pytest.mark.slow
B, REQUESTS, PATIENCE_S = 8, 40, 200.0
AHEAD = ("unshare", "--time", "--monotonic", "3600", "--fork")
"""Another CLOCK_MONOTONIC, as another machine has."""
SHIFTS = not subprocess.run([*AHEAD, "true"], capture_output=True, check=False).returncode
"""Not where the kernel has no time namespaces, or this user may make none: the node then has this machine's clock."""
AHEAD_S = 3600 if SHIFTS else 0


@pytest.fixture(scope="module")
def server() -> Iterator[KnownServer]:
    with known_server(ttft_s=0.1, itl_s=0.02, tokens=20) as known:
        yield known


def sweep(server: KnownServer, address: str, out: Path, *more: str) -> subprocess.Popen[str]:
    argv = [
        *(sys.executable, "-m", "loadgen", "sweep", "--target", f"fp16={server.url}", "--dataset", "sample"),
        *("--concurrency", str(B), "--max-tokens", str(server.tokens), "--repeats", "1", "--power", "none"),
        *("--workers", "ray:2", "--out", str(out), *more),
    ]
    return subprocess.Popen(
        argv, env={**os.environ, "RAY_ADDRESS": address}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def runs(server: KnownServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[loadgen.Run, loadgen.Run, int, str]:
    """A whole run, and one whose node is killed in its window; how that ended and what it said."""
    whole, cut = tmp_path_factory.mktemp("ray") / "whole", tmp_path_factory.mktemp("ray") / "cut"
    with cluster(2, within=AHEAD if SHIFTS else ()) as (address, nodes):
        process = sweep(server, address, whole, "--requests", str(REQUESTS))
        said = process.communicate(timeout=PATIENCE_S)[0]
        assert process.returncode == 0, said
        process = sweep(server, address, cut, "--duration", "60")
        deadline = time.monotonic() + PATIENCE_S
        while not any(b'"measured"' in path.read_bytes() for path in cut.glob("journal/*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        signal_all(family(nodes[1]), signal.SIGKILL)
        said = process.communicate(timeout=PATIENCE_S)[0]
    return loadgen.load_run(whole), loadgen.load_run(cut), process.returncode, said


def last(run: loadgen.Run) -> CellEnd:
    *_, end = read_records(cell_files(run.path)[0])
    assert isinstance(end, CellEnd)
    return end


def test_their_clock_is_known_within_its_bound(runs: tuple[loadgen.Run, loadgen.Run, int, str]) -> None:
    end = last(runs[0])
    assert [node.clock.same_machine for node in end.client_nodes] == [not SHIFTS] * 2
    for node in end.client_nodes:
        assert abs(node.clock.offset_ns - AHEAD_S * 10**9) <= node.clock.bound_ns
    (cell,) = runs[0].cells.to_dict("records")
    assert cell["client_clock_bound_ms"] == max(node.clock.bound_ns for node in end.client_nodes) / 1e6


def test_they_are_one_client_on_the_clock_of_the_sweep(
    runs: tuple[loadgen.Run, loadgen.Run, int, str], server: KnownServer
) -> None:
    run = runs[0]
    (cell,) = run.cells.to_dict("records")
    assert cell["valid"], cell["reasons"]
    assert (cell["client_processes"], cell["recorded_tokens"]) == (2, cell["server_tokens"])
    assert cell["inflight_mean"] == pytest.approx(B, rel=0.05)
    asked = run.requests[run.requests["phase"] == "measured"]
    assert sorted(asked["item_id"]) == [f"sample-{n:04d}" for n in range(REQUESTS)]
    began_ns, end = run.manifest.clock_anchors[0].monotonic_ns, last(run)
    assert began_ns < run.requests["t_send_ns"].min() <= run.requests["t_end_ns"].max() < end.t_ns
    assert cell["ttft_ms_p50"] == pytest.approx(server.ttft_s * 1e3, rel=0.1)


def test_a_node_that_dies_ends_the_cell_with_a_sentence(runs: tuple[loadgen.Run, loadgen.Run, int, str]) -> None:
    _, cut, status, said = runs
    assert status != 0
    assert "client worker" in (last(cut).aborted or ""), said
