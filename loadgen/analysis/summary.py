"""SummaryRow: one row of summary.csv, a target at one concurrency over its repeats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.cells import CellSummary
from loadgen.analysis.energy import CellEnergy
from loadgen.analysis.forked import forked
from loadgen.analysis.indices.study import IndexStudy
from loadgen.analysis.indices.target import TargetIndices
from loadgen.analysis.intervals import rate_interval, wilson_interval
from loadgen.analysis.traffic import Goodput, Traffic
from loadgen.analysis.trust.accuracy import CorrectEnergy, correct_energy
from loadgen.analysis.trust.answers import Answers, item_means, outcome_rate
from loadgen.analysis.trust.hidden import guessed_rate, stopped_rate
from loadgen.analysis.trust.study import TrustStudy, TrustTest

DIAGNOSTICS = ("window_s", "inflight_mean", "running_mean")
TRAFFIC = ("rate_asked_per_s", "rate_per_s", "completed_per_s", "late_ms_p99")
COUNTED = ("arrivals", "late", "dropped")
AVERAGED = (
    "ttft_ms_mean", "ttft_ms_p50", "ttft_ms_p90", "ttft_ms_p99", "itl_ms_mean", "itl_ms_p50", "itl_ms_p99",
    "tpot_ms_mean", "tpot_ms_p50", "tpot_ms_p99", "e2e_ms_mean", "e2e_ms_p50", "e2e_ms_p99",
    "output_tokens_mean", "memory_needed_bytes", "cache_hit_share",
)  # fmt: skip
ENERGY = (
    "energy_j", "power_w_mean", "energy_per_token_j", "energy_per_query_j", "energy_hli_per_query_j",
    "tokens_per_j", "energy_net_j", "energy_per_query_completions_j", "carbon_g_per_query", "memory_peak_bytes",
)  # fmt: skip
GOODPUT = ("goodput_per_s", "goodput_share", "energy_per_good_query_j")
COLUMNS = (
    "target", "precision", "concurrency", "repeats", "valid", "latency_valid", "energy_valid", "answers_valid",
    "requests", "errors", "window_s", "output_tokens",
    "tokens_per_s", "tokens_per_s_lo", "tokens_per_s_hi", "inflight_mean", "running_mean", "running_source",
    *AVERAGED[:13],
    "energy_j", "power_w_mean", "energy_per_token_j", "energy_per_token_j_lo", "energy_per_token_j_hi",
    "energy_per_query_j", "energy_per_query_j_lo", "energy_per_query_j_hi", "energy_hli_per_query_j",
    "energy_per_correct_j", "energy_per_correct_j_lo", "energy_per_correct_j_hi",
    "output_tokens_mean", "accuracy", "accuracy_lo", "accuracy_hi", "questions", "truncated_rate", "unparsed_rate",
    "guessed_rate", "stopped_rate", "cor", "t_si", "t_si_lo", "t_si_hi", "e_si", "s_si", "si",
    *ENERGY[5:],
    "memory_needed_bytes", "cache_hit_share",
    "arrival", "rate_asked_per_s", "arrivals", "rate_per_s", "completed_per_s", "late", "late_ms_p99", "dropped",
    "good", "goodput_per_s", "goodput_per_s_lo", "goodput_per_s_hi", "goodput_share", "energy_per_good_query_j",
    "simulated",
)  # fmt: skip

Row = dict[str, str | int | float | bool | None]
Part = CellSummary | Traffic | Goodput | CellEnergy
"""Whose columns are averaged or summed."""


def summarize(
    cells: Sequence[CellSummary],
    answers: Mapping[tuple[str, int], Answers],
    trust: TrustStudy,
    indices: IndexStudy,
    processes: int = 1,
) -> list[Row]:
    """Rows in the order of first appearance, with the columns of `COLUMNS`.

    `repeats` counts the cells, `valid` those whose load is valid, `latency_valid` and so on those of the other
    quantities. A figure is the mean over the cells in which its quantity is valid (`quantities_of`; so a p99 is the
    mean of the repeats' p99s), and empty if there is none; counts are sums over cells with a valid load. Window,
    in-flight, running batch and an open loop's traffic are shown of invalid cells too, as a diagnosis.
    `answers` maps (target, concurrency) to the graded answers that stand (valid ones), whether or not the cells'
    rates and joules do.
    """
    groups: dict[tuple[str, int], list[CellSummary]] = {}
    for cell in cells:
        groups.setdefault((cell.target, cell.concurrency), []).append(cell)
    order = {target: place for place, target in enumerate(dict.fromkeys(cell.target for cell in cells))}
    keys = sorted(groups, key=lambda key: (order[key[0]], key[1]))
    tasks = [partial(_row, groups[key], answers.get(key, {}), trust.of(*key), indices.of(*key)) for key in keys]
    return list(forked(tasks, processes))


def _row(cells: Sequence[CellSummary], answers: Answers, test: TrustTest | None, indices: TargetIndices | None) -> Row:
    valid = [cell for cell in cells if cell.validity.valid]
    counted = valid or cells
    row: Row = dict.fromkeys(COLUMNS)
    row |= {
        "target": cells[0].target,
        "precision": cells[0].precision,
        "concurrency": cells[0].concurrency,
        "repeats": len(cells),
        "valid": len(valid),
        "latency_valid": _count([cell.validity.latency_valid for cell in cells]),
        "energy_valid": _count([cell.validity.energy_valid for cell in cells]),
        "answers_valid": _count([cell.validity.answers_valid for cell in cells]),
        "requests": sum(cell.requests for cell in counted),
        "errors": sum(cell.errors for cell in counted),
        "simulated": any(cell.simulated for cell in cells),
    }
    row["running_source"] = ", ".join(sorted({cell.running_source for cell in counted}))
    for column in DIAGNOSTICS:
        row[column] = _mean(counted, column)
    for column in (*AVERAGED, *ENERGY, *GOODPUT):
        row[column] = _mean_of([cell.figure(column) for cell in cells])
    traffics = [cell.traffic for cell in counted]
    goodputs = [cell.goodput for cell in cells if cell.validity.latency_valid]
    row["arrival"] = traffics[0].arrival
    for column in TRAFFIC:
        row[column] = _mean(traffics, column)
    for column in COUNTED:
        row[column] = _sum(traffics, column)
    row["good"] = _sum(goodputs, "good")
    row["goodput_per_s_lo"], row["goodput_per_s_hi"] = _goodput_interval(goodputs)
    energies = [cell.energy for cell in cells if cell.validity.energy_valid]
    row["energy_per_token_j_lo"], row["energy_per_token_j_hi"] = rate_interval(
        [e.energy_per_token_j for e in energies if e.energy_per_token_j is not None]
    )
    row["energy_per_query_j_lo"], row["energy_per_query_j_hi"] = rate_interval(
        [e.energy_per_query_j for e in energies if e.energy_per_query_j is not None]
    )
    tokens = [cell.output_tokens for cell in valid if cell.output_tokens is not None]
    row["output_tokens"] = sum(tokens) if tokens else None
    rates = [cell.tokens_per_s for cell in valid if cell.tokens_per_s is not None]
    row["tokens_per_s"] = float(np.mean(rates)) if rates else None
    row["tokens_per_s_lo"], row["tokens_per_s_hi"] = rate_interval(rates)
    scores = np.array(list(item_means(answers).values()))
    if scores.size:
        row["accuracy"] = float(scores.mean())
        row["accuracy_lo"], row["accuracy_hi"] = wilson_interval(float(scores.sum()), scores.size)
        row["questions"] = int(scores.size)
        row["guessed_rate"], row["stopped_rate"] = guessed_rate(answers), stopped_rate(answers)
        row["truncated_rate"] = outcome_rate(answers, "truncated")
        row["unparsed_rate"] = outcome_rate(answers, "unparsed")
        correct = _energy_per_correct(energies, scores)
        row["energy_per_correct_j"] = correct.value_j
        row["energy_per_correct_j_lo"], row["energy_per_correct_j_hi"] = correct.lo_j, correct.hi_j
    if test is not None:
        row["t_si"], row["t_si_lo"], row["t_si_hi"] = test.t_si, test.t_si_lo, test.t_si_hi
    if indices is not None:
        shown = {"cor": indices.cor_tps, "e_si": indices.e_si.value, "s_si": indices.s_si, "si": indices.si}
        row |= {column: estimate.value for column, estimate in shown.items() if estimate is not None}
    return row


def _energy_per_correct(energies: Sequence[CellEnergy], scores: Floats) -> CorrectEnergy:
    """Energy per query over accuracy; its error over repeats: a single one has no interval."""
    known = [e for e in energies if e.energy_per_query_j]
    joules = [e.energy_per_query_j for e in known if e.energy_per_query_j is not None]
    if not joules:
        return CorrectEnergy(value_j=None, lo_j=None, hi_j=None)
    if len(joules) > 1:
        error = float(np.std(np.log(joules), ddof=1)) / math.sqrt(len(joules))
        return correct_energy(float(np.mean(joules)), scores, relative_error=error, degrees=len(joules) - 1)
    return correct_energy(joules[0], scores)


def _goodput_interval(goodputs: Sequence[Goodput]) -> tuple[float | None, float | None]:
    """None where a repeat had no good request: an interval on logarithms knows no zero."""
    rates = [found.goodput_per_s for found in goodputs if found.goodput_per_s is not None]
    return rate_interval(rates) if all(rates) else (None, None)


def _count(verdicts: Sequence[bool | None]) -> int | None:
    """Of the valid ones; None where no cell has a verdict."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return sum(known) if known else None


def _mean(parts: Sequence[Part], column: str) -> float | None:
    return _mean_of([getattr(part, column) for part in parts])


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _sum(parts: Sequence[Part], column: str) -> int | None:
    values = [value for part in parts if (value := getattr(part, column)) is not None]
    return sum(values) if values else None
