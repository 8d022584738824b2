"""The table of the report: a row per target x concurrency."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from loadgen.analysis.intervals import TOO_WIDE, too_wide
from loadgen.report.stamp import stamped
from loadgen.report.validity import repeats_valid

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
