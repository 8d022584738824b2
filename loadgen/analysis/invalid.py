"""Invalid: a quantity of a cell whose figures may not be believed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from loadgen.analysis.cells import CellSummary
from loadgen.analysis.quantity import Quantity
from loadgen.analysis.validity import sentence_of
from loadgen.sweep.plan import level


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
