"""OpenLoad: a cell's requests in an open loop, from the first warm-up to the last answer, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic_ns

from loadgen.load.closedloop import Slot
from loadgen.load.exchange import Raw, Request, dropped
from loadgen.load.load import LocalLoad, OnExchange
from loadgen.load.openloop import Arrived, OpenLoop, Schedule

GENERATIONS = 2
"""How many must have come and gone before the window opens."""
TURN_S = 0.005


class OpenLoad(LocalLoad):
    """A load that follows the schedule with at most `cap` requests in flight; the others are dropped, a row each.

    After the window the traffic goes on until the window's last request is over, so that none of them sees an emptier
    server than the others. A server that falls behind would make this endless: so the warm-up is no longer than the
    window (`window_s`, as far as that is known) or as asked, the cool-down no longer than the warm-up was, and what is
    not answered after as much time as all of it took, or after the limit of the drain, is given up.
    """

    _loop: OpenLoop

    def __init__(
        self,
        make_slot: Callable[[int], Slot],
        cap: int,
        schedule: Schedule,
        on_exchange: OnExchange,
        *,
        window_s: float,
        drain_s: float | None = None,
    ) -> None:
        super().__init__(on_exchange, drain_s)
        self._cap = cap
        self._window_s = window_s
        self._schedule = schedule
        self._loop = OpenLoop(make_slot, cap, self._on_done, self._on_dropped)
        self._cooldown: asyncio.Task[None] | None = None
        self._fed = asyncio.Event()
        """Nothing further will be sent."""
        self._t_start_ns = 0
        self._warmup_ns = 0
        self._generations = -1
        self._generation_ns = 0
        self._of_generation = 0
        self._measured_over = 0
        self._given_up_s: float | None = None

    @property
    def steady(self) -> bool:
        """What was sent when the first answer came has ended, and what had been sent until then has, too."""
        waited_s = (monotonic_ns() - self._t_start_ns) / 1e9
        return self._generations >= GENERATIONS or waited_s >= self._window_s

    @property
    def dry_ns(self) -> int | None:
        return self._schedule.dry_ns

    @property
    def arrived(self) -> Arrived:
        return Arrived(sent=self._loop.sent, late=self._loop.late, dropped=self._loop.dropped)

    def start(self) -> None:
        self._t_start_ns = monotonic_ns()
        super().start()
        self._loop.follow(self._schedule.warmup(self._t_start_ns))

    def open_window(self, open_ns: int, close_ns: int | None) -> None:
        self._warmup_ns = open_ns - self._t_start_ns
        self._loop.follow(self._schedule.window(open_ns, close_ns))
        super().open_window(open_ns, close_ns)

    def close_window(self) -> None:
        super().close_window()
        self._cooldown = asyncio.create_task(self._cool_down())

    def stop_feeding(self) -> None:
        self._loop.follow(iter(()))
        self._fed.set()

    async def idle(self) -> None:
        await self._fed.wait()
        await self._loop.drained()

    async def drained(self) -> None:
        await self._fed.wait()
        patience_s = self._drain.limit_s
        if self._drain_s is None:
            patience_s = min(patience_s, (monotonic_ns() - self._t_start_ns) / 1e9)
        try:
            async with asyncio.timeout(patience_s):
                await self._loop.drained()
        except TimeoutError:
            self._given_up_s = patience_s
            self._loop.stop()

    async def close(self) -> None:
        if self._cooldown is not None:
            self._cooldown.cancel()
        await super().close()

    async def _cool_down(self) -> None:
        deadline_ns = monotonic_ns() + self._warmup_ns
        while self._measured_over < self._schedule.measured and monotonic_ns() < deadline_ns:
            await asyncio.sleep(TURN_S)
        self.stop_feeding()

    def _on_done(self, raw: Raw) -> None:
        if self._given_up_s is not None:
            raw.failure = ("timeout", f"given up {self._given_up_s:.0f} s after the last request: too far behind")
        self._count_generation(raw.request)
        self._measured_over += raw.request.phase == "measured"
        self._backlog.add(raw)

    def _count_generation(self, request: Request) -> None:
        """A generation: the requests in flight when the one before was over, the first when the first answer came."""
        assert request.t_scheduled_ns is not None
        self._of_generation -= request.t_scheduled_ns <= self._generation_ns
        if self._of_generation <= 0:
            self._generations += 1
            self._of_generation, self._generation_ns = self._loop.in_flight, self._loop.last_due_ns

    def _on_dropped(self, request: Request, now_ns: int) -> None:
        self._measured_over += request.phase == "measured"
        self._backlog.add(dropped(request, now_ns, self._cap))
