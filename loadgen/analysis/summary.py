"""SummaryRow: one row of summary.csv, a target at one concurrency over its repeats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from loadgen.analysis.cells import CellSummary
from loadgen.analysis.energy import CellEnergy

CONFIDENCE = 0.95

DIAGNOSTICS = ("window_s", "inflight_mean", "running_mean")
AVERAGED = (
    "ttft_ms_mean", "ttft_ms_p50", "ttft_ms_p90", "ttft_ms_p99", "itl_ms_mean", "itl_ms_p50", "itl_ms_p99",
    "tpot_ms_mean", "tpot_ms_p50", "tpot_ms_p99", "e2e_ms_mean", "e2e_ms_p50", "e2e_ms_p99",
    "output_tokens_mean", "truncated_rate", "unparsed_rate", "memory_needed_bytes",
)  # fmt: skip
ENERGY = (
    "energy_j", "power_w_mean", "energy_per_token_j", "energy_per_query_j", "energy_hli_per_query_j",
    "tokens_per_j", "energy_net_j", "energy_per_query_completions_j", "carbon_g_per_query", "memory_peak_bytes",
)  # fmt: skip
NOT_YET_MEASURED = ("energy_per_correct_j", "cor", "t_si", "e_si", "s_si", "si")
COLUMNS = (
    "target", "precision", "concurrency", "repeats", "valid", "requests", "errors", "window_s", "output_tokens",
    "tokens_per_s", "tokens_per_s_lo", "tokens_per_s_hi", "inflight_mean", "running_mean",
    *AVERAGED[:13],
    "energy_j", "power_w_mean", "energy_per_token_j", "energy_per_token_j_lo", "energy_per_token_j_hi",
    "energy_per_query_j", "energy_per_query_j_lo", "energy_per_query_j_hi", "energy_hli_per_query_j",
    NOT_YET_MEASURED[0],
    "output_tokens_mean", "accuracy", "accuracy_lo", "accuracy_hi", "truncated_rate", "unparsed_rate",
    *NOT_YET_MEASURED[1:],
    *ENERGY[5:],
    "memory_needed_bytes",
    "simulated",
)  # fmt: skip

Row = dict[str, str | int | float | bool | None]

def summarize(cells: Sequence[CellSummary], scores: Mapping[tuple[str, int], Mapping[str, float]]) -> list[Row]:
    """Rows in the order of first appearance, with the columns of `COLUMNS`.

    `repeats` counts the cells, `valid` the valid ones. Rates, latencies and lengths are means over the valid cells'
    own figures (so a p99 is the mean of the repeats' p99s) and empty if no cell is valid; counts are sums over the
    same cells; window, in-flight and running batch are shown of invalid cells too, as a diagnosis.
    `scores` maps (target, concurrency) to each item's share of correct answers.
    """
    groups: dict[tuple[str, int], list[CellSummary]] = {}
    for cell in cells:
        groups.setdefault((cell.target, cell.concurrency), []).append(cell)
    order = {target: place for place, target in enumerate(dict.fromkeys(cell.target for cell in cells))}
    keys = sorted(groups, key=lambda key: (order[key[0]], key[1]))
    return [_row(groups[key], scores.get(key, {})) for key in keys]


def _row(cells: Sequence[CellSummary], scores: Mapping[str, float]) -> Row:
    valid = [cell for cell in cells if cell.valid]
    counted = valid or cells
    row: Row = dict.fromkeys(COLUMNS)
    row |= {
        "target": cells[0].target,
        "precision": cells[0].precision,
        "concurrency": cells[0].concurrency,
        "repeats": len(cells),
        "valid": len(valid),
        "requests": sum(cell.requests for cell in counted),
        "errors": sum(cell.errors for cell in counted),
        "simulated": any(cell.simulated for cell in cells),
    }
    for column in DIAGNOSTICS:
        row[column] = _mean(counted, column)
    for column in AVERAGED:
        row[column] = _mean(valid, column)
    energies = [cell.energy for cell in valid]
    for column in ENERGY:
        row[column] = _mean(energies, column)
    row["energy_per_token_j_lo"], row["energy_per_token_j_hi"] = _energy_interval(energies)
    row["energy_per_query_j_lo"], row["energy_per_query_j_hi"] = rate_interval(
        [e.energy_per_query_j for e in energies if e.energy_per_query_j is not None]
    )
    tokens = [cell.output_tokens for cell in valid if cell.output_tokens is not None]
    row["output_tokens"] = sum(tokens) if tokens else None
    rates = [cell.tokens_per_s for cell in valid if cell.tokens_per_s is not None]
    row["tokens_per_s"] = float(np.mean(rates)) if rates else None
    row["tokens_per_s_lo"], row["tokens_per_s_hi"] = rate_interval(rates)
    if valid and scores:
        row["accuracy"] = float(np.mean(list(scores.values())))
        row["accuracy_lo"], row["accuracy_hi"] = wilson_interval(sum(scores.values()), len(scores))
    return row


def _energy_interval(energies: Sequence[CellEnergy]) -> tuple[float | None, float | None]:
    """Over repeats; of a single repeat the block bootstrap inside its window."""
    known = [e for e in energies if e.energy_per_token_j is not None]
    if len(known) == 1:
        return known[0].energy_per_token_j_lo, known[0].energy_per_token_j_hi
    return rate_interval([e.energy_per_token_j for e in known if e.energy_per_token_j is not None])


def _mean(cells: Sequence[CellSummary | CellEnergy], column: str) -> float | None:
    values = [value for cell in cells if (value := getattr(cell, column)) is not None]
    return float(np.mean(values)) if values else None


def rate_interval(rates: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's 95% interval over independent repeats, taken on the logarithms; empty with fewer than two.

    Rates are positive and their repeats differ by factors (clocks, heat, other load), so that ratios of rates get
    their interval in the same way.
    """
    if len(rates) < 2:
        return None, None
    logs = np.log(rates)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(rates) - 1) * np.std(logs, ddof=1) / math.sqrt(len(rates)))
    return float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half))


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion (Wilson 1927); `n` counts items, not answers to the same item."""
    z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
