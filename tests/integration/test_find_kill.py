"""A search for B* on simulated servers, killed in its first step and in the next one, and resumed.

What it finds is not asked: on a busy machine cells this short may all be invalid. tests/unit/test_find.py asks that.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kills import DEADLINE_S, journal, sweep

from loadgen.analysis.run import Run, load_run
from loadgen.measure.plan import blocks_left
from loadgen.serving.process import free_port

OPTIONS = (
    "--find", "tokens_per_s", "--range", "2:3", "--dataset", "sample", "--fixed-length", "16",
    "--duration", "0.3", "--power", "none", "--quiet",
)  # fmt: skip


@contextlib.contextmanager
def simulated(precision: str) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "simulate", "--precision", precision, "--port", str(port)],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def kill_at(process: subprocess.Popen[str], run_dir: Path, cell: str) -> None:
    """SIGKILL as soon as the journal has such a cell."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not list((run_dir / "journal").glob(cell)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, list[bytes]]]:
    """The run, and what its journal held when it was killed last; the first step has 4 cells."""
    run_dir, resume = tmp_path_factory.mktemp("find") / "run", ("--quiet", "--resume")
    with simulated("fp16") as fp16, simulated("awq") as awq:
        targets = ("--target", f"fp16={fp16}", "--target", f"awq={awq}", "--wait-ready", "30")
        kill_at(sweep(*targets, *OPTIONS, "--out", str(run_dir)), run_dir, "002-*.jsonl")
        kill_at(sweep(*resume, str(run_dir)), run_dir, "006-*.jsonl")
        held = journal(run_dir)
        last = sweep(*resume, str(run_dir))
        assert last.communicate(timeout=DEADLINE_S)[1] == ""
        assert last.returncode in (0, 1)
    return load_run(run_dir), held


def test_a_killed_search_goes_on_to_its_end(killed: tuple[Run, dict[str, list[bytes]]]) -> None:
    run, held = killed
    assert [session.session for session in run.manifest.sessions] == [1, 2, 3]
    assert blocks_left(run.path, run.manifest) == ()
    assert run.analysis.search is not None
    assert run.analysis.search.ended
    now = journal(run.path)
    assert all(now[name] == lines for name, lines in held.items() if name.endswith("-r1.jsonl"))


def test_each_cell_of_its_steps_is_there_once(killed: tuple[Run, dict[str, list[bytes]]]) -> None:
    run, _ = killed
    planned = [cell for block in run.manifest.blocks for cell in block.cells]
    wanted = sorted((cell.target, cell.concurrency, cell.repeat, cell.phase) for cell in planned)
    found = run.cells[["target", "concurrency", "repeat", "phase"]].itertuples(index=False, name=None)
    assert sorted(found) == wanted
    assert len(wanted) > 4
