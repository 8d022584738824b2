"""Trial: the client's errors against a server that reports when it sent each token."""

from __future__ import annotations

import msgspec
import numpy as np

from loadgen.analysis.celldata import CellData, Ints, Mask
from loadgen.analysis.client import BUSY_SHARE, client_figures
from loadgen.errors import ServerError
from loadgen.load import latency

TTFT_MEAN_MS = 1.0
TTFT_P99_MS = 5.0
ITL_P99_MS = 2.0
ITL_P99_SHARE = 0.2
"""As a share of the inter-token latency, where that is more than `ITL_P99_MS`."""
IN_FLIGHT_SHARE = 0.995
OFFERED_SHARE = 0.98
"""The server must have sent this share of its tokens, or the trial says nothing about the client."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Errors are upper bounds: they include the kernel and the server's reading of a request, but not its delay in
    sending."""

    concurrency: int
    workers: int
    transport: str
    tokens_per_s_asked: float
    itl_ms: float
    answer_tokens: int
    window_s: float
    tokens_per_s: float
    """Tokens that arrived."""
    ttft_error_ms_mean: float
    """Send to first token by the client's clock, less read to send by the server's."""
    ttft_error_ms_p99: float
    itl_error_ms_p99: float
    """The absolute difference between the client's and the server's gap of two tokens."""
    inflight_share: float
    """Mean requests in flight by the client's stamps, over B."""
    served_share: float
    """The same by the server's stamps: a slot spends the rest on the way."""
    cpu_us_per_token: float
    """All client processes, journal and /metrics included."""
    cpu_share: float
    """The busiest process's share of a core."""
    loop_lag_ms_p90: float | None
    loop_lag_ms_p99: float | None
    offered_share: float
    """The share of its tokens that the server sent."""
    server_error_ms_p99: float
    """The server's own deviation from `itl_ms`, which is not in the errors above."""
    kernel_stamp_share: float | None = None
    """The share of answers whose arrivals the kernel stamped."""
    joined_token_share: float | None = None
    """The share of tokens that were read together with a later one."""

    @property
    def valid(self) -> bool:
        """Whether the server kept up, so that the figures are the client's."""
        return self.offered_share >= OFFERED_SHARE

    @property
    def passes(self) -> bool:
        """Whether the client measures such a server correctly."""
        return self.valid and not self.faults

    @property
    def itl_limit_ms(self) -> float:
        return max(ITL_P99_MS, ITL_P99_SHARE * self.itl_ms)

    @property
    def faults(self) -> list[str]:
        """The figures beyond their limits, with both."""
        found = (
            (self.ttft_error_ms_mean > TTFT_MEAN_MS,
             f"mean TTFT {self.ttft_error_ms_mean:+.1f} ms (limit {TTFT_MEAN_MS:g})"),
            (self.ttft_error_ms_p99 > TTFT_P99_MS,
             f"p99 of the TTFT error {self.ttft_error_ms_p99:.1f} ms (limit {TTFT_P99_MS:g})"),
            (self.itl_error_ms_p99 > self.itl_limit_ms,
             f"p99 of the ITL error {self.itl_error_ms_p99:.1f} ms (limit {self.itl_limit_ms:g})"),
            (self.inflight_share < IN_FLIGHT_SHARE,
             f"{self.inflight_share:.1%} of B in flight (limit {IN_FLIGHT_SHARE:.1%})"),
            (self.served_share < IN_FLIGHT_SHARE,
             f"{self.served_share:.1%} of B at the server (limit {IN_FLIGHT_SHARE:.1%})"),
            (self.cpu_share > BUSY_SHARE, f"{self.cpu_share:.0%} of a core (limit {BUSY_SHARE:.0%})"),
        )  # fmt: skip
        return [sentence for beyond, sentence in found if beyond]


def _server_times(data: CellData) -> tuple[Ints, Ints]:
    """The server's times from the answers' text and `stop_reason`: when it read each request and sent each token (ns,
    entries as in CellData); -1 where an answer is not complete."""
    read_ns = np.full(len(data.exchanges), -1)
    token_ns = np.full(data.token_t_ns.size, -1)
    answers = zip(data.exchanges.text, data.exchanges.stop_reason, data.ok.tolist(), strict=True)
    for place, (text, stop_reason, ok) in enumerate(answers):
        first, end = data.token_offsets[place : place + 2]
        stamps = np.array(text.split(), dtype=np.int64)
        if ok and stamps.size == end - first and stop_reason is not None:
            read_ns[place] = int(stop_reason)
            token_ns[first:end] = stamps
    return read_ns, token_ns


def trial_of(data: CellData, transport: str, tokens_per_s: float, itl_ms: float, tokens: int) -> Trial:
    """The figures of a cell against the server of known timing. Raises ServerError where it has too few answers."""
    window = data.window
    assert window is not None
    window_ns = window[1] - window[0]
    read_ns, token_ns = _server_times(data)
    client, b = client_figures(data), data.cell.concurrency
    whole = (read_ns >= 0) & (np.diff(data.token_offsets) > 0)
    first, last = data.token_offsets[:-1][whole], data.token_offsets[1:][whole] - 1
    seen_s = latency.ttft_s(data.t_due_ns[whole], data.t_first_ns[whole])
    true_s = latency.ttft_s(read_ns[whole], token_ns[first])
    ttft_ms = 1e3 * (seen_s - true_s)[latency.inside(data.t_first_ns[whole], window)]
    inside = latency.inside(data.token_t_ns, window)
    seen_gap_s = latency.gaps_s(data.token_offsets, data.token_t_ns)
    true_gap_s = latency.gaps_s(data.token_offsets, token_ns)
    later = inside & (token_ns >= 0) & ~np.isnan(true_gap_s)
    gap_error_ms = 1e3 * np.abs(seen_gap_s - true_gap_s)[later]
    ticks = 1e3 * true_gap_s[later & _after_second(data, whole)]
    if not ttft_ms.size or not ticks.size:
        raise ServerError(f"no complete answer within the selftest's window of {window_ns / 1e9:g} s")
    arrived = int(inside.sum())
    return Trial(
        concurrency=b,
        workers=client.client_processes or 1,
        transport=transport,
        tokens_per_s_asked=tokens_per_s,
        itl_ms=itl_ms,
        answer_tokens=tokens,
        window_s=window_ns / 1e9,
        tokens_per_s=arrived / window_ns * 1e9,
        ttft_error_ms_mean=float(ttft_ms.mean()),
        ttft_error_ms_p99=float(np.percentile(ttft_ms, 99)),
        itl_error_ms_p99=float(np.percentile(gap_error_ms, 99)),
        inflight_share=latency.mean_in_flight(data.t_send_ns, data.t_end_ns, window) / b,
        served_share=latency.mean_in_flight(read_ns[whole], token_ns[last], window) / b,
        cpu_us_per_token=(client.client_cpu_cores or 0.0) * window_ns / 1e3 / arrived,
        cpu_share=client.client_cpu_share or 0.0,
        kernel_stamp_share=client.kernel_stamp_share,
        joined_token_share=client.joined_token_share,
        loop_lag_ms_p90=client.loop_lag_ms_p90,
        loop_lag_ms_p99=client.loop_lag_ms_p99,
        offered_share=float(itl_ms / ticks.mean()),
        server_error_ms_p99=float(np.percentile(np.abs(ticks - itl_ms), 99)),
    )


def _after_second(data: CellData, whole: Mask) -> Mask:
    """The tokens that come a tick after the one before: not an answer's first and second."""
    chosen = np.ones(data.token_t_ns.size, dtype=np.bool_)
    first = data.token_offsets[:-1][whole]
    chosen[first] = False
    chosen[np.minimum(first + 1, data.token_t_ns.size - 1)] = False
    return chosen
