"""`--requests N`: N items, each asked once in every cell, and a window that B fills to its end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import KnownServer, known_server

import loadgen

N, B = 30, 4


@pytest.fixture(scope="module")
def server() -> Iterator[KnownServer]:
    with known_server(ttft_s=0.05, itl_s=0.02, tokens=20) as known:
        yield known


@pytest.fixture(scope="module")
def run(server: KnownServer, tmp_path_factory: pytest.TempPathFactory) -> loadgen.Run:
    out = tmp_path_factory.mktemp("requests") / "run"
    done = subprocess.run(
        [
            sys.executable, "-m", "loadgen", "sweep", "--target", f"fp16={server.url}", "--concurrency", f"1,{B}",
            "--dataset", "sample", "--repeats", "1", "--requests", str(N), "--out", str(out),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return loadgen.load_run(out)


@pytest.mark.slow
def test_every_item_is_asked_once_and_in_the_same_order(run: loadgen.Run) -> None:
    asked = run.requests[run.requests["phase"] == "measured"]
    orders = {b: list(cell.sort_values("t_send_ns")["item_id"]) for b, cell in asked.groupby("concurrency", sort=False)}
    assert orders[1] == [f"sample-{n:04d}" for n in range(N)]
    assert sorted(orders[B]) == orders[1]
    assert list(run.cells["answers"]) == [N, N]


@pytest.mark.slow
def test_the_window_ends_before_the_first_slot_runs_dry(run: loadgen.Run, server: KnownServer) -> None:
    for cell in run.cells.to_dict("records"):
        b = cell["concurrency"]
        assert cell["valid"], cell["reasons"]
        assert cell["inflight_mean"] == pytest.approx(b, rel=0.02)
        # all but the slots' ragged ends: at most an answer of every slot at either edge
        expected_s = N * server.e2e_s / b
        assert expected_s - 2 * server.e2e_s < cell["window_s"] < expected_s + server.e2e_s


def test_fewer_requests_than_fill_the_slots_are_refused(server: KnownServer, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "loadgen", "sweep", "--target", f"fp16={server.url}", "--concurrency", "4",
            "--requests", "7", "--out", str(tmp_path / "run"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--requests 7: B = 4 needs at least 8" in done.stderr
