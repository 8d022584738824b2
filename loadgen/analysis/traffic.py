"""Traffic: what an open loop offered in a cell's window, and what became of it.

Goodput: the requests that were answered in time.
"""

from __future__ import annotations

import msgspec
import numpy as np

from loadgen.analysis.celldata import CellData, Mask, of_window, tpot_by_request_s
from loadgen.load.latency import e2e_s, inside, ttft_s
from loadgen.load.openloop import LATE_NS
from loadgen.record.cell import Slo


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Columns of cells.csv; all None in a closed loop, all but the first two where there is no window.

    An arrival belongs to the window if it was due in it, whenever it was sent or answered.
    """

    arrival: str | None = None
    """As `--arrival` takes it."""
    rate_asked_per_s: float | None = None
    arrivals: int | None = None
    """Due in the window."""
    rate_per_s: float | None = None
    """Those that were sent before it closed, or no more than 5 ms after they were due, a second."""
    completed_per_s: float | None = None
    """Answers that ended in the window, whenever they were due, a second."""
    late: int | None = None
    """Sent more than 5 ms after they were due."""
    late_ms_p99: float | None = None
    """From due to sent."""
    dropped: int | None = None
    """Found as many requests in flight as `--concurrency` allows, and were never sent."""


def traffic_of(data: CellData) -> Traffic:
    """Of one cell."""
    arrivals, window = data.cell.arrivals, data.window
    if arrivals is None:
        return Traffic()
    if window is None or window[1] <= window[0]:
        return Traffic(arrival=str(arrivals), rate_asked_per_s=arrivals.rate_per_s)
    window_s = (window[1] - window[0]) / 1e9
    ours = of_window(data, window)
    sent = ours & ~data.dropped
    in_time = (data.t_send_ns <= window[1]) | (data.t_send_ns - data.t_due_ns <= LATE_NS)
    lateness_ns = (data.t_send_ns - data.t_due_ns)[sent]
    ended = data.ok & inside(data.t_end_ns, window)
    return Traffic(
        arrival=str(arrivals),
        rate_asked_per_s=arrivals.rate_per_s,
        arrivals=int(ours.sum()),
        rate_per_s=int((sent & in_time).sum()) / window_s,
        completed_per_s=int(ended.sum()) / window_s,
        late=int((lateness_ns > LATE_NS).sum()),
        late_ms_p99=float(np.percentile(lateness_ns, 99)) / 1e6 if lateness_ns.size else None,
        dropped=int((ours & data.dropped).sum()),
    )


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Columns of cells.csv; None without service level objectives or without a window."""

    good: int | None = None
    """Of the window's requests, those that keep every objective."""
    goodput_per_s: float | None = None
    goodput_share: float | None = None
    """Of all that belong to the window, failed and dropped ones too, 0 to 1."""
    energy_per_good_query_j: float | None = None
    """Energy of the window over `good`: what was spent on the others is paid for by the good ones."""


def goodput_of(data: CellData, slo: Slo | None, energy_j: float | None) -> Goodput:
    """Of one cell, `energy_j` that of its window."""
    window = data.window
    if slo is None or window is None or window[1] <= window[0]:
        return Goodput()
    ours = of_window(data, window)
    good, asked = int((ours & keeps(data, slo)).sum()), int(ours.sum())
    return Goodput(
        good=good,
        goodput_per_s=good / ((window[1] - window[0]) / 1e9),
        goodput_share=good / asked if asked else None,
        energy_per_good_query_j=energy_j / good if energy_j is not None and good else None,
    )


def keeps(data: CellData, slo: Slo) -> Mask:
    """Which requests were answered and keep every objective, one entry per exchange.

    Latencies begin when a request was due, in a closed loop when it was sent. An answer of one token has no time per
    output token and keeps any limit on it; one whose number of tokens is unknown keeps none. Whether an answer was
    cut off by its token limit, or is right, is not asked: it came in time.
    """
    good = data.ok.copy()
    for latency, limit_s in slo.limits_s:
        if latency == "ttft":
            good &= ttft_s(data.t_due_ns, data.t_first_ns) <= limit_s
        elif latency == "e2e":
            good &= e2e_s(data.t_due_ns, data.t_end_ns) <= limit_s
        else:
            short = (data.output_tokens >= 0) & (data.output_tokens <= 1)
            good &= short | (np.nan_to_num(tpot_by_request_s(data), nan=np.inf) <= limit_s)
    return good
