"""Ended streams wait to be read while bytes come first, but not without limit."""

import asyncio

from streams import DONE, completion, finished, one_read_per_event, usage

from loadgen.load.closedloop import QUIET_NS, Backlog

STREAM = one_read_per_event(completion("4", 1, finish="stop"), usage(1), DONE)


def raws(count, size_bytes=100):
    ended = [finished(STREAM) for _ in range(count)]
    for slot, raw in enumerate(ended):
        raw.slot, raw.size_bytes = slot, size_bytes
    return ended


async def turns(backlog, count, after_ns=2 * QUIET_NS):
    """How many streams waited after each of so many turns of the loop, the first `after_ns` after the last end."""
    await asyncio.sleep(after_ns / 1e9)
    reader = asyncio.create_task(backlog.read_on())
    waiting = []
    for _ in range(count):
        await asyncio.sleep(0)
        waiting.append(len(backlog))
    reader.cancel()
    return waiting


def test_one_stream_is_read_in_a_turn_of_the_loop():
    read = []
    backlog = Backlog(read.append)
    for raw in raws(4):
        backlog.add(raw)
    assert asyncio.run(turns(backlog, 5)) == [3, 2, 1, 0, 0]
    assert [exchange.slot for exchange in read] == [0, 1, 2, 3]
    assert {(exchange.status, exchange.text) for exchange in read} == {("ok", "4")}


def test_more_than_may_wait_is_read_first():
    backlog = Backlog(lambda exchange: None, most_bytes=350)
    for raw in raws(10):
        backlog.add(raw)
    assert asyncio.run(turns(backlog, 3)) == [3, 2, 1]


def test_none_is_read_right_after_another_ended(monkeypatch):
    monkeypatch.setattr("loadgen.load.closedloop.QUIET_NS", 3_600_000_000_000)
    backlog = Backlog(lambda exchange: None)
    for raw in raws(2):
        backlog.add(raw)
    assert asyncio.run(turns(backlog, 3, after_ns=0)) == [2, 2, 2]


def test_read_all_leaves_none():
    read = []
    backlog = Backlog(read.append)
    for raw in raws(3):
        backlog.add(raw)
    backlog.read_all()
    assert (len(backlog), [exchange.slot for exchange in read]) == (0, [0, 1, 2])
