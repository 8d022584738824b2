"""CellResult: what the analysis keeps of one cell; of a large run, cells are read by several processes at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from loadgen.analysis.celldata import read_cell
from loadgen.analysis.cells import CellSummary, grade_cell, summarize_cell
from loadgen.analysis.memory import server_memory
from loadgen.analysis.powerdata import PowerData, read_power
from loadgen.analysis.sides import CellAnswers, cell_answers
from loadgen.analysis.tables import requests_table, server_table
from loadgen.workload.grading import Grader

MOST_PROCESSES = 4
LARGE_BYTES = 100_000_000
"""Of all journals: smaller runs are read before a second process would be of use."""


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a cell that goes into the run's files."""

    summary: CellSummary
    answers: CellAnswers
    requests: pa.Table
    """Rows of requests.parquet."""
    server: pa.Table
    """Rows of server.parquet."""


class CellReader:
    """Journals of a run, cell by cell."""

    def __init__(self, run_dir: Path, manifest: dict[str, Any], grader: Grader) -> None:
        self._run_dir = run_dir
        self._manifest = manifest
        self._grader = grader
        self.power = lru_cache(maxsize=1)(self._power)

    def result(self, path: Path) -> CellResult | None:
        """Of one journal file; None if it holds not even its first line."""
        data = read_cell(path)
        if data is None:
            return None
        config, block = self._manifest["config"], (data.cell.target, data.cell.repeat)
        verdicts = grade_cell(data, self._grader)
        return CellResult(
            summary=summarize_cell(
                data,
                verdicts,
                self.power(*block),
                memory=server_memory(self._manifest, *block),
                tdp_w=config.get("tdp_w"),
                carbon_kg_per_kwh=config.get("carbon_kg_per_kwh"),
            ),
            answers=cell_answers(data, verdicts),
            requests=requests_table(data, verdicts, self._grader.items),
            server=server_table(data),
        )

    def results(self, paths: Sequence[Path], *, processes: int | None = None) -> Iterator[CellResult]:
        """Of every file that holds a cell, in the order of `paths`, the same for any number of processes."""
        if processes is None:
            processes = processes_for(paths)
        results = map(self.result, paths) if processes == 1 else self._by_processes(paths, processes)
        return (result for result in results if result is not None)

    def _power(self, target: str, repeat: int) -> PowerData | None:
        return read_power(self._run_dir, self._manifest, target, repeat)

    def _by_processes(self, paths: Sequence[Path], processes: int) -> Iterator[CellResult | None]:
        """A process is at most two cells ahead: results that wait are memory."""
        forked = multiprocessing.get_context("fork")
        waiting: deque[Future[CellResult | None]] = deque()
        with ProcessPoolExecutor(processes, mp_context=forked, initializer=_begin, initargs=(self,)) as pool:
            for path in paths:
                waiting.append(pool.submit(_result, path))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def processes_for(paths: Sequence[Path]) -> int:
    """How many processes read these files best, on this machine. Beside other threads only this one: it cannot fork."""
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    if sum(path.stat().st_size for path in paths) < LARGE_BYTES:
        return 1
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


_reader: CellReader
"""Of a forked process."""


def _begin(reader: CellReader) -> None:
    global _reader
    _reader = reader


def _result(path: Path) -> CellResult | None:
    return _reader.result(path)
