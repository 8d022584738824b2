"""The verdict on a cell that has just ended: that of cells.csv, while the sweep goes on."""

from __future__ import annotations

from pathlib import Path

from loadgen.analysis.celldata import read_cell
from loadgen.analysis.cells import summarize_cell
from loadgen.analysis.powerdata import read_power
from loadgen.analysis.validity import max_error_rate
from loadgen.sweep.manifest import read_manifest
from loadgen.sweep.observer import CellVerdict

LARGEST_BYTES = 100_000_000
"""Of a journal that is read between two cells: about a second."""


def judge_cell(run_dir: Path, path: Path, *, largest_bytes: int = LARGEST_BYTES) -> CellVerdict:
    """What cells.csv will say of the cell whose journal is `path`; a larger one is left to the report.

    By the same rules from the same files. Power samples that come later can only move an energy that is at a limit.
    """
    size = path.stat().st_size
    if size > largest_bytes:
        return CellVerdict(valid=None, reasons=f"its journal of {size / 1e6:.0f} MB is left to the report")
    data = read_cell(path)
    if data is None:
        return CellVerdict(valid=None, reasons="its journal is empty")
    since_ns = data.window[0] if data.window else None
    manifest = read_manifest(run_dir)
    block = data.cell.target, data.cell.repeat, data.session
    power = read_power(run_dir, manifest, *block, since_ns=since_ns)
    cell = summarize_cell(
        data,
        [None] * len(data.exchanges),
        power,
        graded=manifest["graded"],
        max_error_rate=max_error_rate(manifest["config"]),
        fixed_length=manifest["config"].get("fixed_length"),
    )
    found = cell.validity
    return CellVerdict(
        valid=found.valid,
        latency_valid=found.latency_valid,
        energy_valid=found.energy_valid,
        answers_valid=found.answers_valid,
        reasons=found.sentence,
        figures=cell.columns(),
    )
