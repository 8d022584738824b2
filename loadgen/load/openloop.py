"""OpenLoop: sends each request when it is due, however many are still being answered.

Arrivals: when requests are due. Schedule: what is asked, and when. Alarm: calls back at an instant of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, count
from time import monotonic_ns
from typing import Any, Literal, get_args

import msgspec

from loadgen.errors import UsageError
from loadgen.load.body import RequestMaker
from loadgen.load.closedloop import Slot
from loadgen.load.exchange import Raw, Request
from loadgen.notation import did_you_mean, number, numerals
from loadgen.workload.item import Item
from loadgen.workload.traffic import mean_rate_per_s

Kind = Literal["poisson", "constant", "trace"]
CLOSED = "closed"
TRACE = "trace"
"""`--arrival trace` alone: at the trace's own rate."""
MOST_PER_S = 100_000.0
"""More than any client sends: a rate above it is a typing error."""


class Arrivals(msgspec.Struct, frozen=True):
    """`rate_per_s` requests a second on average, whatever becomes of them; prints as `--arrival` takes it.

    `trace`: at the times of a recorded trace, stretched or compressed to that mean rate.
    """

    kind: Kind
    rate_per_s: float

    @classmethod
    def parse(cls, text: str) -> Arrivals | None:
        """From `poisson:RATE`, `constant:RATE` or `trace:RATE`, in requests per second; None from `closed`. Raises
        UsageError."""
        found = cls.parse_each(text)
        return found[0] if found else None

    @classmethod
    def parse_each(cls, text: str) -> tuple[Arrivals, ...]:
        """Arrivals of one kind at each rate listed, as in `poisson:5,10,20`; none from `closed`. Raises UsageError."""
        if text == CLOSED:
            return ()
        name, colon, rates = text.partition(":")
        kind = next((known for known in get_args(Kind) if known == name.strip().lower()), None)
        if kind is None or not colon:
            hint = f"as in poisson:{name.strip() if name.strip()[:1].isdecimal() and not colon else 20}"
            meant = did_you_mean(name, (CLOSED, *get_args(Kind))) if kind is None else ""
            raise UsageError(
                f"--arrival {text}: {meant}write closed, poisson:RATE or constant:RATE, {hint} (or poisson:5,10,20)"
            )
        found: list[Arrivals] = []
        for rate in numerals(rates, f"--arrival {text}"):
            try:
                per_s = number(rate, "/s")
            except ValueError:
                per_s = math.nan
            if not 0 < per_s <= MOST_PER_S:
                give = f"give requests per second, above 0 and at most {MOST_PER_S:.0f}"
                raise UsageError(f"--arrival {text}: {rate!r} is not a rate; {give}")
            if cls(kind, per_s) in found:
                raise UsageError(f"--arrival {text}: {rate.strip()} is listed twice; list each rate once")
            found.append(cls(kind, per_s))
        return tuple(found)

    def __str__(self) -> str:
        return f"{self.kind}:{self.rate_per_s:.10g}"

    def offsets_ns(self, seed: str) -> Iterator[int]:
        """When arrivals 1, 2, ... are due, in ns from the beginning, without end; the first is one gap late.

        Constant: k / rate, each from the beginning, so that nothing adds up. Else sums of independent exponential gaps
        of mean 1 / rate, the same for the same seed; of a trace these are its warm-up and cool-down.
        """
        if self.kind == "constant":
            yield from (round(k * 1e9 / self.rate_per_s) for k in count(1))
        gap_s = random.Random(seed).expovariate
        yield from (round(t_s * 1e9) for t_s in accumulate(gap_s(self.rate_per_s) for _ in count()))

    def replayed_ns(self, times_s: Sequence[float]) -> Iterator[int]:
        """When the requests of a trace are due, in ns from the beginning: `times_s` from its first request, scaled to
        this mean rate. The first is one mean gap late, as elsewhere."""
        own = mean_rate_per_s(times_s)
        scale = 1.0 if own is None else own / self.rate_per_s
        yield from (round((1 / self.rate_per_s + time_s * scale) * 1e9) for time_s in times_s)


def listed(arrivals: Sequence[Arrivals]) -> str:
    """What `parse_each` reads: `closed`, or `poisson:5,10,20`."""
    rates = ",".join(f"{one.rate_per_s:.10g}" for one in arrivals)
    return f"{arrivals[0].kind}:{rates}" if arrivals else CLOSED


_TFD_TIMER_ABSTIME = 1
_LIBC = ctypes.CDLL(None)


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """One callback at a time, never early; setting it again replaces the instant.

    The event loop's own timers tick in milliseconds, and libuv's fire up to one too early; so on Linux the timer is a
    file descriptor (timerfd_create(2)).
    """

    def __init__(self, on_due: Callable[[], None]) -> None:
        self._on_due = on_due
        self._loop = asyncio.get_running_loop()
        self._t_ns: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fd = _timerfd() if sys.platform == "linux" else -1
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._ring)

    def set(self, t_ns: int) -> None:
        """Calls back at `t_ns`; if that is over, in the loop's next turn."""
        self._t_ns = t_ns
        if self._fd >= 0:
            _arm(self._fd, t_ns)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(t_ns - time.monotonic_ns(), 0) / 1e9, self._ring)

    def close(self) -> None:
        self._t_ns = None
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ring(self) -> None:
        t_ns = self._t_ns
        if self._fd >= 0:
            try:
                os.read(self._fd, 8)
            except BlockingIOError:
                return
        if t_ns is None:
            return
        if time.monotonic_ns() < t_ns:
            self.set(t_ns)
            return
        self._t_ns = None
        self._on_due()


def _timerfd() -> int:
    """A timer of CLOCK_MONOTONIC as a file descriptor; -1 where the C library has none."""
    create = getattr(_LIBC, "timerfd_create", None)
    return -1 if create is None else int(create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))


def _arm(fd: int, t_ns: int) -> None:
    value = _Timespec(*divmod(max(t_ns, 1), 1_000_000_000))
    _LIBC.timerfd_settime(fd, _TFD_TIMER_ABSTIME, ctypes.byref(_Itimerspec(_Timespec(0, 0), value)), None)


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """What an open loop offered so far, from the cell's first request on."""

    sent: int
    late: int
    """Sent later than 5 ms after they were due."""
    dropped: int


LATE_NS = 5_000_000
"""A request sent later than this after its time is late: the client, not the server, delayed it."""
STALE_NS = 4_000_000_000
"""A connection idle for longer is opened again: servers close idle ones (uvicorn after 5 s), maybe during a request."""
AT_ONCE = 64
"""Most requests sent in one turn of the event loop, so that a client in arrears still reads what arrives."""


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
        alarm: Callable[[Callable[[], None]], Any] = Alarm,
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
        """When the latest sent request was due."""
        self.late = 0
        """Sent later than `LATE_NS` after they were due."""
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


class Schedule:
    """Requests with their `t_scheduled_ns`: warm-up, the window's items in their order, then the cool-down.

    Every part has arrivals of its own from the seed, so that windows with the same seed have the same items due at the
    same times after they open, however long the warm-up took. A dropped arrival's item is not asked again.
    """

    def __init__(
        self,
        maker: RequestMaker,
        items: Sequence[Item],
        warmup_items: Sequence[Item],
        arrivals: Arrivals,
        seed: str,
        limit: int | None = None,
    ) -> None:
        self._maker = maker
        self._items = items
        self._warmup_items = warmup_items
        self._arrivals = arrivals
        self._seed = seed
        self._limit = limit
        self.measured = 0
        """Requests of the window given out so far."""
        self.dry_ns: int | None = None
        """When the last of `limit` requests was due; None: not yet."""

    def warmup(self, start_ns: int) -> Iterator[Request]:
        """Without end; the first is due at once."""
        offsets = self._arrivals.offsets_ns(f"{self._seed}/warmup")
        first_ns = next(offsets)
        yield self._unmeasured(0, start_ns)
        for k, offset_ns in zip(count(1), offsets, strict=False):
            yield self._unmeasured(k, start_ns + offset_ns - first_ns)

    def window(self, open_ns: int, close_ns: int | None) -> Iterator[Request]:
        """Items up to `close_ns` (or `limit` of them, where it is None), then the cool-down without end."""
        end_ns = open_ns
        for offset_ns in self._window_offsets_ns():
            due_ns = open_ns + offset_ns
            if close_ns is not None and due_ns > close_ns:
                end_ns = close_ns
                break
            if self.measured == self._limit:
                self.dry_ns = end_ns
                break
            request = self._maker.measured(self._items[self.measured % len(self._items)])
            self.measured += 1
            end_ns = due_ns
            yield msgspec.structs.replace(request, t_scheduled_ns=due_ns)
        if self.dry_ns is None and close_ns is None:  # a trace has as many arrivals as it has items
            self.dry_ns = end_ns
        for k, offset_ns in zip(count(), self._arrivals.offsets_ns(f"{self._seed}/cooldown"), strict=False):
            yield msgspec.structs.replace(self._unmeasured(k, end_ns + offset_ns), phase="cooldown")

    def _window_offsets_ns(self) -> Iterator[int]:
        if self._arrivals.kind == "trace":
            return self._arrivals.replayed_ns([item.due_s or 0.0 for item in self._items])
        return self._arrivals.offsets_ns(f"{self._seed}/window")

    def _unmeasured(self, k: int, due_ns: int) -> Request:
        request = self._maker.warmup(self._warmup_items[k % len(self._warmup_items)])
        return msgspec.structs.replace(request, t_scheduled_ns=due_ns)
