"""Grid: the few figures that decide, targets down and batches across, as lines of text for any width.

The table of the report: a row per target x concurrency.

How many cells are valid, by quantity, in words.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
import pandas as pd

from loadgen.analysis.intervals import TOO_WIDE, too_wide
from loadgen.analysis.validity import COLUMNS
from loadgen.reports.words import STAMP, stamped
from loadgen.serving.metrics import UNVERIFIED

CellRow = Mapping[Any, Any]


def cells_valid(cells: pd.DataFrame, of: int | None = None) -> str:
    """ "48 of 48 cells valid, energy valid in 46": the load's, and each quantity's that differs from it.

    `cells`: as `Run.cells`; `of`: out of so many cells instead of all that were measured.
    """
    counts = {quantity: _count(cells[column]) for quantity, column in COLUMNS.items()}
    load = counts.pop("load")
    others = [f"{quantity} valid in {count}" for quantity, count in counts.items() if count not in (None, load)]
    return ", ".join([f"{load} of {len(cells) if of is None else of} cells valid", *others])


def repeats_valid(row: CellRow) -> str:
    """ "3/3", or "3/3, energy 2/3": the repeats with a valid load, and those of each quantity that differ from it.

    `row`: of summary.csv or compare.csv.
    """
    load, repeats = int(row["valid"]), int(row["repeats"])
    counts = {quantity: row[column] for quantity, column in COLUMNS.items()}
    others = [f"{quantity} {n:.0f}/{repeats}" for quantity, n in counts.items() if not pd.isna(n) and n != load]
    return ", ".join([f"{load}/{repeats}", *others])


def cell_valid(cell: CellRow) -> str:
    """ "yes", "no", or "except energy": of a row of cells.csv."""
    if not cell["valid"]:
        return "no"
    bad = [quantity for quantity, column in COLUMNS.items() if cell[column] == False]  # noqa: E712
    return f"except {', '.join(bad)}" if bad else "yes"


def _count(verdicts: pd.Series[Any]) -> int | None:
    """None where the quantity was measured in no cell."""
    return None if verdicts.isna().all() else int((verdicts == True).sum())  # noqa: E712


HEADINGS = (
    "B", "target", "running", "tok/s", "95% CI", "× ref", "TTFT ms", "TTFT p99", "TPOT ms", "E2E ms",
    "W", "J/token", "J/query", "95% CI", "right %", "95% CI", "n", "cut off %", "unparsed %",
    "guessed %", "stopped %", "valid",
)  # fmt: skip

NOT_KNOWN = "not known"
"""Instead of an interval over repeats that is too wide to tell anything."""
WHY_NOT_KNOWN = f"Not known: the repeats differ too much, the interval's ends by more than a factor of {TOO_WIDE:g}."

FEW_QUESTIONS = 30
"""An accuracy of fewer is shown as a count: one answer more or less would move a percentage by over 3 points."""


def shown_columns(rows: list[tuple[str, ...]]) -> list[int]:
    """Places of the columns that hold anything at all."""
    return [place for place in range(len(HEADINGS)) if any(row[place] for row in rows)]


def table_rows(summary: pd.DataFrame) -> list[tuple[str, ...]]:
    """One tuple per target x concurrency, ordered by concurrency; what was not measured is an empty string.

    `× ref`, tokens/s over the reference's, is 1 / (1 + COR): over the repeats of both, where both ran the same B.
    """
    rows: list[tuple[str, ...]] = []
    for _, row in summary.sort_values("concurrency", kind="stable").iterrows():
        rows.append(
            (
                str(row["concurrency"]),
                stamped(str(row["target"]), simulated=row["simulated"]),
                number(row["running_mean"], 2) or ("not verified" if row["valid"] else ""),
                number(row["tokens_per_s"], 0 if row["tokens_per_s"] >= 100 else 1),
                interval(row["tokens_per_s_lo"], row["tokens_per_s_hi"], 0),
                number(1 / (1 + row["cor"]), 2),
                number(row["ttft_ms_p50"], 1),
                number(row["ttft_ms_p99"], 1),
                number(row["tpot_ms_p50"], 2),
                number(row["e2e_ms_p50"], 0),
                number(row["power_w_mean"], 0),
                figure(row["energy_per_token_j"]),
                figure(row["energy_per_query_j"]),
                interval(row["energy_per_query_j_lo"], row["energy_per_query_j_hi"], 1),
                right(row["accuracy"], row["questions"]),
                _over_items(row["accuracy_lo"], row["accuracy_hi"]),
                number(row["questions"], 0),
                *(number(100 * row[f"{kind}_rate"], 1) for kind in ("truncated", "unparsed", "guessed", "stopped")),
                repeats_valid(row.to_dict()),
            )
        )
    return rows


def number(value: Any, digits: int) -> str:
    """With thousands separators; empty for what was not measured."""
    return "" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def right(accuracy: float | None, questions: float | None) -> str:
    """Percent of the questions, or, of fewer than `FEW_QUESTIONS`, as 2/3; empty for what was not measured."""
    if accuracy is None or math.isnan(accuracy):
        return ""
    if questions is None or math.isnan(questions) or questions >= FEW_QUESTIONS:
        return number(100 * accuracy, 1)
    return f"{accuracy * questions:.3g}/{questions:.0f}"


def figure(value: float) -> str:
    """Three significant digits; empty for what was not measured."""
    return "" if math.isnan(value) else f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def interval(low: float | None, high: float | None, digits: int, *, floor: float = 0.0, between: str = "–") -> str:
    """Over repeats, of a figure above `floor`; empty without both ends."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    if too_wide(low, high, floor=floor):
        return NOT_KNOWN
    return f"{low:,.{digits}f}{between}{high:,.{digits}f}"


def _over_items(low: float, high: float) -> str:
    """In percent."""
    return "" if math.isnan(low) or math.isnan(high) else f"{100 * low:.1f}–{100 * high:.1f}"


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
