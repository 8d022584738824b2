"""Load: a cell's requests from the first warm-up to the last answer; here in a closed loop.

Feed: which request a slot gets next. Drain: how long stragglers are waited for. ClientProbe: what the load costs this
process, and how late its event loop is.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from time import monotonic, monotonic_ns, process_time

import msgspec

from loadgen.bounds import Text
from loadgen.load.body import RequestMaker
from loadgen.load.closedloop import Backlog, ClosedLoop, Slot
from loadgen.load.exchange import STOPPED, Exchange, Raw, Request
from loadgen.load.openloop import Arrived, OpenLoop
from loadgen.power.sample import ClockOffset
from loadgen.workload.item import Item

PROBE_S = 0.02
_TICK_S = 0.001
"""uvloop's timers and clock."""


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True, tag="use"):
    """One process over its window."""

    cpu_s: float
    """CPU time of all its threads."""
    wall_s: float
    lag_ms_mean: float | None = None
    """How late its event loop came to a timer; None where no timer came due."""
    lag_ms_p50: float | None = None
    lag_ms_p90: float | None = None
    lag_ms_p99: float | None = None
    lag_ms_max: float | None = None


class ClientUse(msgspec.Struct, frozen=True, kw_only=True):
    """All processes that drove a cell's load, over its window, under the names that the journal has for it."""

    client_processes: int
    client_cpu_s: float
    client_cpu_share: float
    loop_lag_ms_mean: float | None
    loop_lag_ms_p50: float | None
    loop_lag_ms_p90: float | None
    loop_lag_ms_p99: float | None
    loop_lag_ms_max: float | None

    @classmethod
    def of(cls, uses: Sequence[ProcessUse], *, beside_s: float = 0.0) -> ClientUse:
        """CPU time is summed, and `beside_s` that of a process that sends no requests; the rest is the worst one's."""
        names = [name for name in ProcessUse.__struct_fields__ if name.startswith("lag_")]
        lags = {name: [lag for use in uses if (lag := getattr(use, name)) is not None] for name in names}
        return cls(
            client_processes=len(uses),
            client_cpu_s=sum(use.cpu_s for use in uses) + beside_s,
            client_cpu_share=max(use.cpu_s / use.wall_s for use in uses),
            **{f"loop_{name}": max(found, default=None) for name, found in lags.items()},
        )


class ClientNode(msgspec.Struct, frozen=True, kw_only=True):
    """The node of a cluster on which a client process ran, and its clock over the whole cell."""

    name: Text
    clock: ClockOffset


class ClientProbe:
    """Watches its own process until `close`.

    A timer is due every `period_s`, on an absolute schedule: a loop that is held up misses several, and each counts
    with its own lateness. So the lateness is how long bytes that arrive at any instant wait for their stamp. On uvloop
    timers tick in milliseconds.
    """

    def __init__(self, period_s: float = PROBE_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._period_s = period_s
        self._lags_s: list[float] = []
        self._cpu_before_s, self._opened_s = process_time(), monotonic()
        self._due_s = self._loop.time() + period_s
        self._timer = self._loop.call_at(self._due_s, self._tick)

    def close(self) -> ProcessUse:
        """What was seen since the probe was made."""
        self._timer.cancel()
        lags_ms = [lag_s * 1e3 for lag_s in sorted(self._lags_s)]
        return ProcessUse(
            cpu_s=process_time() - self._cpu_before_s,
            wall_s=monotonic() - self._opened_s,
            lag_ms_mean=fmean(lags_ms) if lags_ms else None,
            lag_ms_p50=_quantile(lags_ms, 0.5),
            lag_ms_p90=_quantile(lags_ms, 0.9),
            lag_ms_p99=_quantile(lags_ms, 0.99),
            lag_ms_max=lags_ms[-1] if lags_ms else None,
        )

    def _tick(self) -> None:
        now_s = self._loop.time()
        while self._due_s < now_s + _TICK_S / 2:
            self._lags_s.append(max(0.0, now_s - self._due_s))
            self._due_s += self._period_s
        self._timer = self._loop.call_at(self._due_s, self._tick)


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None


OnExchange = Callable[[Exchange], None]


class Share(msgspec.Struct, frozen=True):
    """Which of a cell's slots and items one process has: every `of`-th, from `first` on."""

    first: int = 0
    of: int = 1

    def slots(self, concurrency: int) -> range:
        """The numbers of its slots; the processes of a cell have B together, and none has two more than another."""
        return range(self.first, concurrency, self.of)


WHOLE = Share()


class Feed:
    """Warm-up requests, then the items in their order, over and over, until `stop` or until `limit` were given out.

    Each process gives out the items of its share; together they give out every item as often as one process would.

    The first warm-up request of slot k asks for (k+1)/B of the token limit: the slots' ends spread over one answer
    time, and refills do not arrive in bursts. Slots change over to measured items one by one, without a drain.
    """

    def __init__(
        self,
        maker: RequestMaker,
        items: Sequence[Item],
        warmup_items: Sequence[Item],
        concurrency: int,
        limit: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        self._maker = maker
        self._items = items
        self._warmup_items = warmup_items
        self._concurrency = concurrency
        self._warmups_sent = dict.fromkeys(share.slots(concurrency), 0)
        self.limit = limit
        self._step = share.of
        self._next_item = share.first
        self.warm = False
        """Set when the warm-up time is over: slots that had a warm-up request get measured items."""
        self.dry_ns: int | None = None
        """When a slot first asked for a request and none was left."""
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def next_request(self, slot: int) -> Request | None:
        if self._stopped:
            return None
        sent = self._warmups_sent[slot]
        if sent == 0 or not self.warm:
            self._warmups_sent[slot] += 1
            item = self._warmup_items[(slot + sent * self._concurrency) % len(self._warmup_items)]
            return self._maker.warmup(item, 1.0 if sent else (slot + 1) / self._concurrency)
        if self.limit is not None and self._next_item >= self.limit:
            self.dry_ns = self.dry_ns or monotonic_ns()
            return None
        item = self._items[self._next_item % len(self._items)]
        self._next_item += self._step
        return self._maker.measured(item)


LEAST_S = 30.0
MEDIANS = 3.0
"""Without `--drain`: the larger of `LEAST_S` and so many times the median answer."""
FEWEST = 3
"""Answers that must have come before a request of the warm-up is given up: a server may be slow to begin."""
_REMEMBERED = 1000
"""Latest answers of which the median is taken."""


class Drain:
    """How long stragglers are waited for, by the answers so far."""

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
    """The row of a request that was given up, if this is one, saying after how long; any other row unchanged."""
    if exchange.status != "broken" or exchange.error != STOPPED:
        return exchange
    waited_s = (exchange.t_end_ns - exchange.t_send_ns) / 1e9
    error = f"given up after {waited_s:.1f} s without a complete answer, {limit_s:.0f} s {when} (--drain)"
    return msgspec.structs.replace(exchange, status="timeout", error=error)


class Load(ABC):
    """Keeps a cell's load up, in this process or in others, and hands every ended request to `on_exchange`."""

    def __init__(self, on_exchange: OnExchange, drain_s: float | None) -> None:
        """`drain_s`: as `--drain` gives it."""
        self._on_exchange = on_exchange
        self._drain_s = drain_s
        self._drain = Drain(drain_s)
        self._overdue_s: float | None = None
        """The limit of the drain, once it was over before the last answer."""
        self.completed = 0
        """Measured requests that were answered."""
        self.failures_in_a_row = 0

    @property
    def failure(self) -> str | None:
        """Why the load itself, not the server, cannot go on."""
        return None

    @property
    @abstractmethod
    def steady(self) -> bool:
        """The window may open: every slot is being answered for a measured item, or has had one answered; in an open
        loop the warm-up's traffic has filled the server."""

    @property
    @abstractmethod
    def dry_ns(self) -> int | None:
        """When a slot first found no item left to ask, or an open loop's last one was due; None: not yet."""

    @property
    @abstractmethod
    def in_flight(self) -> int: ...

    @property
    def arrived(self) -> Arrived | None:
        """What an open loop offered so far; None in a closed loop."""
        return None

    @property
    @abstractmethod
    def use(self) -> ClientUse | None:
        """What the client's processes spent between `open_window` and `close_window`; known after `close`."""

    @property
    def nodes(self) -> tuple[ClientNode, ...]:
        """Of each client process that another node runs; known after `close`."""
        return ()

    async def prepare(self) -> None:  # noqa: B027
        """Returns when `start` can send at once, or `failure` says why it never will."""

    @abstractmethod
    def start(self) -> None: ...

    def end_warmup(self) -> None:  # noqa: B027
        """From now on slots that had a warm-up request get measured items; an open loop waits for the window."""

    @abstractmethod
    def open_window(self, open_ns: int, close_ns: int | None) -> None:
        """It opens at `open_ns`, which is now, and will close at `close_ns`; None: when all requests were sent."""

    @abstractmethod
    def close_window(self) -> None:
        """Nothing more is measured but what a limit of requests still owes, and an open loop's traffic cools down."""

    @abstractmethod
    def stop_feeding(self) -> None:
        """No further requests; those in flight go on."""

    @abstractmethod
    async def idle(self) -> None:
        """Returns when nothing is in flight."""

    async def drained(self) -> None:
        """Returns when nothing is in flight, or has been for longer than the drain's limit: `close` gives that up."""
        idle, begun_ns = asyncio.create_task(self.idle()), monotonic_ns()
        while not (await asyncio.wait([idle], timeout=0.1))[0]:
            if (monotonic_ns() - begun_ns) / 1e9 > self._drain.limit_s:
                self._overdue_s = self._drain.limit_s
                self.stop_feeding()
                return

    @abstractmethod
    async def close(self) -> None:
        """Gives up what is in flight, each as a row with status `broken` or `timeout`, and reads every ended stream."""

    def _ended(self, exchange: Exchange) -> None:
        if self._overdue_s is not None:
            exchange = straggler(exchange, self._overdue_s, "after the window")
        self._drain.add(exchange)
        if exchange.status != "dropped":
            answered = exchange.status == "ok"
            self.failures_in_a_row = 0 if answered else self.failures_in_a_row + 1
            self.completed += answered and exchange.phase == "measured"
        self._on_exchange(exchange)


class LocalLoad(Load):
    """The load of one process, on its running event loop."""

    _loop: ClosedLoop | OpenLoop

    def __init__(self, on_exchange: OnExchange, drain_s: float | None = None) -> None:
        super().__init__(on_exchange, drain_s)
        self._backlog = Backlog(self._ended)
        self._reader: asyncio.Task[None] | None = None
        self._probe: ClientProbe | None = None
        self.process_use: ProcessUse | None = None

    @property
    def in_flight(self) -> int:
        return self._loop.in_flight

    @property
    def use(self) -> ClientUse | None:
        return ClientUse.of([self.process_use]) if self.process_use is not None else None

    def start(self) -> None:
        self._reader = asyncio.create_task(self._backlog.read_on())

    def open_window(self, open_ns: int, close_ns: int | None) -> None:
        self._probe = ClientProbe()

    def close_window(self) -> None:
        if self._probe is not None:
            self.process_use, self._probe = self._probe.close(), None

    async def close(self) -> None:
        self._loop.stop()
        await asyncio.sleep(0)
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        self._backlog.read_all()


class ClosedLoad(LocalLoad):
    """A load that keeps every slot busy."""

    _loop: ClosedLoop

    def __init__(
        self, slots: Mapping[int, Slot], feed: Feed, on_exchange: OnExchange, drain_s: float | None = None
    ) -> None:
        super().__init__(on_exchange, drain_s)
        self._feed = feed
        self._loop = ClosedLoop(slots, feed.next_request, self._on_done)
        self._not_steady = set(slots)
        self._closing = False

    @property
    def steady(self) -> bool:
        """Until it is, requests that take far longer than others did are given up; their slots go on with the next."""
        self._not_steady = {slot for slot in self._not_steady if not self._on_measured_item(slot)}
        if self._not_steady and self._drain.known:
            limit_s = self._drain.limit_s
            for slot in [slot for slot in self._not_steady if self._loop.in_flight_s(slot) > limit_s]:
                self._loop.give_up(slot)
        return not self._not_steady

    @property
    def dry_ns(self) -> int | None:
        return self._feed.dry_ns

    def start(self) -> None:
        super().start()
        self._loop.start()

    def end_warmup(self) -> None:
        self._feed.warm = True

    def close_window(self) -> None:
        super().close_window()
        if self._feed.limit is None:
            self._feed.stop()

    def stop_feeding(self) -> None:
        self._feed.stop()

    async def idle(self) -> None:
        await self._loop.drained()

    async def close(self) -> None:
        self._closing = True
        await super().close()

    def _on_measured_item(self, slot: int) -> bool:
        request = self._loop.current(slot)
        return request is not None and request.phase == "measured" and self._loop.answering(slot)

    def _on_done(self, raw: Raw) -> None:
        """Called after the slot was refilled: note the end, read the stream later."""
        if raw.request.phase == "measured":
            self._not_steady.discard(raw.slot)
        self._backlog.add(raw)

    def _ended(self, exchange: Exchange) -> None:
        if exchange.status == "broken" and not self._closing:
            exchange = straggler(exchange, self._drain.limit_s, "is the limit of the warm-up")
        super()._ended(exchange)
