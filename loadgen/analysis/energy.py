"""Energy of a cell: the joules of its window, per token and per query, and what stands against them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from loadgen.analysis.bootstrap import ratio_interval
from loadgen.analysis.celldata import CellData, Floats, Ints
from loadgen.analysis.powerdata import PowerData
from loadgen.power.energy import WindowEnergy, energy_of_window
from loadgen.power.owners import Uses, uses_in
from loadgen.power.trace import PowerTrace

BIN_S = 1.0
FEWEST_BINS = 12
_AT_ONCE = 1 << 15
"""Tokens."""


class CellEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy columns of cells.csv; None: not measured. Sums over the target's GPUs."""

    energy_j: float | None = None
    """Gross energy of the window."""
    energy_reservations: str | None = None
    """What leaves the energy valid and is worth knowing: its edges, a source without a second one to check it."""
    energy_source: str | None = None
    energy_counter_j: float | None = None
    energy_integral_j: float | None = None
    energy_ratio: float | None = None
    power_w_mean: float | None = None
    energy_net_j: float | None = None
    """Gross energy less the power at rest (model loaded, nothing asked) times the window."""
    energy_per_token_j: float | None = None
    energy_per_token_j_lo: float | None = None
    energy_per_token_j_hi: float | None = None
    energy_per_query_j: float | None = None
    """Energy per token times the mean tokens of the answers: no bias from answers cut by the window's edges."""
    energy_per_query_completions_j: float | None = None
    """Energy over the answers completed in the window: a check on the figure above."""
    tokens_per_j: float | None = None
    hli_power_w: float | None = None
    energy_hli_per_query_j: float | None = None
    """Board power times time: an upper bound, not a measurement."""
    carbon_g_per_query: float | None = None
    memory_peak_bytes: int | None = None
    memory_headroom_bytes: int | None = None
    """GPU memory less its peak use; what a server reserves for its KV cache counts as used."""


class EnergyFindings(msgspec.Struct, frozen=True, kw_only=True):
    """What the power samples of a cell's window say against its figures, a sentence each."""

    lost: tuple[str, ...] = ()
    """A GPU is gone."""
    slowed: tuple[str, ...] = ()
    """Heat or the supply lowered a GPU's clocks."""
    energy: tuple[str, ...] | None = None
    """Against the energy alone; None: it was not measured."""
    reservations: tuple[str, ...] = ()


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What the joules were spent on, from the same window."""

    window_s: float
    tokens: int | None
    requests: int
    tokens_per_query: float | None
    e2e_s: float | None


def energy_of_cell(
    data: CellData, power: PowerData | None, work: Work, *, tdp_w: float | None, carbon_kg_per_kwh: float | None
) -> tuple[CellEnergy, EnergyFindings]:
    """The cell's energy columns, and what stands against them. `tdp_w` is the datasheet's board power; without it
    NVML's default limit bounds."""
    window = data.window
    if window is None:
        return CellEnergy(), EnergyFindings(energy=None if power is None else ())
    bound_w = tdp_w if tdp_w is not None else power.limit_default_w if power else None
    seconds_per_query = None
    if work.tokens_per_query and work.tokens:
        seconds_per_query = work.window_s * work.tokens_per_query / work.tokens
    bound = CellEnergy(
        hli_power_w=bound_w,
        energy_hli_per_query_j=bound_w * seconds_per_query if bound_w and seconds_per_query else None,
    )
    if power is None:
        return bound, EnergyFindings()
    around = power.around(*window)
    parts = [
        energy_of_window(
            trace, *window, limit_w=power.limits_w.get(trace.gpu), scope=power.scopes.get(trace.gpu, "gpu")
        )
        for trace in around
    ]
    energy_j = _sum([part.energy_j for part in parts])
    per_token_j = energy_j / work.tokens if energy_j is not None and work.tokens else None
    per_query_j = per_token_j * work.tokens_per_query if per_token_j is not None and work.tokens_per_query else None
    low, high = _interval(data, around, window, work, per_token_j)
    findings = _findings(parts, power, uses_in(around, *window, power.owners, power.scopes))
    counter_j, integral_j = _sum([p.counter_j for p in parts]), _sum([p.integral_j for p in parts])
    rest_w = _sum([power.rest_w.get(gpu) for gpu in power.samples])
    peaks = [part.memory_used_bytes_max for part in parts]
    peak_bytes = sum(p for p in peaks if p is not None) if peaks and None not in peaks else None
    total_bytes = power.memory_total_bytes
    energy = msgspec.structs.replace(
        bound,
        energy_j=energy_j,
        energy_reservations="; ".join(findings.reservations),
        energy_source="+".join(sorted({part.source for part in parts if part.source})) or None,
        energy_counter_j=counter_j,
        energy_integral_j=integral_j,
        energy_ratio=integral_j / counter_j if integral_j is not None and counter_j else None,
        power_w_mean=energy_j / work.window_s if energy_j is not None else None,
        energy_net_j=energy_j - rest_w * work.window_s if energy_j is not None and rest_w is not None else None,
        energy_per_token_j=per_token_j,
        energy_per_token_j_lo=low,
        energy_per_token_j_hi=high,
        energy_per_query_j=per_query_j,
        energy_per_query_completions_j=energy_j / work.requests if energy_j is not None and work.requests else None,
        tokens_per_j=work.tokens / energy_j if energy_j and work.tokens else None,
        carbon_g_per_query=(
            per_query_j / 3.6e6 * carbon_kg_per_kwh * 1e3 if per_query_j is not None and carbon_kg_per_kwh else None
        ),
        memory_peak_bytes=peak_bytes,
        memory_headroom_bytes=total_bytes - peak_bytes if total_bytes is not None and peak_bytes is not None else None,
    )
    return energy, findings


def _findings(parts: list[WindowEnergy], power: PowerData, uses: Uses) -> EnergyFindings:
    """Of all GPUs together; an equal sentence of several stands once."""
    lost = [reason for part in parts for reason in part.lost]
    slowed = [reason for part in parts for reason in part.slowed]
    reservations = [reason for part in parts for reason in part.reservations]
    elsewhere = {*lost, *slowed, *reservations}
    against = [reason for part in parts for reason in part.reasons if reason not in elsewhere]
    against += [f"{gpu} is in MIG mode: its energy is the whole GPU's" for gpu in power.mig]
    against += uses.foreign
    reservations += uses.unsure
    if not parts:
        against.append("no power sample at all")
    return EnergyFindings(
        lost=tuple(dict.fromkeys(lost)),
        slowed=tuple(dict.fromkeys(slowed)),
        energy=tuple(dict.fromkeys(against)),
        reservations=tuple(dict.fromkeys(reservations)),
    )


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if values and len(known) == len(values) else None


def _interval(
    data: CellData, around: Iterable[PowerTrace], window: tuple[int, int], work: Work, per_token_j: float | None
) -> tuple[float | None, float | None]:
    """95% of energy per token by a block bootstrap within the window; blocks as long as an answer.

    Resampled is the course of power, whose integral may be off the counter's energy as a whole; so the interval is
    laid around `per_token_j` by their ratio.
    """
    bins = max(FEWEST_BINS, round(work.window_s / BIN_S))
    edges = np.linspace(window[0], window[1], bins + 1)
    joules = np.zeros(bins)
    for trace in around:
        watts = trace.power_average_w if np.isnan(trace.power_instant_w).all() else trace.power_instant_w
        known = ~np.isnan(watts)
        if np.count_nonzero(known) < 2:
            return None, None
        joules += np.diff(_cumulative_j(trace.t_ns[known], watts[known], edges))
    tokens = tokens_by_part(data, window, bins)
    block = round(work.e2e_s / (work.window_s / bins)) if work.e2e_s else 1
    low, high = ratio_interval(joules, tokens, block=block)
    if low is None or high is None or per_token_j is None or joules.sum() <= 0:
        return None, None
    scale = per_token_j * float(tokens.sum()) / float(joules.sum())
    return scale * low, scale * high


def tokens_by_part(data: CellData, window: tuple[int, int], parts: int) -> Floats:
    """Tokens that arrived in each of so many equal parts of the window; of two parts an instant between them belongs to
    the first. Some at a time, which the processor's own memory holds."""
    parts_per_ns = parts / (window[1] - window[0])
    counts = np.zeros(parts + 2)
    """With what came before and after."""
    for first in range(0, len(data.token_t_ns), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        part = np.ceil((data.token_t_ns[some] - window[0]) * parts_per_ns).clip(0, parts + 1)
        counts += np.bincount(part.astype(np.intp), data.token_counts[some], minlength=parts + 2)
    return counts[1:-1]


def _cumulative_j(t_ns: Ints, watts: Floats, at_ns: Floats) -> Floats:
    """Energy since the first sample at given instants: the trapezoid's exact antiderivative."""
    t_s = (t_ns - t_ns[0]) / 1e9
    at_s = (at_ns - t_ns[0]) / 1e9
    steps = np.diff(t_s) * (watts[1:] + watts[:-1]) / 2
    total = np.concatenate([[0.0], np.cumsum(steps)])
    place = np.clip(np.searchsorted(t_s, at_s, side="right") - 1, 0, len(t_s) - 2)
    into_s = at_s - t_s[place]
    slope = (watts[place + 1] - watts[place]) / np.maximum(t_s[place + 1] - t_s[place], 1e-9)
    energies: Floats = total[place] + watts[place] * into_s + slope * into_s**2 / 2
    return energies
