"""LiveWindow: figures of one cell between its first and its last glance inside the window."""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter

import msgspec

from loadgen.client.exchange import Exchange
from loadgen.client.latency import exchange_tpot_s, exchange_ttft_s
from loadgen.sweep.observer import Progress


class LiveFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a cell came to, as seen while it ran; None is 'not measured'. The run directory has the final figures."""

    running: float | None
    """Mean of the server's gauge at the glances. Few glances at a low B: it stands a step per answer too low."""
    running_peak: float | None
    """Most that the gauge showed: below B the server caps the batch."""
    tokens_per_s: float | None
    power_w: float | None
    """Mean of the power at the glances, the target's GPUs together."""
    energy_per_token_j: float | None
    energy_per_query_j: float | None
    """Energy per token times the mean tokens of the measured answers, those of the drain included."""
    ttft_s: float | None
    tpot_s: float | None
    accuracy: float | None


class LiveWindow:
    """Hears a cell's glances and ended requests.

    Tokens count by their own arrival between two glances (about four a second), so that the figures' window is the
    cell's less the pieces before the first and behind the last of them.
    """

    def __init__(self) -> None:
        self._open_ns: int | None = None
        self._close_ns = 0
        self._inside = 0
        self._later = 0
        """Tokens that came behind the last glance; they count once another one follows inside the window."""
        self._lengths = _Mean()
        self._ttft = _MeanInside()
        self._tpot = _MeanInside()
        self._running = _Mean()
        self._watts = _Mean()
        self._last: Progress | None = None

    def glance(self, progress: Progress, now_ns: int) -> None:
        """One glance; `now_ns` is when it was taken, on the clock of the exchanges."""
        self._last = progress
        if progress.stage != "window":
            return
        if self._open_ns is None:
            self._open_ns = now_ns
        self._close_ns = now_ns
        self._inside, self._later = self._inside + self._later, 0
        self._ttft.glance(now_ns)
        self._tpot.glance(now_ns)
        if progress.running is not None:
            self._running.add(progress.running)
        if progress.power_w is not None:
            self._watts.add(progress.power_w)

    def answered(self, exchange: Exchange) -> None:
        """One ended request."""
        if exchange.status == "ok" and exchange.phase == "measured" and exchange.output_tokens is not None:
            self._lengths.add(exchange.output_tokens)
        if self._open_ns is None:
            return
        if exchange.status == "ok" and exchange.phase == "measured":
            due_ns = exchange.t_scheduled_ns
            first_ns = due_ns if due_ns is not None else exchange.t_first_ns
            self._ttft.add(first_ns, exchange_ttft_s(exchange))
            self._tpot.add(due_ns if due_ns is not None else exchange.t_end_ns, exchange_tpot_s(exchange))
        times = exchange.token_times
        first = bisect_right(times, self._open_ns, key=itemgetter(0))
        later = bisect_right(times, self._close_ns, key=itemgetter(0))
        self._inside += sum([tokens for _, tokens in times[first:later]])
        self._later += sum([tokens for _, tokens in times[later:]])

    def figures(self) -> LiveFigures:
        """The figures, once the cell has ended."""
        window_s = (self._close_ns - self._open_ns) / 1e9 if self._open_ns is not None else 0.0
        rate = self._inside / window_s if window_s and self._inside else None
        watts = self._watts.value
        per_token_j = watts / rate if watts is not None and rate else None
        length = self._lengths.value
        last = self._last
        return LiveFigures(
            running=self._running.value,
            running_peak=self._running.largest,
            tokens_per_s=rate,
            power_w=watts,
            energy_per_token_j=per_token_j,
            energy_per_query_j=per_token_j * length if per_token_j is not None and length is not None else None,
            ttft_s=self._ttft.mean.value,
            tpot_s=self._tpot.mean.value,
            accuracy=last.accuracy if last else None,
        )


class _Mean:
    """Mean and largest of what was added; takes the same room for a cell of a minute and of a day."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = 0.0
        self.largest: float | None = None

    def add(self, value: float) -> None:
        self._count += 1
        self._sum += value
        self.largest = value if self.largest is None else max(self.largest, value)

    @property
    def value(self) -> float | None:
        return self._sum / self._count if self._count else None


class _MeanInside:
    """Mean of what happened between the first glance and the last; what came later waits for another glance."""

    def __init__(self) -> None:
        self.mean = _Mean()
        self._open_ns = self._close_ns = -1
        self._later: list[tuple[int, float]] = []

    def glance(self, now_ns: int) -> None:
        if self._open_ns < 0:
            self._open_ns = now_ns
        self._close_ns = now_ns
        for t_ns, value in self._later:
            if t_ns <= now_ns:
                self.mean.add(value)
        self._later = [(t_ns, value) for t_ns, value in self._later if t_ns > now_ns]

    def add(self, t_ns: int | None, value: float | None) -> None:
        if t_ns is None or value is None or t_ns <= self._open_ns:
            return
        if t_ns <= self._close_ns:
            self.mean.add(value)
        else:
            self._later.append((t_ns, value))
