"""Whoever reads the output may go before its end (`| head`): that is no error to tell of."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fault_server import FaultServer

import loadgen

LOADGEN = ["-m", "loadgen"]
MADE = (
    "import sys, click, loadgen.cli as cli; cli.group = click.Command('made', callback=lambda: {}); "
    "sys.argv = ['made']; cli.main()"
)


def ended(arguments: Sequence[str], *broken: str) -> tuple[int, str]:
    """Exit status of Python, some streams of which nobody reads, and what came on the others."""
    reading, writing = os.pipe()
    os.close(reading)
    streams = {name: writing if name in broken else subprocess.PIPE for name in ("stdout", "stderr")}
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, *arguments], **streams, text=True, check=False, timeout=60, env=buffered)
    os.close(writing)
    return done.returncode, (done.stdout or "") + (done.stderr or "")


@pytest.mark.parametrize("arguments", [
    [*LOADGEN, "--help"],
    [*LOADGEN, "sweep", "--dry-run"],
    ["-c", MADE.format("print('left to the end')")],
])  # fmt: skip
def test_output_that_nobody_reads_ends_the_command_without_a_word(arguments: list[str]) -> None:
    assert ended(arguments, "stdout") == (1, "")
    assert ended(arguments, "stdout", "stderr") == (1, "")


@pytest.mark.slow
def test_a_mistake_keeps_its_status_where_nobody_reads_the_sentence() -> None:
    assert ended([*LOADGEN, "report", "nowhere"], "stderr") == (2, "")
    assert ended([*LOADGEN, "report", "nowhere"], "stdout", "stderr") == (2, "")


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as one:
        yield one


@pytest.mark.parametrize("closed", [False, True])
def test_a_closed_pipe_ends_no_measurement(server: FaultServer, tmp_path: Path, closed: bool) -> None:
    """`loadgen sweep 2>&1 | head -1`, whose reader goes; and `loadgen sweep >&- 2>&-`, where there never was one."""
    run = tmp_path / "run"
    sweep = [
        *LOADGEN, "sweep", "--target", f"fp16={server.url}/ok", "--concurrency", "1", "--dataset", "sample",
        "--duration", "0.5", "--repeats", "1", "--power", "none", "--out", str(run),
    ]  # fmt: skip
    if closed:
        shell = f"exec {shlex.join([sys.executable, *sweep])} >&- 2>&-"
        status = subprocess.run(["sh", "-c", shell], check=False, timeout=60).returncode
    else:
        status, _ = ended(sweep, "stdout", "stderr")
    opened = loadgen.load_run(run)
    assert status == (0 if opened.complete else 1)
    assert len(opened.cells) == 1
    assert (run / "report.html").stat().st_size > 0
