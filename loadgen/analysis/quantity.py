"""Which verdict a figure goes by: the quantities of `Validity` that it is made of."""

from __future__ import annotations

from typing import Literal

Quantity = Literal["load", "latency", "energy", "answers"]

QUANTITIES: tuple[Quantity, ...] = ("load", "latency", "energy", "answers")
"""In the order of reports."""
COLUMNS: dict[Quantity, str] = {
    "load": "valid",
    "latency": "latency_valid",
    "energy": "energy_valid",
    "answers": "answers_valid",
}
"""Where cells.csv has the verdict on each; summary.csv counts the valid cells under the same names."""
REASONS: dict[Quantity, str] = {
    "load": "reasons",
    "latency": "latency_reasons",
    "energy": "energy_reasons",
    "answers": "answers_reasons",
}
"""Where it has the reasons."""
_LATENCIES = ("ttft_", "itl_", "icl_", "tpot_", "e2e_", "good")
_JOULES = ("energy_", "power_w", "tokens_per_j", "carbon_")
_BOUNDS = ("energy_hli_",)
"""Board power times time: no sensor takes part."""
_ANSWERS = ("accuracy", "truncated_", "unparsed_", "t_si")
_MADE_OF: dict[str, tuple[Quantity, ...]] = {
    "energy_per_good_query_j": ("latency", "energy"),
    "energy_per_correct_j": ("energy", "answers"),
    "si": ("energy", "answers"),
}


def quantities_of(figure: str) -> tuple[Quantity, ...]:
    """What has to be valid for a figure to be believed; `figure` as cells.csv, summary.csv or a crossover names it.

    Whatever is none of the others needs a valid load: throughput, the batch, lengths, memory. Latency and energy are
    not valid without it.
    """
    if figure in _MADE_OF:
        return _MADE_OF[figure]
    if figure.startswith(_BOUNDS):
        return ("load",)
    if figure.startswith(_JOULES):
        return ("energy",)
    if figure.startswith(_LATENCIES):
        return ("latency",)
    return ("answers",) if figure.startswith(_ANSWERS) else ("load",)
