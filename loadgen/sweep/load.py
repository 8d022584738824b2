"""Load: a cell's requests from the first warm-up to the last answer, in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from loadgen.client.exchange import Exchange, Raw, read_exchange
from loadgen.client.pool import ClosedLoop, Slot
from loadgen.sweep.feed import Feed
from loadgen.sweep.observer import Arrived

IDLE_S = 0.005
"""How long the reader of ended streams sleeps when there is none."""


class Load:
    """Keeps B slots busy with what the feed gives; `on_exchange` hears of every ended request, a turn or more later.

    Bytes come first: one ended stream is parsed per turn of the event loop, so that what arrives meanwhile waits for
    one parse at most.
    """

    def __init__(self, slots: Sequence[Slot], feed: Feed, on_exchange: Callable[[Exchange], None]) -> None:
        self._feed = feed
        self._on_exchange = on_exchange
        self._pool = ClosedLoop(slots, feed.next_request, self._on_done)
        self._unread: deque[Raw] = deque()
        self._measured_ends = [0] * len(slots)
        self._reader: asyncio.Task[None] | None = None
        self.completed = 0
        """Measured requests that were answered."""
        self.failures_in_a_row = 0

    def start(self) -> None:
        self._reader = asyncio.create_task(self._read_ended_streams())
        self._pool.start()

    def end_warmup(self) -> None:
        """From now on slots that had a warm-up request get measured items."""
        self._feed.warm = True

    @property
    def steady(self) -> bool:
        """Every slot is being answered for a measured item, or has had one answered."""
        return all(self._on_measured_item(slot) for slot in range(len(self._measured_ends)))

    def open_window(self, open_ns: int, close_ns: int | None) -> None:
        """Nothing changes: slots have gone over to measured items one by one."""

    @property
    def owes(self) -> bool:
        """Whether requests of the closed window must be awaited under load; here what ends later is in no figure."""
        return False

    @property
    def most_in_flight(self) -> int:
        return len(self._measured_ends)

    @property
    def arrived(self) -> Arrived | None:
        """None: nothing arrives, slots are refilled."""
        return None

    @property
    def dry_ns(self) -> int | None:
        """When a slot first found no item left to ask; None: not yet."""
        return self._feed.dry_ns

    @property
    def in_flight(self) -> int:
        return self._pool.in_flight

    def stop_feeding(self) -> None:
        """No further requests; those in flight go on."""
        self._feed.stop()

    async def drained(self) -> None:
        """Returns when nothing is in flight."""
        await self._pool.drained()

    async def close(self) -> None:
        """Gives up what is in flight, each as a row with status `broken`, and reads every ended stream."""
        self._pool.stop()
        await asyncio.sleep(0)
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        while self._unread:
            self._read_one()

    def _on_measured_item(self, slot: int) -> bool:
        if self._measured_ends[slot]:
            return True
        request = self._pool.current(slot)
        return request is not None and request.phase == "measured" and self._pool.answering(slot)

    def _on_done(self, raw: Raw) -> None:
        """Called after the slot was refilled: note the end, read the stream later."""
        failed = raw.failure is not None or raw.http_status != 200
        if raw.request.phase == "measured":
            self._measured_ends[raw.slot] += 1
            if not failed:
                self.completed += 1
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        self._unread.append(raw)

    async def _read_ended_streams(self) -> None:
        while True:
            if self._unread:
                self._read_one()
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(IDLE_S)

    def _read_one(self) -> None:
        self._on_exchange(read_exchange(self._unread.popleft()))
