"""Grid: the few figures that decide, targets down and batches across, as lines of text for any width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import msgspec
import pandas as pd

from loadgen.reports.rows import Column, CsvRow, right
from loadgen.serving.metrics import UNVERIFIED
from loadgen.words import STAMP, number, percent

BETWEEN = " │ "
ALWAYS = (
    Column[CsvRow]("tok/s", lambda row: number(row["tokens_per_s"])),
    Column[CsvRow]("J/query", lambda row: number(row["energy_per_query_j"])),
    Column[CsvRow]("good/s", lambda row: number(row["goodput_per_s"])),
    Column[CsvRow]("good %", lambda row: percent(row["goodput_share"], 1, unit="")),
    Column[CsvRow]("right %", lambda row: right(row["accuracy"], row.get("questions"))),
)
IF_ROOM = (
    Column[CsvRow]("running", lambda row: number(row["running_mean"], 2)),
    Column[CsvRow]("TPOT ms", lambda row: number(row["tpot_ms_p50"], 2)),
    Column[CsvRow]("TTFT ms", lambda row: number(row["ttft_ms_p50"], 1)),
    Column[CsvRow]("W", lambda row: number(row["power_w_mean"], 0)),
)


class _Block(msgspec.Struct, frozen=True):
    """One figure at some batches: a heading, a line of batches and a line per target."""

    heading: str
    columns: tuple[tuple[str, ...], ...]

    @property
    def widths(self) -> list[int]:
        widths = [max(map(len, column)) for column in self.columns]
        return [widths[0] + max(len(self.heading) - sum(widths) - len(widths) + 1, 0), *widths[1:]]

    @property
    def width(self) -> int:
        return sum(self.widths) + len(self.widths) - 1

    def lines(self) -> list[str]:
        rows = zip(*self.columns, strict=True)
        cells = [[text.rjust(width) for text, width in zip(row, self.widths, strict=True)] for row in rows]
        return [self.heading.rjust(self.width), *map(" ".join, cells)]


def grid_lines(
    summary: pd.DataFrame, reference: str, width: int, *, simulated: bool, concurrency: str = "B"
) -> list[str]:
    """Every target's throughput, energy, goodput and accuracy at every B, the reference's running batch in the last
    line. `concurrency` is what to call B.

    A figure that was not measured anywhere is omitted; TPOT, TTFT and power are added where `width` has room for them.
    What is too wide is continued below, never cut.
    """
    batches = sorted(summary["concurrency"].unique())
    targets = list(dict.fromkeys(summary["target"]))
    names = [STAMP if simulated else "", concurrency, *targets]
    left = max(map(len, names))
    room = width - left - len(BETWEEN)
    rows = {(row["target"], row["concurrency"]): row for row in summary.to_dict("records")}

    def blocks(figure: Column[CsvRow]) -> list[_Block]:
        """One, or several where not all batches fit side by side; none of what was not measured."""
        found: list[_Block] = []
        for b in batches:
            column = (str(b), *(figure.show(rows[t, b]) if (t, b) in rows else "" for t in targets))
            wider = _Block(figure.heading, (*found[-1].columns, column)) if found else None
            if wider is not None and wider.width <= room:
                found[-1] = wider
            else:
                found.append(_Block(figure.heading, (column,)))
        return found if any(any(column[1:]) for block in found for column in block.columns) else []

    shown = [block for figure in ALWAYS for block in blocks(figure)]
    for figure in IF_ROOM:
        more = [*shown, *blocks(figure)]
        if _width(more) > room:
            break
        shown = more
    bands: list[list[_Block]] = []
    for block in shown:
        if bands and _width([*bands[-1], block]) <= room:
            bands[-1].append(block)
        else:
            bands.append([block])
    lines = [
        f"{name:<{left}}{BETWEEN}{BETWEEN.join(row)}".rstrip()
        for band in bands
        for name, row in zip(names, zip(*(block.lines() for block in band), strict=True), strict=True)
    ]
    if not any(block.heading == "running" for block in shown):
        lines += textwrap.wrap(_running(summary, reference), width)
    return lines + textwrap.wrap(_unverified(summary), width)


def _width(blocks: Sequence[_Block]) -> int:
    return sum(block.width for block in blocks) + len(BETWEEN) * (len(blocks) - 1)


def _running(summary: pd.DataFrame, reference: str) -> str:
    """The x axis of every curve: what ran where so much was asked for."""
    rows = summary[(summary["target"] == reference) & summary["running_mean"].notna()].sort_values("concurrency")
    pairs = [f"{number(mean, 2)} at {b}" for b, mean in zip(rows["concurrency"], rows["running_mean"], strict=True)]
    return f"running batch of {reference}: {', '.join(pairs)}" if pairs else ""


def _unverified(summary: pd.DataFrame) -> str:
    """The targets whose axis is the requests in flight, because their servers did not tell what ran."""
    rows = summary[summary["running_mean"].isna() & summary["tokens_per_s"].notna()]
    targets = ", ".join(dict.fromkeys(rows["target"]))
    return f"{UNVERIFIED}: {targets} by requests in flight, not by what the server ran" if targets else ""
