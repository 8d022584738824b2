"""An open loop's load and the stages of its cell, with slots that answer after a known time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

import msgspec
from streams import DONE, completion, finished, one_read_per_event

from loadgen.load.body import RequestMaker, RequestSettings
from loadgen.load.exchange import Exchange, Raw, Request
from loadgen.load.openload import OpenLoad
from loadgen.load.openloop import Arrivals, Schedule
from loadgen.workload.item import Item
from loadgen.workload.protocol import load_protocol

ANSWER = one_read_per_event(completion("42", 2, finish="stop"), DONE)


class TimedSlot:
    """Ends a request some time after it was sent, with `status`."""

    answering = False

    def __init__(self, slot: int, answer_s: Callable[[], float], status: int) -> None:
        self._slot, self._answer_s, self._status = slot, answer_s, status
        self._end: Callable[[], None] = lambda: None

    def send(self, request: Request, done: Callable[[Raw], None]) -> None:
        sent_ns, loop = monotonic_ns(), asyncio.get_running_loop()

        def end(failure: tuple[str, str] | None = None) -> None:
            self._end = lambda: None
            timer.cancel()
            raw = finished([] if failure else ANSWER, http_status=self._status, failure=failure)
            raw.slot, raw.request, raw.t_send_ns, raw.t_end_ns = self._slot, request, sent_ns, monotonic_ns()
            done(raw)

        timer = loop.call_later(self._answer_s(), end)
        self._end = lambda: end(("broken", "given up"))

    def close(self) -> None:
        self._end()


def load(
    arrival: str,
    *,
    cap: int = 1000,
    answer_s: Any = 0.02,
    status: int = 200,
    limit: int | None = None,
    longest_s: float = 60.0,
) -> tuple[OpenLoad, list[Exchange]]:
    seen: list[Exchange] = []
    maker = RequestMaker(RequestSettings(protocol=load_protocol("sample"), model="m", seed=0))
    items = [Item(id=f"q{n}", question="?", solution="", gold="1") for n in range(1000)]
    arrivals = Arrivals.parse(arrival)
    assert arrivals is not None
    schedule = Schedule(maker, items, items[:3], arrivals, "0/1", limit)
    time_s = answer_s if callable(answer_s) else lambda: answer_s
    made = OpenLoad(
        lambda slot: TimedSlot(slot, time_s, status), cap, schedule, seen.append, window_s=longest_s
    )  # fmt: skip
    return made, seen


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


class Run(msgspec.Struct, frozen=True):
    load: OpenLoad
    seen: list[Exchange]
    open_ns: int
    close_ns: int


def through_a_window(arrival: str, window_s: float | None, **options: Any) -> Run:
    return asyncio.run(_through_a_window(arrival, window_s, **options))


async def _through_a_window(arrival: str, window_s: float | None, **options: Any) -> Run:
    """As the cell does it: warm up, open, close, drain."""
    of, seen = load(arrival, **options)
    of.start()
    await until(lambda: of.steady)
    open_ns = monotonic_ns()
    close_ns = None if window_s is None else open_ns + int(window_s * 1e9)
    of.open_window(open_ns, close_ns)
    await until(lambda: of.dry_ns is not None if close_ns is None else monotonic_ns() > close_ns)
    of.close_window()
    await of.drained()
    await of.close()
    return Run(of, seen, open_ns, close_ns or of.dry_ns or 0)


def test_every_arrival_of_the_window_is_a_row_and_its_neighbours_are_not_measured() -> None:
    run = through_a_window("constant:200", 0.5)
    seen = run.seen
    measured = [e for e in seen if e.phase == "measured"]
    assert [e.item_id for e in sorted(measured, key=lambda e: e.t_scheduled_ns or 0)] == [f"q{n}" for n in range(100)]
    assert {e.status for e in seen} == {"ok"}
    for e in seen:
        assert e.t_scheduled_ns is not None
        assert e.t_send_ns >= e.t_scheduled_ns, "never early"
        assert (run.open_ns < e.t_scheduled_ns <= run.close_ns) == (e.phase == "measured")
    assert run.load.completed == 100
    last_ns = max(e.t_end_ns for e in measured)
    assert {e.phase for e in seen if e.t_send_ns > run.close_ns} <= {"cooldown", "measured"}
    assert any(e.phase == "cooldown" and (e.t_scheduled_ns or 0) < last_ns for e in seen), "the traffic went on"


def test_it_is_steady_when_two_generations_have_come_and_gone() -> None:
    """Answers of 100 ms: the first comes at 100, those in flight then end by 200, those in flight then by 300 ms."""

    async def run() -> tuple[float, int]:
        of, _ = load("constant:200", answer_s=0.1)
        start_ns = monotonic_ns()
        of.start()
        await until(lambda: of.steady)
        after_s, in_flight = (monotonic_ns() - start_ns) / 1e9, of.in_flight
        await of.close()
        return after_s, in_flight

    after_s, in_flight = asyncio.run(run())
    assert after_s >= 0.29
    assert in_flight >= 10, "about 20, as there will be in the window"


def test_the_longest_answer_of_a_generation_is_waited_for() -> None:
    times_s = iter([0.05, 0.05, 0.4])

    async def run() -> float:
        of, _ = load("constant:50", answer_s=lambda: next(times_s, 0.05))
        start_ns = monotonic_ns()
        of.start()
        await until(lambda: of.steady)
        after_s = (monotonic_ns() - start_ns) / 1e9
        await of.close()
        return after_s

    assert asyncio.run(run()) >= 0.4, "the third was in flight when the first answer came"


def test_a_warm_up_that_never_gets_steady_ends_after_the_windows_length() -> None:
    async def run() -> int:
        of, seen = load("constant:50", answer_s=30.0, longest_s=0.2)
        of.start()
        assert not of.steady
        await until(lambda: of.steady)
        await of.close()
        return len(seen)

    assert asyncio.run(run()) >= 8, "0.2 s of 50 a second, none of them answered"


async def past_a_window(of: OpenLoad, opened_ns: list[int]) -> tuple[int, int]:
    """Warm-up and a window of 0.1 s; when the load began and when the window closed. When it opens it is put into
    `opened_ns`, from which a server can tell."""
    start_ns = monotonic_ns()
    of.start()
    await until(lambda: of.steady)
    opened_ns.append(monotonic_ns())
    close_ns = opened_ns[0] + 100_000_000
    of.open_window(opened_ns[0], close_ns)
    await until(lambda: monotonic_ns() > close_ns)
    of.close_window()
    return start_ns, monotonic_ns()


def test_what_is_not_answered_after_as_long_as_the_cell_took_is_given_up() -> None:
    """Answers take 20 ms until the window opens, and an hour after that."""
    opened_ns: list[int] = []

    async def run() -> tuple[list[Exchange], float, float]:
        of, seen = load("constant:100", answer_s=lambda: 3600.0 if opened_ns else 0.02)
        start_ns, closed_ns = await past_a_window(of, opened_ns)
        await of.drained()
        drained_ns = monotonic_ns()
        await of.close()
        return seen, (closed_ns - start_ns) / 1e9, (drained_ns - closed_ns) / 1e9

    seen, before_s, behind_s = asyncio.run(run())
    assert behind_s >= before_s
    given_up = [e for e in seen if e.phase == "measured"]
    assert len(given_up) == 10
    assert {e.status for e in given_up} == {"timeout"}
    assert all("after the last request: too far behind" in (e.error or "") for e in given_up)


def test_so_many_requests_are_due_and_no_more() -> None:
    run = through_a_window("poisson:300", None, limit=30)
    due = [e.t_scheduled_ns or 0 for e in run.seen if e.phase == "measured"]
    assert len(due) == 30
    assert max(due) == run.close_ns > run.open_ns


def test_beyond_the_cap_arrivals_are_dropped_and_every_one_has_its_row() -> None:
    """3 slots of 60 ms answer 50 a second at most, 200 a second come."""
    run = through_a_window("constant:200", 0.5, cap=3, answer_s=0.06)
    of, seen = run.load, run.seen
    measured = [e for e in seen if e.phase == "measured"]
    assert len(measured) == 100
    dropped = [e for e in measured if e.status == "dropped"]
    assert len(dropped) >= 100 - 3 - 3 * 0.5 / 0.06
    assert of.completed == 100 - len(dropped)
    assert {e.slot for e in dropped} == {None}
    arrived = of.arrived
    assert arrived.dropped == sum(e.status == "dropped" for e in seen)
    assert arrived.sent == len(seen) - arrived.dropped
    assert {e.slot for e in seen} == {0, 1, 2, None}


def test_failures_are_counted_and_do_not_slow_the_arrivals() -> None:
    run = through_a_window("constant:200", 0.25, status=503, answer_s=0.005)
    of, seen = run.load, run.seen
    assert sum(e.phase == "measured" for e in seen) == 50
    assert of.completed == 0
    assert of.failures_in_a_row == len(seen)


def test_close_gives_up_what_is_in_flight_as_rows() -> None:
    async def run() -> list[Exchange]:
        of, seen = load("constant:200", answer_s=30.0)
        of.start()
        await until(lambda: of.in_flight >= 5)
        await of.close()
        return seen

    seen = asyncio.run(run())
    assert len(seen) >= 5
    assert {(e.status, e.error) for e in seen} == {("broken", "given up")}


def test_the_cool_down_lasts_as_long_as_the_warm_up_at_most() -> None:
    """A server that answers nothing from the window's opening on: its requests are owed for ever."""
    opened_ns: list[int] = []

    async def run() -> tuple[list[Exchange], int, int]:
        of, seen = load("constant:100", answer_s=lambda: 30.0 if opened_ns else 0.05)
        start_ns, closed_ns = await past_a_window(of, opened_ns)
        sent = of.arrived.sent
        await until(lambda: of.arrived.sent > sent)
        assert of._cooldown is not None
        await of._cooldown
        lasted_ns, sent = monotonic_ns() - closed_ns, of.arrived.sent
        await asyncio.sleep(0.05)
        assert of.arrived.sent == sent, "nothing is sent any more"
        await of.close()
        return seen, opened_ns[0] - start_ns, lasted_ns

    seen, warmup_ns, lasted_ns = asyncio.run(run())
    assert lasted_ns >= warmup_ns
    assert sum(e.phase == "measured" for e in seen) == 10
    assert {e.status for e in seen if e.phase == "measured"} == {"broken"}


def test_told_to_stop_the_cool_down_ends_at_once() -> None:
    """The window closes 12 ms after its fourth request and 25 ms before the next would be due."""

    async def run() -> list[Exchange]:
        of, seen = load("constant:40", answer_s=0.3)
        of.start()
        await until(lambda: of.steady)
        now_ns = monotonic_ns()
        of.open_window(now_ns, now_ns + 112_000_000)
        await until(lambda: monotonic_ns() > now_ns + 112_000_000)
        of.close_window()
        of.stop_feeding()
        await asyncio.wait_for(of.drained(), 5)
        await of.close()
        return seen

    seen = asyncio.run(run())
    assert not [e for e in seen if e.phase == "cooldown"]
    assert sum(e.phase == "measured" for e in seen) == 4
