"""Grid: the few figures that decide, targets down and batches across, as lines of text for any width."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
import pandas as pd

from loadgen.report.stamp import STAMP
from loadgen.report.table import figure, number, right
from loadgen.serving.metrics import UNVERIFIED

GAP = 1
BETWEEN = " │ "


Row = Mapping[Hashable, Any]
"""Of summary.csv."""


class Measure(msgspec.Struct, frozen=True):
    """A figure of a row and how it is shown."""

    heading: str
    show: Callable[[Row], str]


ALWAYS = (
    Measure("tok/s", lambda row: number(row["tokens_per_s"], 0 if row["tokens_per_s"] >= 100 else 1)),
    Measure("J/query", lambda row: figure(row["energy_per_query_j"])),
    Measure("good/s", lambda row: number(row["goodput_per_s"], 2)),
    Measure("good %", lambda row: number(100 * row["goodput_share"], 1)),
    Measure("right %", lambda row: right(row["accuracy"], row.get("questions"))),
)
IF_ROOM = (
    Measure("TPOT ms", lambda row: number(row["tpot_ms_p50"], 2)),
    Measure("TTFT ms", lambda row: number(row["ttft_ms_p50"], 1)),
    Measure("W", lambda row: number(row["power_w_mean"], 0)),
)
RUNNING = Measure("running", lambda row: number(row["running_mean"], 2))


class _Block(msgspec.Struct, frozen=True):
    """One measure at some batches: a heading, a line of batches and a line per target."""

    heading: str
    columns: tuple[tuple[str, ...], ...]

    @property
    def widths(self) -> list[int]:
        widths = [max(map(len, column)) for column in self.columns]
        short = len(self.heading) - sum(widths) - GAP * (len(widths) - 1)
        return [widths[0] + max(short, 0), *widths[1:]]

    @property
    def width(self) -> int:
        return sum(self.widths) + GAP * (len(self.widths) - 1)

    def lines(self) -> list[str]:
        rows = zip(*self.columns, strict=True)
        cells = [[text.rjust(width) for text, width in zip(row, self.widths, strict=True)] for row in rows]
        return [self.heading.rjust(self.width), *((" " * GAP).join(row) for row in cells)]


def grid_lines(
    summary: pd.DataFrame, reference: str, width: int, *, simulated: bool, concurrency: str = "B"
) -> list[str]:
    """Every target's throughput, energy, goodput and accuracy at every B, the reference's running batch in the last
    line. `concurrency` is what to call B.

    What was not measured anywhere is left out; TPOT, TTFT and power stand beside where `width` has room for them. What
    is too wide is continued below, never cut.
    """
    batches = sorted(summary["concurrency"].unique())
    targets = list(dict.fromkeys(summary["target"]))
    names = [STAMP if simulated else "", concurrency, *targets]
    left = max(map(len, names))
    room = width - left - len(BETWEEN)

    def blocks(measure: Measure) -> list[_Block]:
        columns = [_column(summary, measure, int(b), targets) for b in batches]
        if not any(any(column[1:]) for column in columns):
            return []
        return _fitting(measure.heading, columns, room)

    shown = [block for measure in ALWAYS for block in blocks(measure)]
    for measure in (RUNNING, *IF_ROOM):
        more = [*shown, *blocks(measure)]
        if _together(more) > room:
            break
        shown = more
    lines: list[str] = []
    for band in _bands(shown, room):
        parts = [block.lines() for block in band]
        lines += [
            f"{name:<{left}}{BETWEEN}{BETWEEN.join(row)}".rstrip()
            for name, row in zip(names, zip(*parts, strict=True), strict=True)
        ]
    if not any(block.heading == RUNNING.heading for block in shown):
        lines += textwrap.wrap(_running(summary, reference), width)
    return lines + textwrap.wrap(_unverified(summary), width)


def _column(summary: pd.DataFrame, measure: Measure, b: int, targets: Sequence[str]) -> tuple[str, ...]:
    rows = {row["target"]: row for row in summary[summary["concurrency"] == b].to_dict("records")}
    return (str(b), *(measure.show(rows[target]) if target in rows else "" for target in targets))


def _fitting(heading: str, columns: Sequence[tuple[str, ...]], room: int) -> list[_Block]:
    """One block, or several where not all batches fit side by side."""
    blocks: list[_Block] = []
    left = iter(columns)
    while chunk := tuple(islice(left, 1)):
        for column in left:
            if _Block(heading, (*chunk, column)).width > room:
                left = iter((column, *left))
                break
            chunk = (*chunk, column)
        blocks.append(_Block(heading, chunk))
    return blocks


def _bands(blocks: Sequence[_Block], room: int) -> list[list[_Block]]:
    bands: list[list[_Block]] = []
    for block in blocks:
        if bands and _together([*bands[-1], block]) <= room:
            bands[-1].append(block)
        else:
            bands.append([block])
    return bands


def _together(blocks: Sequence[_Block]) -> int:
    return sum(block.width for block in blocks) + len(BETWEEN) * (len(blocks) - 1)


def _running(summary: pd.DataFrame, reference: str) -> str:
    """The x axis of every curve: what ran where so much was asked for."""
    rows = summary[(summary["target"] == reference) & summary["running_mean"].notna()].sort_values("concurrency")
    pairs = [f"{mean:.2f} at {b}" for b, mean in zip(rows["concurrency"], rows["running_mean"], strict=True)]
    return f"running batch of {reference}: {', '.join(pairs)}" if pairs else ""


def _unverified(summary: pd.DataFrame) -> str:
    """Whose axis is the requests in flight, because its server did not tell what ran."""
    rows = summary[summary["running_mean"].isna() & summary["tokens_per_s"].notna()]
    targets = ", ".join(dict.fromkeys(rows["target"]))
    return f"{UNVERIFIED}: {targets} by requests in flight, not by what the server ran" if targets else ""
