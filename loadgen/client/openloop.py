"""OpenLoop: sends each request when it is due, however many are still being answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Protocol

from loadgen.client.alarm import Alarm
from loadgen.client.exchange import Raw, Request
from loadgen.client.pool import Slot

LATE_NS = 5_000_000
"""A request sent later than this after its time is late: the client, not the server, delayed it."""
STALE_NS = 4_000_000_000
"""A connection idle for longer is opened anew: servers close idle ones (uvicorn after 5 s), maybe under a request."""
AT_ONCE = 64
"""Most requests sent in one turn of the event loop, so that a client in arrears still reads what arrives."""


class Clock(Protocol):
    """As `Alarm`."""

    def set(self, t_ns: int) -> None: ...

    def close(self) -> None: ...


class OpenLoop:
    """Follows a schedule of requests, each with its `t_scheduled_ns`, ascending.

    A request goes out on the slot that became free last; a slot is made where none is free, up to `cap`. With `cap`
    requests in flight the next is dropped: `on_dropped` hears of it at the time it should have been sent.
    """

    def __init__(
        self,
        make_slot: Callable[[int], Slot],
        cap: int,
        on_done: Callable[[Raw], None],
        on_dropped: Callable[[Request, int], None],
        *,
        now_ns: Callable[[], int] = monotonic_ns,
        alarm: Callable[[Callable[[], None]], Clock] = Alarm,
    ) -> None:
        self._make_slot = make_slot
        self._cap = cap
        self._on_done = on_done
        self._on_dropped = on_dropped
        self._now_ns = now_ns
        self._alarm = alarm(self._send_due)
        self._slots: list[Slot] = []
        self._free: list[tuple[int, int]] = []
        """Slot, and since when in ns; the latest last."""
        self._schedule: Iterator[Request] = iter(())
        self._next: Request | None = None
        self._idle = asyncio.Event()
        self.sent = 0
        self.last_due_ns = 0
        """Of the latest that was sent."""
        self.late = 0
        """Of those sent, the ones that were late by more than `LATE_NS`."""
        self.dropped = 0

    @property
    def in_flight(self) -> int:
        return len(self._slots) - len(self._free)

    def follow(self, schedule: Iterator[Request]) -> None:
        """From now on this schedule, in place of what is left of the one before."""
        self._schedule = schedule
        self._advance()

    async def drained(self) -> None:
        """Returns when the schedule has ended and nothing is in flight."""
        await self._idle.wait()

    def stop(self) -> None:
        """Gives up what is in flight at once; each such request ends as a row with status `broken`."""
        self.follow(iter(()))
        self._alarm.close()
        for slot in self._slots:
            slot.close()

    def _advance(self) -> None:
        self._next = next(self._schedule, None)
        if self._next is not None:
            assert self._next.t_scheduled_ns is not None
            self._idle.clear()
            self._alarm.set(self._next.t_scheduled_ns)
        elif not self.in_flight:
            self._idle.set()

    def _send_due(self) -> None:
        for _ in range(AT_ONCE):
            request, now_ns = self._next, self._now_ns()
            if request is None or request.t_scheduled_ns is None or request.t_scheduled_ns > now_ns:
                return
            self._send(request, now_ns, now_ns - request.t_scheduled_ns)
            self._advance()

    def _send(self, request: Request, now_ns: int, lateness_ns: int) -> None:
        if self._free:
            slot, since_ns = self._free.pop()
            if now_ns - since_ns > STALE_NS:
                self._slots[slot].close()
        elif len(self._slots) < self._cap:
            slot = len(self._slots)
            self._slots.append(self._make_slot(slot))
        else:
            self.dropped += 1
            self._on_dropped(request, now_ns)
            return
        self.sent += 1
        self.last_due_ns = now_ns - lateness_ns
        self.late += lateness_ns > LATE_NS
        self._slots[slot].send(request, self._finished)

    def _finished(self, raw: Raw) -> None:
        self._free.append((raw.slot, self._now_ns()))
        self._on_done(raw)
        if self._next is None and not self.in_flight:
            self._idle.set()
