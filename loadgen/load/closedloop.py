"""ClosedLoop: B slots, each sending its next request as soon as its last answer is complete.

Backlog: ended streams that wait to be read, and rows of requests that were never sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic_ns
from typing import Protocol

from loadgen.bounds import free_memory_bytes
from loadgen.load.exchange import Exchange, Raw, Request, read_exchange

FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 2.0
REFILLS_NS = 2_000_000
"""How long slots are refilled before what arrived meanwhile is read: a token that waits until a later one of its stream
is there gets that one's stamp."""


class Slot(Protocol):
    """A transport's end for one request at a time."""

    def send(self, request: Request, done: Callable[[Raw], None]) -> None: ...

    @property
    def answering(self) -> bool: ...

    def close(self) -> None: ...


class ClosedLoop:
    """Keeps every slot, by its number, busy as long as `next_request(slot)` gives a request.

    Where many answers end together, what arrives meanwhile is read between the refills. A slot whose request failed
    waits before its next one: 50 ms, doubled up to 2 s while it keeps failing, so that a dead server is not flooded.
    `on_done` sees each finished stream after the slot has been refilled.
    """

    def __init__(
        self,
        slots: Mapping[int, Slot],
        next_request: Callable[[int], Request | None],
        on_done: Callable[[Raw], None],
    ) -> None:
        self._slots = slots
        self._next_request = next_request
        self._on_done = on_done
        self._failures = dict.fromkeys(slots, 0)
        self._current: dict[int, Request | None] = dict.fromkeys(slots)
        self._since_ns = dict.fromkeys(slots, 0)
        self.in_flight = 0
        self._waiting: dict[int, asyncio.TimerHandle] = {}
        self._ended: deque[Raw] = deque()
        self._until_ns: int | None = None
        """When this turn of the event loop has refilled for long enough; None: it has refilled nothing."""
        self._idle = asyncio.Event()
        self._stopped = False

    def start(self) -> None:
        for slot in self._slots:
            self._refill(slot)

    def current(self, slot: int) -> Request | None:
        """The request in flight on a slot."""
        return self._current[slot]

    def in_flight_s(self, slot: int) -> float:
        """How long a slot's request has been in flight; 0 without one."""
        return 0.0 if self._current[slot] is None else (monotonic_ns() - self._since_ns[slot]) / 1e9

    def give_up(self, slot: int) -> None:
        """The slot's request ends now, as a failure; the slot continues with its next one."""
        self._slots[slot].close()

    def answering(self, slot: int) -> bool:
        """The slot's request in flight has begun to be answered."""
        return self._slots[slot].answering

    async def drained(self) -> None:
        """Returns when no slot is busy, which `next_request` decides by giving None."""
        await self._idle.wait()

    def stop(self) -> None:
        """Give up what is in flight at once; each such request ends as a row with status `broken`."""
        self._stopped = True
        for handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()
        for slot in self._slots.values():
            slot.close()
        while self._ended:
            self._on_done(self._ended.popleft())
        self._check_idle()

    def _refill(self, slot: int) -> None:
        self._waiting.pop(slot, None)
        request = None if self._stopped else self._next_request(slot)
        if request is None:
            self._check_idle()
            return
        self._current[slot] = request
        self._since_ns[slot] = monotonic_ns()
        self.in_flight += 1
        self._slots[slot].send(request, self._finished)

    def _finished(self, raw: Raw) -> None:
        slot = raw.slot
        self._current[slot] = None
        self.in_flight -= 1
        if raw.failure is None and raw.http_status == 200:
            self._failures[slot] = 0
            self._ended.append(raw)
            self._refill_ended()
            return
        self._failures[slot] += 1
        delay_s = min(FIRST_BACKOFF_S * 2 ** min(self._failures[slot] - 1, 10), LONGEST_BACKOFF_S)
        if not self._stopped:
            self._waiting[slot] = asyncio.get_running_loop().call_later(delay_s, self._refill, slot)
        self._on_done(raw)
        self._check_idle()

    def _refill_ended(self) -> None:
        """At least one slot in a turn of the event loop, and more for `REFILLS_NS`."""
        until_ns = self._until_ns
        if until_ns is None:
            until_ns = self._until_ns = monotonic_ns() + REFILLS_NS
            asyncio.get_running_loop().call_soon(self._end_turn)
        elif monotonic_ns() >= until_ns:
            return
        while self._ended:
            raw = self._ended.popleft()
            self._refill(raw.slot)
            self._on_done(raw)
            if monotonic_ns() >= until_ns:
                break
        self._check_idle()

    def _end_turn(self) -> None:
        """What has arrived was read since the turn began."""
        self._until_ns = None
        if self._ended:
            self._refill_ended()

    def _check_idle(self) -> None:
        if not self._waiting and not self._ended and not self.in_flight:
            self._idle.set()


GATHERED_S = 0.005
"""How long the reader waits after the first end of some: what ends then may end together."""
READ_NS = 200_000
"""How long streams are read in a turn of the event loop: a few, which is cheaper than one after a pause."""
MOST_BYTES = 4 << 30


class Backlog:
    """Reads ended streams in their order and hands each on, a turn of the event loop or more after its end.

    Bytes come first: a stream is read in a turn, and more for `READ_NS`, so that what arrives meanwhile waits for that
    and one parse at most. Where streams end faster than that, they wait in memory; from `most_bytes` on reading comes
    first.
    """

    def __init__(self, on_exchange: Callable[[Exchange], None], most_bytes: int | None = None) -> None:
        """Without `most_bytes`: a quarter of the memory that is free now, at most 4 GiB."""
        self._on_exchange = on_exchange
        self._most_bytes = min(free_memory_bytes() // 4, MOST_BYTES) if most_bytes is None else most_bytes
        self._unread: deque[Raw | Exchange] = deque()
        self._unread_bytes = 0
        self._added = asyncio.Event()

    def __len__(self) -> int:
        return len(self._unread)

    def add(self, ended: Raw | Exchange) -> None:
        self._unread.append(ended)
        self._unread_bytes += _size_bytes(ended)
        self._added.set()

    async def read_on(self) -> None:
        """Reads what comes, until it is cancelled."""
        while True:
            if not self._unread:
                self._added.clear()
                await self._added.wait()
                await asyncio.sleep(GATHERED_S)
            until_ns = monotonic_ns() + READ_NS
            self._read_one()
            while self._unread and (self._unread_bytes > self._most_bytes or monotonic_ns() < until_ns):
                self._read_one()
            await asyncio.sleep(0)

    def read_all(self) -> None:
        """Reads what waits, now."""
        while self._unread:
            self._read_one()

    def _read_one(self) -> None:
        ended = self._unread.popleft()
        self._unread_bytes -= _size_bytes(ended)
        self._on_exchange(ended if isinstance(ended, Exchange) else read_exchange(ended))


def _size_bytes(ended: Raw | Exchange) -> int:
    return 0 if isinstance(ended, Exchange) else ended.size_bytes
