"""Text tables: a table as lines of at most the terminal's width, without columns that it has no room for."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from loadgen.reports.rows import Table

Lines = list[str]
GAP = 2
"""Spaces between columns; 1 where the lines would be too long."""


def fitting(table: Table, width: int, dispensable: Iterable[str]) -> tuple[Table, list[str]]:
    """The table without as many of the dispensable columns, the first ones first, as `width` has no room for; and the
    headings of those that are missing."""
    omitted: list[str] = []
    for heading in dispensable:
        if _width(table, 1) <= width:
            break
        if heading in table.headings:
            omitted.append(heading)
            table = table.without([table.headings.index(heading)])
    return table, omitted


def lines_of(table: Table, width: int) -> tuple[Lines, Lines]:
    """The lines of the heading, one or two, and a line per row: figures to the right, texts to the left."""
    gap = " " * (GAP if _width(table, GAP) <= width else 1)
    widths = _widths(table)
    headings = zip(*(_split(heading) for heading in table.headings), strict=True)

    def line(texts: Sequence[str]) -> str:
        placed = (
            text.rjust(wide) if kind in ("figure", "interval") else text.ljust(wide)
            for text, kind, wide in zip(texts, table.kinds, widths, strict=True)
        )
        return gap.join(placed).rstrip()

    return [text for text in map(line, headings) if text], [line(row) for row in table.rows]


def _split(heading: str) -> tuple[str, str]:
    """The two lines of a heading, the second one alone where it has one."""
    first, _, second = heading.rpartition("\n")
    return first, second


def _widths(table: Table) -> list[int]:
    return [
        max(len(text) for text in (*_split(heading), *(row[place] for row in table.rows)))
        for place, heading in enumerate(table.headings)
    ]


def _width(table: Table, gap: int) -> int:
    return sum(_widths(table)) + gap * (len(table.headings) - 1)


def wrapped(text: str, width: int, *, indent: int = 0, most: int | None = None) -> Lines:
    """Broken between words alone; of a text of more than `most` lines the end is omitted."""
    return textwrap.wrap(
        text, max(width, indent + 20), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
        max_lines=most, placeholder=" …",
    )  # fmt: skip
