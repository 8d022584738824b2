"""What the client did to the figures, as rows: per figure the cell that came closest to its limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loadgen.report.stamp import stamped

CLIENT = ("figure", "at its worst", "limit there", "target", "B", "repeat", "")
NOTE = (
    "Of all cells, the one closest to each limit; above it the client is what was measured, and the cell is invalid. "
    "Every cell's figures are in cells.csv."
)


def _share(value: float) -> str:
    return f"{100 * value:.0f}%"


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


_FIGURES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "client_cpu_share": ("CPU of the busiest client process, of a core", _share),
    "loop_lag_ms_p50": ("event loop late, median", _ms),
    "refill_gap_ms_mean": ("gap between two requests of a slot, mean", _ms),
    "ttft_excess_ms": ("TTFT above the server's own histogram, mean", _ms),
}


def client_rows(checks: Sequence[Mapping[str, Any]], *, simulated: bool) -> list[tuple[str, ...]]:
    """A row per entry of analysis.json's `client`."""
    rows: list[tuple[str, ...]] = []
    for check in checks:
        words, shown = _FIGURES[check["figure"]]
        rows.append(
            (
                words,
                shown(check["value"]),
                shown(check["limit"]),
                stamped(check["target"], simulated=simulated),
                str(check["concurrency"]),
                str(check["repeat"]),
                "client-bound" if check["failed"] else "",
            )
        )
    return rows
