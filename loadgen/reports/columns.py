"""Column: what a table shows of each of its entries. Table: the columns filled, for a terminal or a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Literal, TypeVar

import msgspec

Kind = Literal["figure", "interval", "name", "short", "text"]
"""Figures are aligned to the right; `interval` belongs to the column before it; `name` heads its row; `short` is text
that stays on one line."""
INTERVAL: Kind = "interval"
NAME: Kind = "name"
SHORT: Kind = "short"
TEXT: Kind = "text"
Row = tuple[str, ...]
Entry = TypeVar("Entry")


class Column(msgspec.Struct, Generic[Entry], frozen=True):
    """`show`: the entry's text in this column, empty for what was not measured."""

    heading: str
    show: Callable[[Entry], str]
    kind: Kind = "figure"


class Table(msgspec.Struct, frozen=True):
    """A heading and a kind per column; rows of as many texts."""

    headings: tuple[str, ...]
    kinds: tuple[Kind, ...]
    rows: list[Row]

    @property
    def filled(self) -> Table:
        """The table without the columns that are empty in all rows."""
        return self.without(place for place in range(len(self.headings)) if not any(row[place] for row in self.rows))

    def without(self, places: Iterable[int]) -> Table:
        """The table without the columns at these places."""
        kept = sorted({*range(len(self.headings))} - {*places})
        rows = [tuple(row[place] for place in kept) for row in self.rows]
        return Table(tuple(self.headings[place] for place in kept), tuple(self.kinds[place] for place in kept), rows)


def table_of(columns: Sequence[Column[Entry]], entries: Iterable[Entry]) -> Table:
    """A row per entry."""
    return Table(
        tuple(column.heading for column in columns),
        tuple(column.kind for column in columns),
        [tuple(column.show(entry) for column in columns) for entry in entries],
    )
