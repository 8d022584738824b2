"""When a cell's figures may be believed; every limit stands here, the client's own in `analysis.client`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from loadgen.analysis.traffic import Traffic
from loadgen.sweep.config import MAX_ERROR_RATE

RUNNING_SHARE = 0.97
"""Least measured running batch (and in-flight requests), as a share of B."""
WAITING_SHARE = 0.03
"""Most requests waiting in the server's queue on average, as a share of B."""
UNCOUNTED_RATE = 0.005
"""Most answers without usage, as a share of the window's: their tokens are missing in its rate."""
SILENT_S = 3.0
SILENT_SHARE = 0.25
"""Longest stretch of the window without an answer of /metrics; the share counts where it is more than the seconds."""
TOKEN_MISMATCH = 0.01
"""Most difference between the server's token count and the recorded requests': beyond it, somebody else asks too."""
LATE_SHARE = 0.05
"""Most arrivals of an open loop that were sent late (one may be)."""
LATE_TAIL = 0.01
"""From here on p99 holds the client's lateness, and the report warns."""
SENT_SHARE = 0.97
"""Least arrivals sent before the window closed, of those that were not dropped."""
DROPPED_SHARE = 0.01
"""Most arrivals that found no free slot: with more, p99 is unknown."""
BACKLOG_SHARE = 0.05
"""Most that arrivals may exceed answers by, over a window, before the server is behind for good ..."""
BACKLOG_NOISE = 3.0
"""... and that in standard deviations of what they differ by while it keeps up: that of two counts in flight."""

CLIENT_BOUND = "client-bound: "
"""How the reasons begin that hold the client to be what was measured."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a verdict on a cell rests on; None is 'not measured'."""

    concurrency: int
    aborted: str | None
    has_window: bool
    requests: int
    errors: int
    """Requests that were in flight within the window and failed."""
    uncounted: int
    """Of `requests`, those without token usage."""
    first_error: str | None
    tokens_per_s: float | None
    inflight_mean: float | None
    running_mean: float | None
    running_peak: float | None
    """Most sequences that the server's gauge showed at once."""
    silent_s: float | None
    """Longest time within the window in which /metrics was not read."""
    restarted: bool
    """The server's counters went back within the cell."""
    waiting_mean: float | None
    preemptions: float | None
    server_tokens: float | None
    recorded_tokens: int | None
    """None where some request failed and its tokens are unknown."""
    window_s: float | None
    traffic: Traffic | None = None
    """None in a closed loop."""
    client_bound: tuple[str, ...] = ()
    """What says that the client, not the server, was measured."""
    max_error_rate: float = MAX_ERROR_RATE


def reasons_against(e: Evidence) -> list[str]:
    """Why the cell is invalid, a sentence each with its figures; empty: valid."""
    if not e.has_window:
        return [e.aborted or "interrupted before the window opened"]
    reasons = [e.aborted] if e.aborted else []
    if e.restarted:
        reasons.append("the server's counters went back: it was restarted within the cell")
    if e.errors > e.max_error_rate * (e.requests + e.errors):
        reasons.append(f"{e.errors} of {e.requests + e.errors} requests failed, the first: {e.first_error}")
    if e.requests == 0:
        reasons.append(
            "no request ended within the window; make --duration longer"
            if e.traffic is None
            else "no request of the window was answered"
        )
    elif e.uncounted == e.requests:
        reasons.append("the server reports no token usage in its streams")
    elif e.tokens_per_s is None:
        reasons.append("not one token arrived within the window")
    elif e.uncounted > UNCOUNTED_RATE * e.requests:
        reasons.append(f"{e.uncounted} of {e.requests} answers came without token usage")
    if e.running_mean is None:
        reasons.append("running batch not measured: the server gives no vllm:num_requests_running at /metrics")
    reasons += _batch_was_not_held(e) if e.traffic is None else _traffic_was_not_met(e, e.traffic)
    reasons += [f"{CLIENT_BOUND}{sentence}" for sentence in e.client_bound]
    if e.silent_s is not None and e.silent_s > max(SILENT_S, SILENT_SHARE * (e.window_s or 0.0)):
        reasons.append(f"the server gave no /metrics for {e.silent_s:.1f} s of the window")
    if e.server_tokens is not None and e.recorded_tokens is not None:
        off = abs(e.server_tokens - e.recorded_tokens)
        if off > TOKEN_MISMATCH * max(e.server_tokens, 1.0):
            reasons.append(
                f"the server made {e.server_tokens:.0f} tokens, these requests got {e.recorded_tokens}: "
                "is somebody else using it?"
            )
    return reasons


def _batch_was_not_held(e: Evidence) -> list[str]:
    reasons, b = [], e.concurrency
    if e.inflight_mean is not None and e.inflight_mean < RUNNING_SHARE * b:
        whose = "" if e.errors else CLIENT_BOUND
        reasons.append(f"{whose}only {e.inflight_mean:.2f} of {b} requests were in flight")
    if e.running_mean is not None and e.running_mean < RUNNING_SHARE * b:
        reasons.append(f"running batch {e.running_mean:.2f} did not reach B = {b}" + _cause(e))
    if e.waiting_mean is not None and e.waiting_mean > WAITING_SHARE * b:
        reasons.append(f"{e.waiting_mean:.2f} requests waited in the server's queue on average")
    if e.preemptions:
        reasons.append(f"{e.preemptions:.0f} preemptions: the KV cache is too small for B = {b}")
    return reasons


def _traffic_was_not_met(e: Evidence, t: Traffic) -> list[str]:
    """Queues, preemptions and any batch belong to an open loop; a client or a server that falls behind does not."""
    if None in (t.arrivals, t.late, t.dropped, t.rate_per_s, t.completed_per_s, e.window_s):
        return []
    assert t.arrivals is not None and t.late is not None and t.dropped is not None and e.window_s is not None
    assert t.rate_per_s is not None and t.completed_per_s is not None
    reasons = []
    sent = t.arrivals - t.dropped
    if t.late > max(1, LATE_SHARE * sent):
        reasons.append(f"{CLIENT_BOUND}{_lateness(t)}, and {LATE_SHARE:.0%} may be")
    if t.rate_per_s * e.window_s < SENT_SHARE * sent:
        reasons.append(
            f"{CLIENT_BOUND}{t.rate_per_s:.4g} of {sent / e.window_s:.4g} requests a second were sent in the window"
        )
    if t.dropped > DROPPED_SHARE * t.arrivals:
        reasons.append(
            f"{t.dropped} of {t.arrivals} arrivals were dropped, with {e.concurrency} requests in flight: "
            + ("the server cannot keep up" if _queues(e) else "raise --concurrency, or the server cannot keep up")
            + f" with {t.rate_asked_per_s:.4g} a second"
        )
    behind = sent - t.completed_per_s * e.window_s
    noise = BACKLOG_NOISE * math.sqrt(2 * (1 + (e.inflight_mean or 0.0)))
    if behind > max(BACKLOG_SHARE * t.arrivals, noise):
        reasons.append(
            f"the server cannot keep up with {t.rate_asked_per_s:.4g} requests a second: it answered "
            f"{t.completed_per_s:.4g}, and {behind:.0f} more were in flight at the window's end than at its beginning"
        )
    return reasons


def late_tail(t: Traffic) -> str | None:
    """A warning of a client that was late often enough to be in p99."""
    if t.arrivals is None or not t.late or t.late <= max(1, LATE_TAIL * (t.arrivals - (t.dropped or 0))):
        return None
    return f"{_lateness(t)}: p99 latencies hold the client's lateness"


def _lateness(t: Traffic) -> str:
    sent = (t.arrivals or 0) - (t.dropped or 0)
    return f"{t.late} of {sent} requests were sent more than 5 ms after they were due (p99 {t.late_ms_p99:.1f} ms)"


def _queues(e: Evidence) -> bool:
    return e.waiting_mean is not None and e.waiting_mean > WAITING_SHARE * e.concurrency


def max_error_rate(config: Mapping[str, Any]) -> float:
    """Of a manifest's config; those of earlier versions have none."""
    return float(config.get("max_error_rate", MAX_ERROR_RATE))


def answers_stand(answers: int, errors: int, max_error_rate: float = MAX_ERROR_RATE) -> bool:
    """Whether a cell's answers may be graded: `errors` of so many failed. Batch and energy do not enter into it."""
    return answers > 0 and errors <= max_error_rate * answers


def _cause(e: Evidence) -> str:
    if _queues(e) and (e.running_peak is None or e.running_peak < RUNNING_SHARE * e.concurrency):
        return ": the server caps it (--max-num-seqs, or KV cache)"
    return ": the server was slow to take up new requests (a stall, or answers so short that every refill shows)"
