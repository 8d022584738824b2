"""A real Ray cluster of two raylets on this machine: a node, later the head are killed; nothing is counted twice.

2 models x 3 precisions x 2 GPUs x 2 repeats of simulated servers; the GPUs are made resources.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import package
from ray_cluster import cluster

import loadgen
from loadgen.guardian import family, process_stat, started
from loadgen.record.grid import GridRecord, grid_runs, read_grid, read_receipt

package("ray")
pytestmark = pytest.mark.slow

STUDY = """
models = ["simulated/qwen3-0.6b", "simulated/mistral-7b"]
precisions = ["fp16", "awq", "gptq"]
gpus = 2
repeats = 2
[sweep]
concurrency = "1"
duration = "0.5s"
limit = 8
workers = 1
"""
PATIENCE_S = 500.0


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.3)


def begin(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "loadgen", "grid", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def states(folder: Path) -> dict[str, list[str]]:
    return {task: [one.state for one in attempts] for task, attempts in record(folder).attempts.items()}


def record(folder: Path) -> GridRecord:
    return read_grid(folder)


def done(folder: Path) -> set[str]:
    return (
        {task for task, tries in states(folder).items() if "done" in tries}
        if (folder / "grid.json").exists()
        else set()
    )


def raylet_of(node: int) -> int:
    return next(pid for pid in family(node) if (process_stat(pid) or [""])[0] == "raylet")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("grid")
    study, out = folder / "study.toml", folder / "out"
    study.write_text(STUDY)
    told: dict[str, object] = {"out": out}
    with cluster(2) as (address, nodes):
        process = begin(str(study), "--ray-address", address, "--out", str(out))
        try:
            until(lambda: len(sweeps()) >= 2, "two tasks run")
            running = sweeps()
            os.kill(raylet_of(nodes[1]), signal.SIGKILL)  # that one alone: its sweep must notice
            until(lambda: any("lost" in tries for tries in states(out).values()), "a task is lost with its node")
            until(lambda: sum(started(pid) is not None for pid in running) < 2, "its sweep has ended")
            until(lambda: len(done(out)) >= 1, "a task is done")
        finally:
            process.kill()
            told["first"] = process.communicate()[0]
        told["before"] = {task: receipt(out, task) for task in done(out)}
    with cluster(1, "--num-gpus=2") as (address, _):
        process = begin("--resume", str(out), "--ray-address", address)
        told["second"] = process.communicate(timeout=PATIENCE_S)[0]
        told["status"] = process.returncode
    return told


def receipt(folder: Path, task: str) -> bytes:
    return (folder / "runs" / task / "task.json").read_bytes()


def sweeps() -> list[int]:
    """The processes of tasks on this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"loadgen.cluster.node" in words:
                found.append(int(folder.name))
    return found


def test_every_task_is_done_exactly_once_on_the_nodes_that_were_left(grid: dict[str, object]) -> None:
    out = grid["out"]
    assert isinstance(out, Path)
    told = f"{grid['first']}\n{grid['second']}"
    found = record(out)
    assert len(found.tasks) == 4, told
    for task in found.tasks:
        tries = [one.state for one in found.attempts[task.id]]
        assert tries.count("done") == 1 and tries[-1] == "done", told
        assert {"failed", "running"}.isdisjoint(tries), told
    assert any("lost" in [one.state for one in tries] for tries in found.attempts.values())
    assert "it is tried again" in str(grid["first"])


def test_what_was_done_before_the_head_was_killed_is_kept(grid: dict[str, object]) -> None:
    out, before = grid["out"], grid["before"]
    assert isinstance(out, Path) and isinstance(before, dict)
    assert before and all(receipt(out, task) == content for task, content in before.items())


def test_the_comparison_has_every_cell_once(grid: dict[str, object]) -> None:
    """2 models x 3 precisions at one B, each with 2 GPUs x 2 repeats."""
    out = grid["out"]
    assert isinstance(out, Path) and (out / "compare.html").exists(), grid["second"]
    comparison = loadgen.compare(out)
    assert [(row.run, row.target, row.repeats) for row in comparison.rows] == [
        (model, target, 4) for model in ("qwen3-0.6b", "mistral-7b") for target in ("fp16", "awq", "gptq")
    ]
    for model in ("qwen3-0.6b", "mistral-7b"):
        requests = loadgen.load_run(out / "pooled" / model).requests
        key = ["target", "repeat", "slot", "t_send_ns"]
        assert not requests.duplicated(key).any()
    places = {name: receipt.place for name, path in grid_runs(out).items() if (receipt := read_receipt(path))}
    assert len(places) == 4 and all(place.gpus for place in places.values())
