"""OpenLoad: a cell's requests in an open loop, from the first warm-up to the last answer, in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic_ns

from loadgen.client.exchange import Exchange, Raw, Request, dropped, read_exchange
from loadgen.client.openloop import OpenLoop
from loadgen.client.pool import Slot
from loadgen.sweep.load import IDLE_S
from loadgen.sweep.observer import Arrived
from loadgen.sweep.schedule import Schedule


class OpenLoad:
    """Follows the schedule with at most `cap` requests in flight; `on_exchange` hears of every ended or dropped one.

    As in the closed loop bytes come first: one ended stream is parsed per turn of the event loop.
    """

    def __init__(
        self,
        make_slot: Callable[[int], Slot],
        cap: int,
        schedule: Schedule,
        on_exchange: Callable[[Exchange], None],
    ) -> None:
        self._cap = cap
        self._schedule = schedule
        self._on_exchange = on_exchange
        self._loop = OpenLoop(make_slot, cap, self._on_done, self._on_dropped)
        self._unread: deque[Raw | Exchange] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._sent_before_first_end: int | None = None
        self._ended = 0
        self._measured_over = 0
        self.completed = 0
        """Measured requests that were answered."""
        self.failures_in_a_row = 0

    def start(self) -> None:
        self._reader = asyncio.create_task(self._read_ended_streams())
        self._loop.follow(self._schedule.warmup(monotonic_ns()))

    def end_warmup(self) -> None:
        """The warm-up's traffic goes on until the window opens."""

    @property
    def steady(self) -> bool:
        """As many requests have ended as had been sent when the first of them ended: about two answers' time."""
        return self._sent_before_first_end is not None and self._ended >= self._sent_before_first_end

    def open_window(self, open_ns: int, close_ns: int | None) -> None:
        """From `open_ns` on measured requests, until `close_ns` or until as many as are asked were sent."""
        self._loop.follow(self._schedule.window(open_ns, close_ns))

    @property
    def owes(self) -> bool:
        """Requests of the closed window are still being answered; meanwhile the traffic goes on."""
        return self._measured_over < self._schedule.measured

    @property
    def dry_ns(self) -> int | None:
        """When the last of the requests that are asked was due; None: not yet."""
        return self._schedule.dry_ns

    @property
    def in_flight(self) -> int:
        return self._loop.in_flight

    @property
    def most_in_flight(self) -> int:
        """So far."""
        return self._loop.most_in_flight

    @property
    def arrived(self) -> Arrived:
        """What was offered so far, warm-up included."""
        return Arrived(sent=self._loop.sent, late=self._loop.late, dropped=self._loop.dropped)

    def stop_feeding(self) -> None:
        """No further requests; those in flight go on."""
        nothing: Iterator[Request] = iter(())
        self._loop.follow(nothing)

    async def drained(self) -> None:
        """Returns when nothing is in flight."""
        await self._loop.drained()

    async def close(self) -> None:
        """Gives up what is in flight, each as a row with status `broken`, and reads every ended stream."""
        self._loop.stop()
        await asyncio.sleep(0)
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        while self._unread:
            self._read_one()

    def _on_done(self, raw: Raw) -> None:
        failed = raw.failure is not None or raw.http_status != 200
        if self._sent_before_first_end is None:
            self._sent_before_first_end = self._loop.sent
        self._ended += 1
        if raw.request.phase == "measured":
            self._measured_over += 1
            self.completed += not failed
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        self._unread.append(raw)

    def _on_dropped(self, request: Request, now_ns: int) -> None:
        self._measured_over += request.phase == "measured"
        self._unread.append(dropped(request, now_ns, self._cap))

    async def _read_ended_streams(self) -> None:
        while True:
            if self._unread:
                self._read_one()
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(IDLE_S)

    def _read_one(self) -> None:
        ended = self._unread.popleft()
        self._on_exchange(ended if isinstance(ended, Exchange) else read_exchange(ended))
