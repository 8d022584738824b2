"""Patience with stragglers: how long a cell waits for requests that take far longer than the others."""

from __future__ import annotations

from collections import deque
from statistics import median

import msgspec

from loadgen.client.exchange import STOPPED, Exchange

LEAST_S = 30.0
MEDIANS = 3.0
"""Without `--drain`: the larger of `LEAST_S` and so many times the median answer."""
FEWEST = 3
"""Answers that must have come before a request of the warm-up is given up: a server may be slow to begin."""
_REMEMBERED = 1000
"""Latest answers of which the median is taken."""


class Drain:
    """The limit, in seconds, by the answers so far."""

    def __init__(self, drain_s: float | None) -> None:
        self._drain_s = drain_s
        self._answers_s: deque[float] = deque(maxlen=_REMEMBERED)

    def add(self, exchange: Exchange) -> None:
        if exchange.status == "ok":
            self._answers_s.append((exchange.t_end_ns - exchange.t_send_ns) / 1e9)

    @property
    def known(self) -> bool:
        """Enough answers came to call a request slow in comparison."""
        return len(self._answers_s) >= FEWEST

    @property
    def limit_s(self) -> float:
        """`--drain`, else the larger of 30 s and three median answers."""
        if self._drain_s is not None:
            return self._drain_s
        return max(LEAST_S, MEDIANS * median(self._answers_s)) if self._answers_s else LEAST_S


def straggler(exchange: Exchange, limit_s: float, when: str) -> Exchange:
    """The row of a request that was given up, if this is one, saying after how long; any other row as it is."""
    if exchange.status != "broken" or exchange.error != STOPPED:
        return exchange
    waited_s = (exchange.t_end_ns - exchange.t_send_ns) / 1e9
    said = f"given up after {waited_s:.1f} s without a complete answer, {limit_s:.0f} s {when} (--drain)"
    return msgspec.structs.replace(exchange, status="timeout", error=said)
