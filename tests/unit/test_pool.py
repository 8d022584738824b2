"""The closed loop: B slots, each refilled in the moment its answer is complete."""

import asyncio
import selectors
import time

import pytest
from streams import REQUEST, finished

from loadgen.load.closedloop import REFILLS_NS, ClosedLoop

B = 4


class ScriptedSlot:
    """Ends a request when told to, in the caller's callback as a transport does."""

    answering = False

    def __init__(self, slot, log):
        self._slot = slot
        self._log = log
        self._done = None
        self.closed = False

    def send(self, request, done):
        assert self._done is None, "a slot holds one request"
        self._log.append(("send", self._slot))
        self._done = done

    def end(self, *, http_status=200, failure=None):
        raw = finished([], http_status=http_status, failure=failure)
        raw.slot = self._slot
        done, self._done = self._done, None
        done(raw)

    def close(self):
        self.closed = True
        if self._done is not None:
            self.end(http_status=None, failure=("broken", "given up"))


def pool_of(count, requests=10**9, refill_s=0.0):
    """`refill_s`: how long it takes to make a request, by the process's clock."""
    log = []
    left = iter(range(requests))
    slots = [ScriptedSlot(slot, log) for slot in range(count)]

    def next_request(slot):
        time.sleep(refill_s)
        return REQUEST if next(left, None) is not None else None

    pool = ClosedLoop(dict(enumerate(slots)), next_request, lambda raw: log.append(("done", raw.slot)))
    return pool, slots, log


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing: the loop's clock jumps to its next timer."""

    loop: "VirtualTimeLoop"

    def select(self, timeout=None):
        assert timeout is not None, "the loop would wait for ever"
        self.loop.now_s += timeout
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only in timers."""

    def __init__(self):
        self.now_s = 0.0
        selector = _Jumping()
        selector.loop = self
        super().__init__(selector)

    def time(self):
        return self.now_s


def run_virtual(coroutine):
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)


def test_b_slots_hold_b_requests_at_every_moment():
    async def run():
        pool, slots, _ = pool_of(B)
        pool.start()
        assert pool.in_flight == B
        for turn in range(100):
            slots[(7 * turn) % B].end()
            assert pool.in_flight == B
            await asyncio.sleep(0)

    run_virtual(run())


def test_where_many_answers_end_together_what_arrives_is_read_between_the_refills():
    async def run():
        pool, slots, log = pool_of(8, refill_s=REFILLS_NS / 1e9)
        pool.start()
        log.clear()
        asyncio.get_running_loop().call_soon(log.append, "read")
        for slot in range(8):
            slots[slot].end()
        for _ in range(20):
            asyncio.get_running_loop().call_soon(log.append, "read")
            await asyncio.sleep(0)
        sent = [entry for entry in log if entry != "read"]
        assert sent == [(what, slot) for slot in range(8) for what in ("send", "done")], "in their order, each once"
        assert all(log.index(("send", slot + 1)) > log.index("read", log.index(("send", slot))) for slot in range(7))
        assert pool.in_flight == 8

    run_virtual(run())


def test_what_ended_and_was_not_refilled_yet_is_not_lost_when_the_loop_stops():
    async def run():
        pool, slots, log = pool_of(4, refill_s=REFILLS_NS / 1e9)
        pool.start()
        for slot in range(4):
            slots[slot].end()
        pool.stop()
        assert sorted(slot for what, slot in log if what == "done") == [0, 0, 1, 2, 3]

    run_virtual(run())


def test_the_next_request_leaves_in_the_same_callback_before_the_ended_stream_is_looked_at():
    async def run():
        pool, slots, log = pool_of(2)
        pool.start()
        log.clear()
        slots[1].end()
        assert log == [("send", 1), ("done", 1)]

    run_virtual(run())


def test_the_loop_drains_when_there_is_no_next_request():
    async def run():
        pool, slots, log = pool_of(2, requests=3)
        pool.start()
        drained = asyncio.create_task(pool.drained())
        slots[0].end()
        slots[0].end()
        await asyncio.sleep(0)
        assert not drained.done()
        assert pool.in_flight == 1
        slots[1].end()
        for _ in range(5):  # on a busy machine slots are refilled in a later turn
            await asyncio.sleep(0)
        assert drained.done()
        assert pool.in_flight == 0
        assert log.count(("done", 0)) + log.count(("done", 1)) == 3

    run_virtual(run())


FAILURES = [{"failure": ("connect", "refused"), "http_status": None}, {"http_status": 500}]


@pytest.mark.parametrize("how", FAILURES)
def test_a_failing_slot_waits_50_ms_doubled_up_to_2_s(how):
    async def run():
        pool, slots, log = pool_of(1)
        loop = asyncio.get_running_loop()
        pool.start()
        waits = []
        for _ in range(9):
            log.clear()
            failed_at_s = loop.time()
            slots[0].end(**how)
            while ("send", 0) not in log:
                await asyncio.sleep(0.001)
            waits.append(loop.time() - failed_at_s)
        return waits

    expected = [min(0.05 * 2**k, 2.0) for k in range(9)]
    assert run_virtual(run()) == pytest.approx(expected, abs=0.0021)


def test_success_ends_the_backoff():
    async def run():
        pool, slots, log = pool_of(1)
        pool.start()
        for _ in range(4):
            slots[0].end(http_status=500)
            await asyncio.sleep(3)
        slots[0].end()
        log.clear()
        slots[0].end(http_status=500)
        await asyncio.sleep(0.052)
        assert ("send", 0) in log

    run_virtual(run())


def test_a_failing_slot_does_not_hold_up_the_others():
    async def run():
        pool, slots, log = pool_of(2)
        pool.start()
        slots[0].end(http_status=500)
        log.clear()
        slots[1].end()
        assert log == [("send", 1), ("done", 1)]
        assert pool.in_flight == 1

    run_virtual(run())


def test_the_loop_is_not_drained_while_a_slot_waits_to_try_again():
    async def run():
        pool, slots, _ = pool_of(1, requests=2)
        pool.start()
        drained = asyncio.create_task(pool.drained())
        slots[0].end(http_status=500)
        await asyncio.sleep(0)
        assert not drained.done()
        await asyncio.sleep(0.052)
        slots[0].end()
        await asyncio.sleep(0)
        assert drained.done()

    run_virtual(run())


def test_stop_ends_every_request_as_a_row_and_sends_none():
    async def run():
        pool, slots, log = pool_of(B)
        pool.start()
        slots[0].end(http_status=500)
        log.clear()
        pool.stop()
        assert sorted(log) == [("done", slot) for slot in range(1, B)]
        assert pool.in_flight == 0
        assert all(slot.closed for slot in slots)
        await asyncio.wait_for(pool.drained(), 1)
        await asyncio.sleep(5)
        assert not [entry for entry in log if entry[0] == "send"]

    run_virtual(run())


def test_current_is_the_request_in_flight():
    async def run():
        pool, slots, _ = pool_of(1, requests=1)
        assert pool.current(0) is None
        pool.start()
        assert pool.current(0) is REQUEST
        slots[0].end()
        assert pool.current(0) is None

    run_virtual(run())
