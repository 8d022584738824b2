"""Latencies of a cell.

In a closed loop each is counted in the window in which it *happened*: where its last byte arrived. In its steady state
that sampling is unbiased, whatever the window's length; requiring a whole request to fit into the window would favour
the short ones. In an open loop those are counted that were *due* in the window, with all that they waited from then on:
the window's traffic is one sample of arrivals, and none is left out because the server, or the client, was slow.
"""

from __future__ import annotations

import numpy as np

from loadgen.analysis.celldata import CellData, Counts, Floats, Mask
from loadgen.client import latency


def ttft_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Time to first token: send (open loop: due) to the arrival of the first event with a token; measured requests."""
    happened = latency.inside(data.t_due_ns if data.open_loop else data.t_first_ns, window)
    chosen = data.measured & data.ok & (data.t_first_ns >= 0) & happened
    return latency.ttft_s(data.t_due_ns, data.t_first_ns)[chosen]


def e2e_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Send (open loop: due) to the answer's last byte, measured requests that succeeded."""
    chosen = answered_in(data, window)
    return latency.e2e_s(data.t_due_ns, data.t_end_ns)[chosen]


def tpot_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Time per output token after the first: (last - first token's arrival) / (tokens - 1), one value a request."""
    values = tpot_by_request_s(data)
    return values[answered_in(data, window) & ~np.isnan(values)]


def tpot_by_request_s(data: CellData) -> Floats:
    """One entry per exchange; NaN where an answer has fewer than two tokens, or their times are unknown: all came at
    once."""
    return latency.tpot_s(data.t_first_ns, data.t_last_ns, data.output_tokens)


def icl_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Inter-chunk latency: gaps between consecutive events with tokens, of measured requests, that ended in it."""
    gaps, _ = _gaps(data, window)
    return gaps


def itl_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Inter-token latency: an event with n tokens after a gap g stands for n values g/n."""
    gaps, counts = _gaps(data, window)
    return gaps if (counts == 1).all() else np.repeat(gaps / np.maximum(counts, 1), counts)


def answered_in(data: CellData, window: tuple[int, int]) -> Mask:
    """Which of the window's requests were answered."""
    return of_window(data, window) & data.ok


def of_window(data: CellData, window: tuple[int, int]) -> Mask:
    """Which measured requests belong to the window: those that ended in it, in an open loop those due in it."""
    return data.measured & latency.inside(data.t_due_ns if data.open_loop else data.t_end_ns, window)


def _gaps(data: CellData, window: tuple[int, int]) -> tuple[Floats, Counts]:
    """Seconds from the event before, and tokens, of the events of measured requests; a request's first has no gap."""
    events = np.diff(data.token_offsets)
    chosen = np.repeat(data.measured & data.ok, events) & latency.inside(data.token_t_ns, window)
    chosen[data.token_offsets[:-1][events > 0]] = False
    return latency.gaps_s(data.token_offsets, data.token_t_ns)[chosen], data.token_counts[chosen]
