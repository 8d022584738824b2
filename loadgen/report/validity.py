"""How many cells are valid, by quantity, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from loadgen.analysis.quantity import COLUMNS

Row = Mapping[Any, Any]


def cells_valid(cells: pd.DataFrame, of: int | None = None) -> str:
    """ "48 of 48 cells valid, energy valid in 46": the load's, and each quantity's that differs from it.

    `cells`: as `Run.cells`; `of`: out of so many cells instead of all that were measured.
    """
    counts = {quantity: _count(cells[column]) for quantity, column in COLUMNS.items()}
    load = counts.pop("load")
    others = [f"{quantity} valid in {count}" for quantity, count in counts.items() if count not in (None, load)]
    return ", ".join([f"{load} of {len(cells) if of is None else of} cells valid", *others])


def repeats_valid(row: Row) -> str:
    """ "3/3", or "3/3, energy 2/3": the repeats with a valid load, and those of each quantity that differ from it.

    `row`: of summary.csv or compare.csv.
    """
    load, repeats = int(row["valid"]), int(row["repeats"])
    counts = {quantity: row[column] for quantity, column in COLUMNS.items()}
    others = [f"{quantity} {n:.0f}/{repeats}" for quantity, n in counts.items() if not pd.isna(n) and n != load]
    return ", ".join([f"{load}/{repeats}", *others])


def cell_valid(cell: Row) -> str:
    """ "yes", "no", or "except energy": of a row of cells.csv."""
    if not cell["valid"]:
        return "no"
    bad = [quantity for quantity, column in COLUMNS.items() if cell[column] == False]  # noqa: E712
    return f"except {', '.join(bad)}" if bad else "yes"


def _count(verdicts: pd.Series[Any]) -> int | None:
    """None where the quantity was measured in no cell."""
    return None if verdicts.isna().all() else int((verdicts == True).sum())  # noqa: E712
