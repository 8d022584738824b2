"""Drive: a cell of a sweep against the server of known timing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns

import uvloop

from loadgen.analysis.celldata import read_cell
from loadgen.errors import ServerError
from loadgen.secret import without_secrets
from loadgen.selftest.server import MODEL
from loadgen.selftest.trial import Trial, trial_of
from loadgen.serving.metrics import MetricsSource
from loadgen.serving.process import exit_words
from loadgen.sweep.assignment import Assignment
from loadgen.sweep.cell import CellRun, CellSettings
from loadgen.sweep.interrupt import Interrupt
from loadgen.sweep.journal import CellEnd, CellStart, Journal
from loadgen.sweep.observer import Observer
from loadgen.sweep.plan import Cell
from loadgen.sweep.workers import load_of
from loadgen.workload.grading import Grader
from loadgen.workload.protocol import load_protocol
from loadgen.workload.sample import sample_items, warmup_items

FIRST_MS = 20.0
"""The server's TTFT."""
ANSWER_S = 0.4
"""About how long an answer lasts: long enough to stream, short enough that slots are refilled in a short window."""
FEWEST_TOKENS, MOST_TOKENS = 4, 400
WINDOW_ANSWERS = 1.5
"""Least length of a window, in answers."""
TIMEOUT_S = 60.0


def run_trial(
    concurrency: int, tokens_per_s: float, *, workers: int = 1, transport: str = "raw", window_s: float = 1.0
) -> Trial:
    """One cell of a sweep, `window_s` long at least, against a server of this very timing on this machine.

    Raises ServerError when no figure came of it.
    """
    itl_ms = 1e3 * concurrency / tokens_per_s
    tokens = min(max(round(1e3 * ANSWER_S / itl_ms), FEWEST_TOKENS), MOST_TOKENS)
    window_s = max(window_s, WINDOW_ANSWERS * (FIRST_MS + tokens * itl_ms) / 1e3)
    with tempfile.TemporaryDirectory(prefix="loadgen-selftest-") as folder, _server(itl_ms) as url:
        path = Path(folder) / "cell.jsonl"
        cell = Cell(index=1, target=MODEL, precision="none", concurrency=concurrency, repeat=1)
        assignment = Assignment(
            url=url, model=MODEL, api_key=None, transport=transport, timeout_s=TIMEOUT_S,
            protocol=load_protocol("sample", shots_file=None), seed=0, max_tokens=tokens, fixed_length=None,
            thinking=None, items=tuple(sample_items()), warmup_items=tuple(warmup_items()), concurrency=concurrency,
            requests=None,
        )  # fmt: skip
        journal = Journal(path)
        try:
            journal.append(CellStart(cell=cell, t_ns=monotonic_ns(), simulated=False))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                end = runner.run(_run(cell, assignment, workers, journal, window_s))
        finally:
            journal.close()
        data = read_cell(path)
    if data is None or data.window is None or end.aborted is not None:
        raise ServerError(f"the selftest's cell ended early: {end.aborted or 'it never got warm'}")
    return trial_of(data, transport, tokens_per_s, itl_ms, tokens)


async def _run(cell: Cell, assignment: Assignment, workers: int, journal: Journal, window_s: float) -> CellEnd:
    run = CellRun(
        cell,
        settings=CellSettings(duration_s=window_s, requests=None, warmup_s=0.0),
        metrics=MetricsSource(target_url=assignment.url),
        make_load=lambda on_exchange: load_of(assignment, workers, on_exchange),
        journal=journal,
        observer=Observer(),
        server_died=lambda: None,
        grader=Grader({}, "sample"),
        power=None,
        interrupt=Interrupt(),
    )
    return await run.run()


@contextlib.contextmanager
def _server(itl_ms: float) -> Iterator[str]:
    """Its address; it ends with this block, or with this process."""
    argv = [sys.executable, "-m", "loadgen.selftest.server", "--first-ms", str(FIRST_MS), "--tick-ms", str(itl_ms)]
    pipe, env = subprocess.PIPE, without_secrets(os.environ)
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            if not port:
                raise ServerError(f"the selftest's server ended with {exit_words(process.wait())}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
