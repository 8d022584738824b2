"""Latencies of a cell. Each is counted in the window in which it *happened*: where its last byte arrived.

In a closed loop in its steady state that sampling is unbiased, whatever the window's length; requiring a whole
request to fit into the window would favour the short ones.
"""

from __future__ import annotations

import numpy as np

from loadgen.analysis.celldata import CellData, Floats, Ints, Mask


def ttft_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Time to first token: send to the arrival of the first event with a token; measured requests."""
    chosen = data.measured & data.ok & _within(data.t_first_ns, window)
    return (data.t_first_ns - data.t_send_ns)[chosen] / 1e9


def e2e_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Send to the answer's last byte, measured requests that succeeded."""
    chosen = ended_in(data, window)
    return (data.t_end_ns - data.t_send_ns)[chosen] / 1e9


def tpot_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Time per output token after the first: (last - first token's arrival) / (tokens - 1), one value a request."""
    chosen = ended_in(data, window) & (data.output_tokens > 1) & (np.diff(data.token_offsets) > 0)
    last_ns = data.token_t_ns[data.token_offsets[1:][chosen] - 1]
    return (last_ns - data.t_first_ns[chosen]) / 1e9 / (data.output_tokens[chosen] - 1)


def icl_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Inter-chunk latency: gaps between consecutive events with tokens, of measured requests."""
    gaps, _ = _gaps(data, window)
    return gaps


def itl_s(data: CellData, window: tuple[int, int]) -> Floats:
    """Inter-token latency: an event with n tokens after a gap g stands for n values g/n."""
    gaps, counts = _gaps(data, window)
    return gaps if (counts == 1).all() else np.repeat(gaps / np.maximum(counts, 1), counts)


def ended_in(data: CellData, window: tuple[int, int]) -> Mask:
    """Which measured requests were answered completely within the window."""
    return data.measured & data.ok & _within(data.t_end_ns, window)


def _gaps(data: CellData, window: tuple[int, int]) -> tuple[Floats, Ints]:
    """Seconds from the event before, and tokens, of the events of measured requests; a request's first has no gap."""
    events = np.diff(data.token_offsets)
    chosen = np.repeat(data.measured & data.ok, events) & _within(data.token_t_ns, window)
    chosen[data.token_offsets[:-1][events > 0]] = False
    return np.diff(data.token_t_ns)[chosen[1:]] / 1e9, data.token_counts[chosen]


def _within(t_ns: np.ndarray[tuple[int], np.dtype[np.int64]], window: tuple[int, int]) -> Mask:
    return (t_ns > window[0]) & (t_ns <= window[1])
