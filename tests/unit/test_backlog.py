"""Ended streams wait to be read while bytes come first, but not without limit."""

import asyncio

from streams import DONE, completion, finished, one_read_per_event, usage

from loadgen.load import closedloop
from loadgen.load.closedloop import Backlog

STREAM = one_read_per_event(completion("4", 1, finish="stop"), usage(1), DONE)


def raws(count, size_bytes=100):
    ended = [finished(STREAM) for _ in range(count)]
    for slot, raw in enumerate(ended):
        raw.slot, raw.size_bytes = slot, size_bytes
    return ended


async def turns(backlog, count):
    """How many streams waited after each of so many turns of the loop."""
    reader = asyncio.create_task(backlog.read_on())
    waiting = []
    for _ in range(count):
        await asyncio.sleep(0)
        waiting.append(len(backlog))
    reader.cancel()
    return waiting


def test_one_stream_is_read_in_a_turn_of_the_loop_where_it_takes_long(monkeypatch):
    monkeypatch.setattr(closedloop, "READ_NS", 0)
    read = []
    backlog = Backlog(read.append)
    for raw in raws(4):
        backlog.add(raw)
    assert asyncio.run(turns(backlog, 5)) == [3, 2, 1, 0, 0]
    assert [exchange.slot for exchange in read] == [0, 1, 2, 3]
    assert {(exchange.status, exchange.text) for exchange in read} == {("ok", "4")}


def test_several_are_read_in_a_turn_until_their_time_is_over(monkeypatch):
    now_ns = iter(range(0, 10**9, closedloop.READ_NS // 2))
    monkeypatch.setattr(closedloop, "monotonic_ns", lambda: next(now_ns))
    backlog = Backlog(lambda exchange: None)
    for raw in raws(5):
        backlog.add(raw)
    assert asyncio.run(turns(backlog, 4)) == [3, 1, 0, 0]


def test_more_than_may_wait_is_read_first(monkeypatch):
    monkeypatch.setattr(closedloop, "READ_NS", 0)
    backlog = Backlog(lambda exchange: None, most_bytes=350)
    for raw in raws(10):
        backlog.add(raw)
    assert asyncio.run(turns(backlog, 3)) == [3, 2, 1]


def test_read_all_leaves_none():
    read = []
    backlog = Backlog(read.append)
    for raw in raws(3):
        backlog.add(raw)
    backlog.read_all()
    assert (len(backlog), [exchange.slot for exchange in read]) == (0, [0, 1, 2])


def test_a_stream_that_ends_while_none_waits_is_read():
    async def read_later():
        read = []
        backlog = Backlog(read.append)
        reader = asyncio.create_task(backlog.read_on())
        for raw in raws(2):
            await asyncio.sleep(0.01)
            backlog.add(raw)
            async with asyncio.timeout(10):
                while len(backlog):
                    await asyncio.sleep(0.001)
        reader.cancel()
        return [exchange.slot for exchange in read]

    assert asyncio.run(read_later()) == [0, 1]
