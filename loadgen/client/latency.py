"""What TTFT, TPOT, ITL and E2E are. Every figure of them, live or in a table, comes from these functions.

They take one request's stamps or arrays of them, in ns, negative where there is none; they return seconds, nan where a
request has no such latency.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loadgen.client.exchange import Exchange

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def ttft_s(t_due_ns: Ints | int, t_first_ns: Ints | int) -> Floats:
    """Time to first token: from when a request was due (closed loop: sent) to its first event with a token."""
    first = np.asarray(t_first_ns)
    return np.where(first >= 0, (first - t_due_ns) / 1e9, np.nan)


def tpot_s(t_first_ns: Ints | int, t_last_ns: Ints | int, output_tokens: Ints | int) -> Floats:
    """Time per output token after the first: (last - first event's arrival) / (tokens - 1).

    An answer of fewer than two tokens has none, nor one whose tokens all came at once: their times are unknown.
    """
    first, last, tokens = np.asarray(t_first_ns), np.asarray(t_last_ns), np.asarray(output_tokens)
    known = (first >= 0) & (last > first) & (tokens > 1)
    return np.where(known, (last - first) / 1e9, np.nan) / np.where(known, tokens - 1, 1)


def e2e_s(t_due_ns: Ints | int, t_end_ns: Ints | int) -> Floats:
    """Request latency: from when a request was due (closed loop: sent) to the answer's last byte."""
    return np.asarray(np.asarray(t_end_ns) - t_due_ns) / 1e9


def gaps_s(token_offsets: Ints, token_t_ns: Ints) -> Floats:
    """From the event before, one entry per event with tokens; an answer's first event has none.

    Events of request k are those from `token_offsets[k]` to before `token_offsets[k + 1]`. The gap is the ICL; shared
    among the n tokens that its event brought it is their ITL.
    """
    gaps = np.full(len(token_t_ns), np.nan)
    gaps[1:] = np.diff(token_t_ns) / 1e9
    gaps[token_offsets[:-1][np.diff(token_offsets) > 0]] = np.nan
    return gaps


def exchange_ttft_s(exchange: Exchange) -> float | None:
    """TTFT of one request."""
    return _known(ttft_s(exchange.t_due_ns, _stamp(exchange.t_first_ns)))


def exchange_tpot_s(exchange: Exchange) -> float | None:
    """TPOT of one request."""
    last_ns = exchange.token_times[-1][0] if exchange.token_times else -1
    return _known(tpot_s(_stamp(exchange.t_first_ns), last_ns, _stamp(exchange.output_tokens)))


def _stamp(value: int | None) -> int:
    return -1 if value is None else value


def _known(value: Floats) -> float | None:
    return None if np.isnan(value) else float(value)
