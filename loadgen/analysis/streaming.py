"""Streaming: whether an answer's tokens came one after another, as latencies need it, or at once."""

from __future__ import annotations

import msgspec
import numpy as np

from loadgen.analysis.celldata import CellData
from loadgen.analysis.client import ClientFigures
from loadgen.analysis.latency import answered_in

AT_ONCE_SHARE = 0.05
"""Most answers of several tokens whose tokens all have one time: of these no time per token is known."""
BUFFERED_SHARE = 0.5
"""Most answers that came in few reads: a network may join two events now and then, not most of most answers."""
BURST_SHARE = 0.5
BURST_LEAST = 4
"""An answer of so many events is buffered if one read brought more than that share of them. Speculative decoding may
send the tokens of a step as events of their own: one read then brings a few of many."""
EVENTS_PER_READ = 24
EVENTS_LEAST = 48
"""A longer one also if its reads brought so many each: a proxy that sends on whenever its 8 KiB are full."""
FAR_SHARE = 0.5
FAR_MS = 20.0
"""First tokens are far behind the server's own by so much of the client's TTFT, and at least so much ..."""
NEAR_SHARE = 0.1
"""... and all others came at once if they took less than this share of that."""
LAG_SHARE = 0.5
"""Of the time between two events, had they come evenly: a client that is later than this joins them itself."""


class Streaming(msgspec.Struct, frozen=True, kw_only=True):
    """Of the window's answers of several tokens."""

    answers: int = 0
    at_once: int = 0
    """Their tokens all have one time."""
    single_event: int = 0
    """Of `at_once`, those whose text is one event."""
    several: int = 0
    """Their text is more than one event."""
    buffered: int = 0
    """Of `several`, those whose events came in few reads."""
    spacing_ms: float | None = None
    """Median time between two events of `several`, had they come evenly from the sending to the end."""
    span_ms: float | None = None
    """Mean time from the first token to the last."""


def streaming_of(data: CellData, window: tuple[int, int] | None) -> Streaming:
    """Of one cell."""
    events = np.diff(data.token_offsets)
    if window is None or not data.token_t_ns.size:
        return Streaming()
    owner = np.repeat(np.arange(len(events)), events)
    begins = np.ones(len(owner), dtype=np.bool_)
    begins[1:] = (np.diff(data.token_t_ns) != 0) | (np.diff(owner) != 0)
    places = np.flatnonzero(begins)
    lengths = np.diff(np.append(places, len(owner)))
    reads = np.bincount(owner[places], minlength=len(events))
    longest = np.zeros(len(events), dtype=np.int64)
    np.maximum.at(longest, owner[places], lengths)
    chosen = answered_in(data, window) & (data.output_tokens > 1) & (events > 0)
    several = chosen & (events > 1)
    buffered = several & (
        (reads == 1)
        | ((events >= BURST_LEAST) & (longest > BURST_SHARE * events))
        | ((events >= EVENTS_LEAST) & (events >= EVENTS_PER_READ * reads))
    )
    last_ns = data.token_t_ns[data.token_offsets[1:] - 1]
    spacing_ms = (data.t_end_ns - data.t_send_ns)[several] / 1e6 / events[several]
    return Streaming(
        answers=int(chosen.sum()),
        at_once=int((chosen & (reads == 1)).sum()),
        single_event=int((chosen & (events == 1)).sum()),
        several=int(several.sum()),
        buffered=int(buffered.sum()),
        spacing_ms=float(np.median(spacing_ms)) if spacing_ms.size else None,
        span_ms=float((last_ns - data.t_first_ns)[chosen].mean()) / 1e6 if chosen.any() else None,
    )


def streaming_reasons(s: Streaming, client: ClientFigures) -> list[str]:
    """Why TTFT and the times between tokens are not the server's, a sentence each."""
    if s.several and s.buffered > BUFFERED_SHARE * s.several:
        said = f"in {s.buffered} of {s.several} answers most events came in few reads"
        lag_ms = client.loop_lag_ms_p50
        if lag_ms is not None and s.spacing_ms is not None and lag_ms > LAG_SHARE * s.spacing_ms:
            return [
                f"{said}: events came each {s.spacing_ms:.2g} ms and the client's event loop was {lag_ms:.2g} ms late: "
                "the client joined them; use more --workers, or free its CPU of other work"
            ]
        return [f"{said}: {_BUFFERS}"]
    excess_ms, server_ms = client.ttft_excess_ms, client.server_ttft_ms_mean
    if s.several and s.span_ms is not None and excess_ms is not None and server_ms is not None:
        far = excess_ms > max(FAR_SHARE * (server_ms + excess_ms), FAR_MS)
        if far and s.span_ms < NEAR_SHARE * excess_ms:
            return [
                f"first tokens came {excess_ms:.0f} ms later than by the server's own histogram ({server_ms:.0f} ms), "
                f"and all others within {s.span_ms:.1f} ms of them: {_BUFFERS}"
            ]
    if s.at_once > AT_ONCE_SHARE * s.answers:
        how = "in one event" if 2 * s.single_event > s.at_once else "at one time"
        return [f"{s.at_once} of {s.answers} answers of several tokens came {how}: their time per token is unknown"]
    return []


_BUFFERS = "something between client and engine buffers the stream (nginx: set proxy_buffering off)"
