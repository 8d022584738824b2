"""Traffic: what an open loop offered in a cell's window, and what became of it."""

from __future__ import annotations

import msgspec
import numpy as np

from loadgen.analysis.celldata import CellData
from loadgen.analysis.latency import of_window
from loadgen.client.latency import inside
from loadgen.client.openloop import LATE_NS


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
