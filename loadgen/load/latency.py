"""Latency: what TTFT, TPOT, ITL and E2E are. Every figure of them, live or in a table, comes from these functions.

They take one request's stamps or arrays of them, in ns, negative where there is none; they return one number of seconds
or an array of them, nan where there is none.
"""

from __future__ import annotations

from math import isnan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadgen.load.exchange import Exchange

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Window = tuple[int, int]
"""When it opened and closed, in ns."""


def ttft_s(t_due_ns: Ints | int, t_first_ns: Ints | int) -> Floats:
    """Time to first token: from when a request was due (closed loop: sent) to its first event with a token."""
    first = _known(t_first_ns)
    values: Floats = _where(first >= 0, (first - t_due_ns) / 1e9, np.nan)
    return values


def tpot_s(t_first_ns: Ints | int, t_last_ns: Ints | int, output_tokens: Ints | int) -> Floats:
    """Time per output token after the first: (last - first event's arrival) / (tokens - 1).

    An answer of fewer than two tokens has none, nor one whose tokens all came at once: their times are unknown.
    """
    first, last, tokens = _known(t_first_ns), _known(t_last_ns), _known(output_tokens)
    known = (first >= 0) & (last > first) & (tokens > 1)
    values: Floats = _where(known, (last - first) / 1e9, np.nan) / _where(known, tokens - 1, 1)
    return values


def _known(values: Ints | int) -> Any:
    """An array, or the number that it is: numpy takes twenty times as long for one."""
    return values if isinstance(values, int) else np.asarray(values)


def _where(known: Any, value: Any, otherwise: float) -> Any:
    return (value if known else otherwise) if isinstance(known, bool) else np.where(known, value, otherwise)


def e2e_s(t_due_ns: Ints | int, t_end_ns: Ints | int) -> Floats:
    """Request latency: from when a request was due (closed loop: sent) to the answer's last byte."""
    return np.asarray(np.asarray(t_end_ns) - t_due_ns) / 1e9


def gaps_s(token_offsets: Ints, token_t_ns: Ints) -> Floats:
    """From the event before, one entry per event with tokens; an answer's first event has none.

    Events of request k are those from `token_offsets[k]` to before `token_offsets[k + 1]`. The gap is the ICL; shared
    among the n tokens that its event brought it is their ITL.
    """
    gaps = np.empty(len(token_t_ns))
    gaps[:1] = np.nan
    np.subtract(token_t_ns[1:], token_t_ns[:-1], out=gaps[1:])  # one array: the system clears each large one first
    gaps /= 1e9
    gaps[token_offsets[:-1][np.diff(token_offsets) > 0]] = np.nan
    return gaps


def inside(t_ns: Ints | int, window: tuple[float, float]) -> Mask:
    """What happened after the window opened, and not after it closed."""
    at = _known(t_ns)
    happened: Mask = (at > window[0]) & (at <= window[1])
    return happened


def mean_in_flight(begin_ns: Ints, end_ns: Ints, window: Window) -> float:
    """Requests in flight, averaged over the window's time: their summed overlaps with it, over its length."""
    overlap = np.minimum(end_ns, window[1]) - np.maximum(begin_ns, window[0])
    return float(np.maximum(overlap, 0).sum() / (window[1] - window[0]))


class Latencies(NamedTuple):
    """One request's, in seconds; None: it has none, or it does not count in the window."""

    ttft_s: float | None = None
    tpot_s: float | None = None


def latencies_in(exchange: Exchange, window: Window | None) -> Latencies:
    """What a request adds to the window's figures, by the rule of `loadgen.analysis.celldata`: measured requests that
    were answered, TTFT where the first token arrived, TPOT where the answer ended, in an open loop both where the
    request was due. No window: it has not opened."""
    if window is None or exchange.phase != "measured" or exchange.status != "ok":
        return Latencies()
    first_ns = -1 if exchange.t_first_ns is None else exchange.t_first_ns
    last_ns = exchange.token_times[-1][0] if exchange.token_times else -1

    def counted(value_s: Floats, happened_ns: int) -> float | None:
        t_ns = happened_ns if exchange.t_scheduled_ns is None else exchange.t_scheduled_ns
        return float(value_s) if inside(t_ns, window) and not isnan(value_s) else None

    return Latencies(
        ttft_s=counted(ttft_s(exchange.t_due_ns, first_ns), first_ns),
        tpot_s=counted(tpot_s(first_ns, last_ns, exchange.output_tokens or 0), exchange.t_end_ns),
    )
