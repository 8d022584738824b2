"""The table of the report: a row per target x concurrency."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from loadgen.report.stamp import stamped
from loadgen.report.validity import repeats_valid

HEADINGS = (
    "B", "target", "running", "tok/s", "95% CI", "× ref", "TTFT ms", "TTFT p99", "TPOT ms", "E2E ms",
    "W", "J/token", "J/query", "95% CI", "right %", "95% CI", "n", "cut off %", "unparsed %",
    "guessed %", "stopped %", "valid",
)  # fmt: skip


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
                _interval(row["tokens_per_s_lo"], row["tokens_per_s_hi"], 1.0, 0),
                number(1 / (1 + row["cor"]), 2),
                number(row["ttft_ms_p50"], 1),
                number(row["ttft_ms_p99"], 1),
                number(row["tpot_ms_p50"], 2),
                number(row["e2e_ms_p50"], 0),
                number(row["power_w_mean"], 0),
                figure(row["energy_per_token_j"]),
                figure(row["energy_per_query_j"]),
                _interval(row["energy_per_query_j_lo"], row["energy_per_query_j_hi"], 1.0, 1),
                number(100 * row["accuracy"], 1),
                _interval(row["accuracy_lo"], row["accuracy_hi"], 100.0, 1),
                number(row["questions"], 0),
                *(number(100 * row[f"{kind}_rate"], 1) for kind in ("truncated", "unparsed", "guessed", "stopped")),
                repeats_valid(row.to_dict()),
            )
        )
    return rows


def number(value: Any, digits: int) -> str:
    """With thousands separators; empty for what was not measured."""
    return "" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def figure(value: float) -> str:
    """Three significant digits; empty for what was not measured."""
    return "" if math.isnan(value) else f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def _interval(low: float, high: float, factor: float, digits: int) -> str:
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{factor * low:,.{digits}f}–{factor * high:,.{digits}f}"
