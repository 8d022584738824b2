"""ClientFigures: what the client did to a cell's figures, and how much of that is too much.

Streaming: whether an answer's tokens came one after another, as latencies need it, or at once.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from loadgen.analysis.celldata import CellData, Floats, Ints, answered_in
from loadgen.analysis.exchanges import equal_to
from loadgen.load.latency import ttft_s

CPU_SHARE = 0.95
"""Share of one core, by the busiest process, over the window: an event loop has no more than a core."""
BUSY_SHARE = 0.8
"""From here on the report warns."""
LAG_STEPS = 1.0
"""How late the event loop may be half of the time, in mean inter-chunk latencies: later, and it still reads the tokens
of one engine step when those of the next arrive. For one byte in ten it draws a warning."""
LAG_FLOOR_MS = 3.0
"""Less never counts against a cell: timers tick in ms, and a busy machine's scheduler takes its turn."""
REFILL_SHARE = 0.01
"""Mean refill gap, of the mean E2E: so much of every slot's time is no request's."""
TTFT_SHARE = 0.2
"""Mean TTFT seen by the client above the server's own, of the client's; counts where half of it is the mean lateness of
the client's event loop, or its core was nearly full ..."""
TTFT_FLOOR_MS = 5.0
"""... and where it is at least this ..."""
TTFT_LEAST = 20
"""... and is the mean of so many requests."""
_COUNT_TOLERANCE = 0.05


JOINED_SHARE = 0.05
"""Most tokens of a cell that a late client may have read together with a later one ..."""
P99_SHARE = 0.01
"""... and from here on its p99 between tokens may be the client's."""


class ClientFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Columns of cells.csv. With several processes the CPU share and the lags are the worst one's."""

    client_processes: int | None = None
    """That sent the requests."""
    client_cpu_share: float | None = None
    """Share of one core, by the busiest of them."""
    client_cpu_cores: float | None = None
    """CPU time of all of them, and of the process that directs them, over the window's length."""
    kernel_stamp_share: float | None = None
    """Share of the window's answers whose reads the kernel stamped: their times are not those of the client's loop."""
    joined_token_share: float | None = None
    """Share of the window's tokens read together with a later one of the same answer: their stamp is that one's, an
    upper bound."""
    client_clock_bound_ms: float | None = None
    """How far the times of processes on nodes of a cluster may be from the sweep's clock; None: there are none. 0: they
    are on its machine."""
    loop_lag_ms_mean: float | None = None
    """How late the event loop came to a timer: how long bytes waited to be read."""
    loop_lag_ms_p50: float | None = None
    loop_lag_ms_p90: float | None = None
    loop_lag_ms_p99: float | None = None
    loop_lag_ms_max: float | None = None
    refill_gap_ms_mean: float | None = None
    """A slot's last byte to its next send, after answers; None in an open loop, where slots wait for arrivals."""
    refill_gap_ms_p50: float | None = None
    refill_gap_ms_p99: float | None = None
    refill_gap_ms_max: float | None = None
    server_ttft_ms_mean: float | None = None
    """By the server's own histogram, between the first and the last reading in the window."""
    server_ttft_count: int | None = None
    """First tokens in it."""
    ttft_excess_ms: float | None = None
    """The client's mean over the same time, from sent to first token, less the server's; None where the two did not
    count the same requests."""

    @property
    def stamped_by_kernel(self) -> bool:
        """All of them: then a late client moves refills, and no latency."""
        return self.kernel_stamp_share == 1

    def late_by(self, spacing_ms: float | None) -> bool:
        """One byte in a hundred waited longer than that to be read, so that it was joined with the next."""
        return self.loop_lag_ms_p99 is not None and spacing_ms is not None and self.loop_lag_ms_p99 > spacing_ms


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a cell and its limit; above it, the cell measures the client."""

    figure: str
    value: float
    limit: float
    sentence: str
    guilty: bool = True
    """False: the figure is high, and something else than the client is why."""

    @property
    def failed(self) -> bool:
        return self.guilty and self.value > self.limit


class NearestCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The cell whose figure came closest to its limit, or went furthest above it."""

    figure: str
    value: float
    limit: float
    failed: bool
    target: str
    concurrency: int
    arrival: str | None = None
    """That of an open loop."""
    repeat: int


def client_figures(data: CellData) -> ClientFigures:
    """The figures of one cell's window; empty without one."""
    window, end = data.window, data.end
    if window is None or end is None or window[1] <= window[0]:
        return ClientFigures()
    cores = None if end.client_cpu_s is None else end.client_cpu_s / (window[1] - window[0]) * 1e9
    gaps_ms = _refill_gaps_ms(data, window)
    server_ms, count, excess_ms = _against_server(data, window)
    answered = answered_in(data, window)
    by_kernel = equal_to("kernel", data.exchanges.stamps)
    return ClientFigures(
        kernel_stamp_share=float(by_kernel[answered].mean()) if answered.any() else None,
        joined_token_share=_joined_share(data, window),
        client_processes=end.client_processes,
        client_cpu_share=cores if end.client_processes is None else end.client_cpu_share,
        client_cpu_cores=cores,
        client_clock_bound_ms=max((node.clock.bound_ns / 1e6 for node in end.client_nodes), default=None),
        loop_lag_ms_mean=end.loop_lag_ms_mean,
        loop_lag_ms_p50=end.loop_lag_ms_p50,
        loop_lag_ms_p90=end.loop_lag_ms_p90,
        loop_lag_ms_p99=end.loop_lag_ms_p99,
        loop_lag_ms_max=end.loop_lag_ms_max,
        refill_gap_ms_mean=float(gaps_ms.mean()) if gaps_ms.size else None,
        refill_gap_ms_p50=float(np.percentile(gaps_ms, 50)) if gaps_ms.size else None,
        refill_gap_ms_p99=float(np.percentile(gaps_ms, 99)) if gaps_ms.size else None,
        refill_gap_ms_max=float(gaps_ms.max()) if gaps_ms.size else None,
        server_ttft_ms_mean=server_ms,
        server_ttft_count=count,
        ttft_excess_ms=excess_ms,
    )


def client_checks(
    c: ClientFigures, *, icl_ms: float | None, e2e_ms: float | None, open_loop: bool = False
) -> list[Check]:
    """Each figure that was measured, with its limit. `icl_ms`, `e2e_ms`: the cell's means, which some limits go by.

    Where the kernel stamped the reads, a late or busy client is guilty of what it does to refills alone."""
    checks, guilty = [], not c.stamped_by_kernel
    more = "lower the rate" if open_loop else f"give --workers {(c.client_processes or 1) + 1} or more"
    if c.client_cpu_share is not None:
        said = f"the busiest client process used {c.client_cpu_share:.0%} of a core (limit {CPU_SHARE:.0%}); {more}"
        share = Check(
            figure="client_cpu_share", value=c.client_cpu_share, limit=CPU_SHARE, sentence=said, guilty=guilty
        )
        checks.append(share)
    if c.loop_lag_ms_p50 is not None and icl_ms is not None:
        limit = lag_limit_ms(icl_ms)
        said = (
            f"half of all bytes waited {c.loop_lag_ms_p50:.1f} ms or more for the client's event loop (limit "
            f"{limit:.1f} ms; chunks came each {icl_ms:.1f} ms); {more}, or free its CPU of other work"
        )
        checks.append(
            Check(figure="loop_lag_ms_p50", value=c.loop_lag_ms_p50, limit=limit, sentence=said, guilty=guilty)
        )
    if c.refill_gap_ms_mean is not None and e2e_ms:
        limit = REFILL_SHARE * e2e_ms
        said = (
            f"a slot was empty for {c.refill_gap_ms_mean:.2f} ms between two requests on average "
            f"(limit {REFILL_SHARE:.0%} of E2E, {limit:.2f} ms); {more}"
        )
        checks.append(Check(figure="refill_gap_ms_mean", value=c.refill_gap_ms_mean, limit=limit, sentence=said))
    if c.ttft_excess_ms is not None and c.server_ttft_ms_mean is not None:
        checks.append(_ttft_check(c, c.ttft_excess_ms, c.server_ttft_ms_mean, more))
    return checks


def client_doubt(c: ClientFigures, *, icl_ms: float | None) -> str | None:
    """Why the p99 figures of a cell that is not client-bound may still be the client's."""
    if c.stamped_by_kernel:
        joined = c.joined_token_share or 0.0
        if joined > P99_SHARE and c.late_by(icl_ms):
            return f"{joined:.1%} of the tokens were read together with a later one, so their times are upper bounds"
        return None
    share, lag_ms = c.client_cpu_share, c.loop_lag_ms_p90
    if share is not None and BUSY_SHARE < share <= CPU_SHARE:
        return f"the busiest client process used {share:.0%} of a core (invalid from {CPU_SHARE:.0%} on)"
    if lag_ms is not None and icl_ms is not None and lag_ms > lag_limit_ms(icl_ms):
        return (
            f"one byte in ten waited {lag_ms:.1f} ms or more for the client's event loop, and chunks came each "
            f"{icl_ms:.1f} ms"
        )
    return None


def lag_limit_ms(icl_ms: float) -> float:
    return max(LAG_STEPS * icl_ms, LAG_FLOOR_MS)


def _ttft_check(c: ClientFigures, excess_ms: float, server_ms: float, more: str) -> Check:
    """The excess is also the server's front end and the network: it counts only if the client was late too."""
    limit = max(TTFT_SHARE * (server_ms + excess_ms), TTFT_FLOOR_MS)
    late = c.loop_lag_ms_mean is not None and c.loop_lag_ms_mean > excess_ms / 2
    strained = c.client_cpu_share is not None and c.client_cpu_share > BUSY_SHARE
    said = (
        f"first tokens came {excess_ms:.1f} ms later than by the server's own histogram ({server_ms:.1f} ms; limit "
        f"{TTFT_SHARE:.0%} of TTFT, {limit:.1f} ms) and the client was late itself; {more}"
    )
    return Check(
        figure="ttft_excess_ms",
        value=excess_ms,
        limit=limit,
        sentence=said,
        guilty=not c.stamped_by_kernel and (c.server_ttft_count or 0) >= TTFT_LEAST and (late or strained),
    )


def _refill_gaps_ms(data: CellData, window: tuple[int, int]) -> Floats:
    """After answers alone: a slot whose request failed waits on purpose."""
    if data.open_loop:
        return np.empty(0)
    slot = data.exchanges.slot
    order = np.lexsort((data.t_send_ns, slot))
    before, after = order[:-1], order[1:]
    sent_ns = data.t_send_ns[after]
    refills = (slot[before] == slot[after]) & data.ok[before] & (window[0] < sent_ns) & (sent_ns <= window[1])
    gaps_ns: Ints = (sent_ns - data.t_end_ns[before])[refills]
    return gaps_ns / 1e6


def _joined_share(data: CellData, window: tuple[int, int]) -> float | None:
    tokens = data.tokens_in(window)
    return data.tokens_in(window, data.joined() - 1) / tokens if tokens else None


def _against_server(data: CellData, window: tuple[int, int]) -> tuple[float | None, int | None, float | None]:
    """The server's mean TTFT in ms, of how many requests, and what the client saw above it."""
    read = [s for s in data.samples if window[0] <= s.t_ns <= window[1] and s.ttft_count is not None]
    if len(read) < 2:
        return None, None, None
    first, last = read[0], read[-1]
    count = (last.ttft_count or 0.0) - (first.ttft_count or 0.0)
    if count <= 0:
        return None, None, None
    server_ms = ((last.ttft_sum_s or 0.0) - (first.ttft_sum_s or 0.0)) / count * 1e3
    seen = data.ok & (data.t_first_ns > first.t_ns) & (data.t_first_ns <= last.t_ns)
    if abs(int(seen.sum()) - count) > max(2.0, _COUNT_TOLERANCE * count) or not seen.any():
        return server_ms, int(count), None
    client_ms = 1e3 * float(ttft_s(data.t_send_ns, data.t_first_ns)[seen].mean())
    return server_ms, int(count), client_ms - server_ms


def nearest_checks(checks: Iterable[tuple[tuple[str, int, str | None, int], Check]]) -> list[NearestCheck]:
    """One per figure, of checks with the target, concurrency, arrival (of an open loop) and repeat of their cell."""
    nearest: dict[str, tuple[tuple[str, int, str | None, int], Check]] = {}
    for cell, check in checks:
        known = nearest.get(check.figure)
        if known is None or check.value / check.limit > known[1].value / known[1].limit:
            nearest[check.figure] = cell, check
    return [
        NearestCheck(
            figure=check.figure,
            value=check.value,
            limit=check.limit,
            failed=check.failed,
            target=target,
            concurrency=concurrency,
            arrival=arrival,
            repeat=repeat,
        )
        for (target, concurrency, arrival, repeat), check in nearest.values()
    ]


AT_ONCE_SHARE = 0.05
"""Most answers of several tokens whose tokens all have one time: of these no time per token is known."""
BUFFERED_SHARE = 0.5
"""Most answers that came in few reads: a network may join two events now and then, not most of most answers."""
BURST_SHARE = 0.5
BURST_LEAST = 4
"""An answer of so many events is buffered if one read brought more than that share of them. Speculative decoding may
send each token of a step as one event: one read then brings a few of many."""
EVENTS_PER_READ = 24
EVENTS_LEAST = 48
"""A longer one also if its reads brought so many each: a proxy that sends on whenever its 8 KiB are full."""
FAR_SHARE = 0.5
FAR_MS = 20.0
"""First tokens are far behind the server's own by so much of the client's TTFT, and at least so much ..."""
NEAR_SHARE = 0.1
"""... and all others came at once if they took less than this share of that."""
LAG_SHARE = 0.5
"""Share of the time between two events, had they come evenly: a client that is later than this joins them itself."""


class Streaming(msgspec.Struct, frozen=True, kw_only=True):
    """How the window's answers of several tokens arrived."""

    answers: int = 0
    at_once: int = 0
    """Their tokens all have one time."""
    single_event: int = 0
    """Those of `at_once` whose text is one event."""
    several: int = 0
    """Their text is more than one event."""
    buffered: int = 0
    """Those of `several` whose events came in few reads."""
    spacing_ms: float | None = None
    """Median time between two events of `several`, had they come evenly from the sending to the end."""
    span_ms: float | None = None
    """Mean time from the first token to the last."""


def streaming_of(data: CellData, window: tuple[int, int] | None) -> Streaming:
    """How one cell's answers arrived."""
    events = np.diff(data.token_offsets)
    if window is None or not data.token_t_ns.size:
        return Streaming()
    joined = data.joined()
    answer = np.searchsorted(data.token_offsets, joined, side="right") - 1
    reads, longest = events - np.bincount(answer, minlength=len(events)), np.minimum(events, 1)
    begins = np.flatnonzero(np.diff(joined, prepend=-1) != 1)  # the first event of an answer is never joined
    np.maximum.at(longest, answer[begins], np.diff(begins, append=len(joined)) + 1)
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
    joined = client.joined_token_share
    if client.stamped_by_kernel and joined is not None and joined > JOINED_SHARE and client.late_by(s.spacing_ms):
        return [
            f"the client was late and read {joined:.0%} of the tokens together with a later one (limit "
            f"{JOINED_SHARE:.0%}), so their times are upper bounds; use more --workers, or free its CPU of other work"
        ]
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
