"""What an open loop offered and what came of it, and goodput, as rows and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from loadgen.analysis.run import Run
from loadgen.report.stamp import stamped
from loadgen.report.table import figure, interval, number
from loadgen.report.validity import cell_valid, repeats_valid

Row = tuple[str, ...]
TRAFFIC = (
    "target", "repeat", "arrivals", "asked /s", "sent /s", "answered /s", "late", "late p99 ms", "dropped",
    "in flight", "TTFT ms", "TTFT p99", "E2E ms", "E2E p99", "valid",
)  # fmt: skip
GOODPUT = ("B", "target", "good /s", "95% CI", "good %", "J/good query", "valid")


def traffic_rows(run: Run) -> list[Row]:
    """A row per cell of an open loop; none of a closed one."""
    if run.arrival is None:
        return []
    return [
        (
            stamped(str(cell["target"]), simulated=cell["simulated"]),
            str(cell["repeat"]),
            number(cell["arrivals"], 0),
            f"{cell['rate_asked_per_s']:.4g}",
            number(cell["rate_per_s"], 2),
            number(cell["completed_per_s"], 2),
            number(cell["late"], 0),
            number(cell["late_ms_p99"], 2),
            number(cell["dropped"], 0),
            number(cell["inflight_mean"], 1),
            number(cell["ttft_ms_p50"], 1),
            number(cell["ttft_ms_p99"], 1),
            number(cell["e2e_ms_p50"], 0),
            number(cell["e2e_ms_p99"], 0),
            cell_valid(cell),
        )
        for cell in run.cells.to_dict("records")
    ]


def goodput_rows(run: Run) -> list[Row]:
    """A row per target x concurrency; none without service level objectives."""
    rows = run.summary.sort_values("concurrency", kind="stable") if run.analysis["slo"] else run.summary[:0]
    return [
        (
            str(row["concurrency"]),
            stamped(str(row["target"]), simulated=row["simulated"]),
            number(row["goodput_per_s"], 2),
            interval(row["goodput_per_s_lo"], row["goodput_per_s_hi"], 2),
            number(100 * row["goodput_share"], 1),
            figure(row["energy_per_good_query_j"]),
            repeats_valid(row),
        )
        for row in rows.to_dict("records")
    ]


def traffic_sentences(run: Run) -> dict[str, str]:
    """Target -> what became of an open loop's requests, without a full stop; none of a closed loop."""
    if run.arrival is None:
        return {}
    rows = run.summary.to_dict("records")
    return {str(row["target"]): _sentence(row, run.analysis["slo"]) for row in rows}


def _sentence(row: Mapping[Any, Any], slo: str | None) -> str:
    if pd.isna(row["rate_per_s"]):
        return "nothing was measured"
    parts = [f"{row['rate_per_s']:.4g} requests a second sent, {row['completed_per_s']:.4g} answered"]
    if row["dropped"]:
        parts.append(f"{row['dropped']:.0f} dropped")
    if row["latency_valid"]:
        parts.append(f"TTFT {_pair(row, 'ttft')} ms and E2E {_pair(row, 'e2e')} ms (p50 / p99) from when they were due")
        if slo is not None and pd.notna(row["goodput_share"]):
            parts.append(f"{100 * row['goodput_share']:.1f}% within {slo}: {row['goodput_per_s']:.4g} a second")
    elif row["valid"]:
        parts.append("no repeat has valid latencies")
    else:
        parts.append("no repeat is valid")
    if pd.notna(row["energy_per_query_j"]):
        parts.append(f"{figure(row['energy_per_query_j'])} J a query")
    return "; ".join(parts)


def _pair(row: Mapping[Any, Any], latency: str) -> str:
    shown: Sequence[str] = [number(row[f"{latency}_ms_{name}"], 0) for name in ("p50", "p99")]
    return " / ".join(shown)
