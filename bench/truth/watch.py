"""Watch: what a client did, seen from outside: by the server's counters and the client's processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.truth.server import Case, Stats, TruthServer

POLL_S = 0.1
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Poll(msgspec.Struct, frozen=True):
    """One look at both: the server's account and the CPU time of the client's processes so far."""

    server: Stats
    client_cpu_s: float


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of the steady state."""

    seconds: float
    tokens_per_s: float
    answers_per_s: float
    in_flight: float
    client_cpu_us_per_token: float
    client_cores: float
    server_cores: float


class Watch:
    """Polls while the client runs; as a context."""

    def __init__(self, server: TruthServer, pid: int) -> None:
        self.polls: list[Poll] = []
        self._server = server
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            self.polls.append(Poll(self._server.stats(), cpu_s(self._pid)))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def steady(polls: Sequence[Poll], case: Case) -> Seen | None:
    """Between the second and the last B answers: without connecting, warming up and draining. None: too short a run.

    All clients begin with B answers of warm-up; in phase, B answers are one wave. Where waves can be told apart the
    interval has whole ones, from shortly after an end to shortly after another.
    """
    last = polls[-1].server.requests if polls else 0
    inside = [p for p in polls if 2 * case.concurrency <= p.server.requests <= last - case.concurrency]
    counts = [p.server.requests for p in inside]
    after_ends = [p for k, p in enumerate(inside) if k > 1 and counts[k - 2] < counts[k - 1] == counts[k]]
    edges = after_ends if len(after_ends) > 1 else inside
    if len(edges) < 2:
        return None
    a, b = edges[0], edges[-1]
    seconds = (b.server.t_ns - a.server.t_ns) / 1e9
    tokens = b.server.tokens - a.server.tokens
    client_cpu_s = b.client_cpu_s - a.client_cpu_s
    if not tokens:
        return None
    return Seen(
        seconds=seconds,
        tokens_per_s=tokens / seconds,
        answers_per_s=(b.server.requests - a.server.requests) / seconds,
        in_flight=(b.server.in_flight_s - a.server.in_flight_s) / seconds,
        client_cpu_us_per_token=client_cpu_s / tokens * 1e6,
        client_cores=client_cpu_s / seconds,
        server_cores=(b.server.cpu_s - a.server.cpu_s) / seconds,
    )


def cpu_s(pid: int) -> float:
    """CPU time of a process, its living descendants and those that they have waited for."""
    process = Path(f"/proc/{pid}")
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        children = [child for file in process.glob("task/*/children") for child in file.read_text().split()]
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS_PER_S + sum(cpu_s(int(child)) for child in children)
