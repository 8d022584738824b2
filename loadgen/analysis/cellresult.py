"""CellResult: what the analysis keeps of one cell; of a large run, cells are read by several processes at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from loadgen.analysis.celldata import read_cell
from loadgen.analysis.cells import CellSummary, grade_cell, summarize_cell
from loadgen.analysis.forked import forked, spare_processes
from loadgen.analysis.memory import server_memory
from loadgen.analysis.powerdata import PowerData, Server
from loadgen.analysis.sides import CellAnswers, cell_answers
from loadgen.analysis.tables import requests_table, server_table
from loadgen.analysis.validity import max_error_rate
from loadgen.sweep.slo import Slo
from loadgen.workload.grading import Grader

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
    damaged: int
    """Lines of the cell's journal that are left out."""


class CellReader:
    """Journals of a run, cell by cell."""

    def __init__(
        self, manifest: dict[str, Any], grader: Grader, powers: Mapping[Server, PowerData], slo: Slo | None = None
    ) -> None:
        self._manifest = manifest
        self._grader = grader
        self._powers = powers
        self._slo = slo
        self._max_error_rate = max_error_rate(manifest["config"])

    def result(self, path: Path) -> CellResult | None:
        """Of one journal file; None if it holds not even its first line."""
        data = read_cell(path)
        if data is None:
            return None
        config, block = self._manifest["config"], (data.cell.target, data.cell.repeat, data.session)
        verdicts = grade_cell(data, self._grader)
        summary = summarize_cell(
            data,
            verdicts,
            self._powers.get(block),
            graded=self._manifest["graded"],
            memory=server_memory(self._manifest, *block),
            max_error_rate=self._max_error_rate,
            fixed_length=config.get("fixed_length"),
            tdp_w=config.get("tdp_w"),
            carbon_kg_per_kwh=config.get("carbon_kg_per_kwh"),
            slo=self._slo,
        )
        return CellResult(
            summary=summary,
            answers=cell_answers(
                data,
                verdicts if summary.validity.answers_valid else [None] * len(verdicts),
                load_valid=summary.validity.valid,
            ),
            requests=requests_table(data, verdicts, self._grader.items),
            server=server_table(data),
            damaged=data.damaged,
        )

    def results(self, paths: Sequence[Path], processes: int) -> Iterator[CellResult]:
        """Of every file that holds a cell, in the order of `paths`, the same for any number of processes."""
        results = forked([partial(self.result, path) for path in paths], processes)
        return (result for result in results if result is not None)


def processes_for(paths: Sequence[Path]) -> int:
    """How many processes read these files best, on this machine."""
    return 1 if sum(path.lstat().st_size for path in paths) < LARGE_BYTES else spare_processes()
