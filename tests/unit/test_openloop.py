"""The open loop: requests go out when they are due, however the server does; the clock here is made by hand (ms)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import msgspec
from streams import REQUEST, finished

from loadgen.load.exchange import Raw, Request, dropped, read_exchange
from loadgen.load.openloop import OpenLoop

MS = 1_000_000


class Bench:
    """An open loop on a clock that moves when told to, with slots that answer when told to."""

    def __init__(self, cap: int) -> None:
        self.now_ns = 0
        self.rings_at_ns: int | None = None
        self.sent: list[tuple[int, int, int]] = []
        """Slot, scheduled and sent in ms."""
        self.closed: list[int] = []
        self.done: list[Raw] = []
        self.dropped: list[tuple[int, int]] = []
        """Scheduled and dropped in ms."""
        self.answers: dict[int, Callable[[], None]] = {}
        self.loop = OpenLoop(
            lambda slot: _Slot(slot, self), cap, self.done.append, self._on_dropped,
            now_ns=lambda: self.now_ns, alarm=self._alarm,
        )  # fmt: skip

    def set(self, t_ns: int) -> None:
        self.rings_at_ns = t_ns

    def close(self) -> None:
        self.rings_at_ns = None

    def until(self, ms: float, *, stall_until: float | None = None) -> None:
        """Lets time pass to `ms`; with `stall_until` the client sleeps first, and hears of nothing until then."""
        if stall_until is not None:
            self.now_ns = round(stall_until * MS)
        while self.rings_at_ns is not None and self.rings_at_ns <= ms * MS:
            self.now_ns = max(self.now_ns, self.rings_at_ns)
            self.rings_at_ns = None
            self.ring()
        self.now_ns = max(self.now_ns, round(ms * MS))

    def _alarm(self, on_due: Callable[[], None]) -> Bench:
        self.ring = on_due
        return self

    def _on_dropped(self, request: Request, now_ns: int) -> None:
        assert request.t_scheduled_ns is not None
        self.dropped.append((request.t_scheduled_ns // MS, now_ns // MS))


class _Slot:
    answering = False

    def __init__(self, slot: int, bench: Bench) -> None:
        self._slot, self._bench = slot, bench

    def send(self, request: Request, done: Callable[[Raw], None]) -> None:
        bench = self._bench
        assert request.t_scheduled_ns is not None
        assert self._slot not in bench.answers, "a slot holds one request"
        bench.sent.append((self._slot, request.t_scheduled_ns // MS, bench.now_ns // MS))
        sent_ns = bench.now_ns

        def answer() -> None:
            del bench.answers[self._slot]
            raw = finished([(bench.now_ns, b"")])
            raw.slot, raw.request, raw.t_send_ns = self._slot, request, sent_ns
            done(raw)

        bench.answers[self._slot] = answer

    def close(self) -> None:
        self._bench.closed.append(self._slot)
        if self._slot in self._bench.answers:
            self._bench.answers[self._slot]()


def schedule(times_ms: Sequence[float]) -> Iterator[Request]:
    return (msgspec.structs.replace(REQUEST, t_scheduled_ns=round(t * MS)) for t in times_ms)


def test_requests_leave_when_they_are_due_whatever_is_still_in_flight() -> None:
    bench = Bench(cap=10)
    bench.loop.follow(schedule([10, 20, 35]))
    bench.until(100)
    assert bench.sent == [(0, 10, 10), (1, 20, 20), (2, 35, 35)]
    assert bench.loop.in_flight == 3


def test_the_slot_that_became_free_last_is_taken_first() -> None:
    bench = Bench(cap=10)
    bench.loop.follow(schedule([10, 11, 12, 30, 31]))
    bench.until(20)
    bench.answers[2]()
    bench.answers[0]()
    bench.until(40)
    assert [slot for slot, *_ in bench.sent] == [0, 1, 2, 0, 2]


def test_a_stalled_server_costs_exactly_the_arrivals_beyond_the_cap() -> None:
    bench = Bench(cap=3)
    bench.loop.follow(schedule(range(10, 110, 10)))
    bench.until(75)
    assert (bench.loop.sent, bench.loop.dropped) == (3, 4)
    bench.answers[1]()
    bench.until(200)
    assert (bench.loop.sent, bench.loop.dropped) == (4, 6)
    assert bench.dropped == [(t, t) for t in (40, 50, 60, 70, 90, 100)]
    assert bench.sent[-1] == (1, 80, 80), "the slot that came free took the next arrival"


def test_a_client_that_slept_sends_at_once_what_was_due_and_the_latency_begins_when_it_was_due() -> None:
    bench = Bench(cap=10)
    bench.loop.follow(schedule([10, 20, 30, 60]))
    bench.until(50, stall_until=36)
    assert bench.sent == [(0, 10, 36), (1, 20, 36), (2, 30, 36)]
    assert bench.loop.late == 3, "26, 16 and 6 ms after their time"
    bench.until(70)
    assert bench.loop.late == 3
    bench.answers[1]()
    exchange = read_exchange(bench.done[0])
    assert exchange.t_scheduled_ns == exchange.t_due_ns == 20 * MS
    assert exchange.t_send_ns == 36 * MS


def test_up_to_5_ms_after_its_time_a_request_is_not_late() -> None:
    bench = Bench(cap=10)
    bench.loop.follow(schedule([10, 11]))
    bench.until(50, stall_until=15)
    assert bench.loop.late == 0
    bench.loop.follow(schedule([60]))
    bench.until(100, stall_until=65.1)
    assert bench.loop.late == 1


def test_a_client_in_arrears_lets_the_event_loop_read_in_between() -> None:
    bench = Bench(cap=1000)
    bench.loop.follow(schedule([1] * 200))
    bench.rings_at_ns = None
    bench.now_ns = MS
    bench.ring()
    assert bench.loop.sent == 64
    assert bench.rings_at_ns == MS, "the alarm is set for the rest"


def test_a_new_schedule_takes_the_place_of_the_one_before() -> None:
    bench = Bench(cap=10)
    bench.loop.follow(schedule([10, 20, 30]))
    bench.until(15)
    bench.loop.follow(schedule([25]))
    bench.until(100)
    assert [due for _, due, _ in bench.sent] == [10, 25]


def test_a_connection_that_was_idle_for_more_than_4_s_is_opened_anew() -> None:
    bench = Bench(cap=10)
    bench.loop.follow(schedule([10, 4000, 8200]))
    for now in (20, 4100):
        bench.until(now)
        bench.answers[0]()
    bench.until(9000)
    assert [slot for slot, *_ in bench.sent] == [0, 0, 0]
    assert bench.closed == [0], "idle for 3980 ms, then for 4100 ms"


def test_it_is_drained_when_the_schedule_has_ended_and_every_answer_is_there() -> None:
    async def run() -> None:
        bench = Bench(cap=10)
        bench.loop.follow(schedule([10, 20]))
        drained = asyncio.create_task(bench.loop.drained())
        bench.until(15)
        bench.answers[0]()
        await asyncio.sleep(0)
        assert not drained.done(), "another is to come"
        bench.until(25)
        await asyncio.sleep(0)
        assert not drained.done()
        bench.answers[0]()
        await asyncio.wait_for(drained, 1)

    asyncio.run(run())


def test_stop_gives_up_what_is_in_flight_and_sends_no_more() -> None:
    async def run() -> None:
        bench = Bench(cap=10)
        bench.loop.follow(schedule([10, 11, 50]))
        bench.until(20)
        bench.loop.stop()
        assert bench.closed == [0, 1]
        assert len(bench.done) == 2
        bench.until(100)
        assert len(bench.sent) == 2
        await asyncio.wait_for(bench.loop.drained(), 1)

    asyncio.run(run())


def test_a_dropped_arrival_is_a_row_that_was_never_sent() -> None:
    request = msgspec.structs.replace(REQUEST, t_scheduled_ns=40 * MS)
    row = dropped(request, 41 * MS, cap=3)
    assert (row.status, row.error, row.slot) == ("dropped", "3 requests were in flight", None)
    assert (row.t_scheduled_ns, row.t_send_ns, row.t_end_ns) == (40 * MS, 41 * MS, 41 * MS)
    assert row.t_first_ns is row.output_tokens is row.http_status is None
