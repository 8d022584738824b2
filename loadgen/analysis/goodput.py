"""Goodput: the requests that were answered in time."""

from __future__ import annotations

import msgspec
import numpy as np

from loadgen.analysis.celldata import CellData, Mask
from loadgen.analysis.latency import of_window, tpot_by_request_s
from loadgen.client.latency import e2e_s, ttft_s
from loadgen.sweep.slo import Slo


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
