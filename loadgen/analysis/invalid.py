"""Invalid: a quantity of a cell whose figures may not be believed.

The verdict on a cell that has just ended: that of cells.csv, while the sweep goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from loadgen.analysis.celldata import read_cell
from loadgen.analysis.cells import CellSummary, summarize_cell
from loadgen.analysis.powerdata import read_power
from loadgen.analysis.validity import Quantity, max_error_rate, sentence_of
from loadgen.record.cell import CellVerdict, level
from loadgen.record.manifest import read_manifest


class Invalid(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of analysis.json's `invalid`."""

    target: str
    concurrency: int
    repeat: int
    quantity: Quantity
    """`load`: latency and energy are invalid for the same reason, and have no entry of their own."""
    reasons: str
    """Those that no entry before it has of the same cell."""


def invalid_of(cells: Iterable[CellSummary]) -> list[Invalid]:
    """Of all cells, in their order."""
    return [
        Invalid(target=c.target, concurrency=c.concurrency, repeat=c.repeat, quantity=quantity, reasons=reasons)
        for c in cells
        for quantity, reasons in c.validity.told
    ]


def invalid_sentences(found: Sequence[Invalid], arrival: str | None) -> list[str]:
    """One per cell, or per all cells that are invalid for the very same reasons. `arrival`: that of an open loop."""
    cells: dict[tuple[str, int, int], list[tuple[str, str]]] = {}
    for one in found:
        cells.setdefault((one.target, one.concurrency, one.repeat), []).append((one.quantity, one.reasons))
    alike: dict[str, list[tuple[str, int, int]]] = {}
    for cell, told in cells.items():
        alike.setdefault(sentence_of(told), []).append(cell)
    return [f"{_named(where, arrival)}: {sentence}" for sentence, where in alike.items()]


def _named(cells: Sequence[tuple[str, int, int]], arrival: str | None) -> str:
    target, concurrency, repeat = cells[0]
    more = len(cells) - 1
    return f"{target}, {level(concurrency, arrival)}, repeat {repeat}" + (
        f" and {more} more cell{'s' * (more > 1)}" if more else ""
    )


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
