"""The feed: staggered warm-up, then the items in their order."""

from __future__ import annotations

import json

from loadgen.load.body import RequestMaker, RequestSettings
from loadgen.load.exchange import Request
from loadgen.load.load import WHOLE, Feed, Share
from loadgen.workload.item import Item
from loadgen.workload.protocol import load_protocol


def items(prefix: str, count: int) -> list[Item]:
    return [Item(id=f"{prefix}{n}", question=f"{prefix} {n}?", solution="", gold="1") for n in range(count)]


def feed(b: int, measured: int = 5, limit: int | None = None, share: Share = WHOLE) -> Feed:
    maker = RequestMaker(RequestSettings(protocol=load_protocol("sample"), model="m", seed=0, max_tokens=64))
    return Feed(maker, items("q", measured), items("w", 3), b, limit, share)


def limit(request: Request | None) -> int:
    assert request is not None
    tokens: int = json.loads(request.body)["max_tokens"]
    return tokens


def ids(feed: Feed, slots: list[int]) -> list[str]:
    requests = [feed.next_request(slot) for slot in slots]
    return [request.item_id for request in requests if request is not None]


def test_first_warmups_are_cut_to_a_growing_share_of_the_limit() -> None:
    four = feed(4)
    assert [limit(four.next_request(slot)) for slot in range(4)] == [16, 32, 48, 64]


def test_later_warmups_and_measured_requests_have_the_whole_limit() -> None:
    four = feed(4)
    four.next_request(0)
    assert limit(four.next_request(0)) == 64
    four.warm = True
    assert limit(four.next_request(0)) == 64


def test_every_slot_warms_up_once_even_when_the_warmup_time_is_over() -> None:
    two = feed(2)
    two.warm = True
    requests = [two.next_request(slot) for slot in (0, 0, 1, 1)]
    assert [request.phase for request in requests if request] == ["warmup", "measured", "warmup", "measured"]


def test_slots_warm_up_until_the_feed_is_warm() -> None:
    one = feed(1)
    assert {request.phase for _ in range(7) if (request := one.next_request(0))} == {"warmup"}


def test_with_a_limit_each_item_is_given_out_once_and_then_none() -> None:
    one = feed(1, measured=5, limit=5)
    one.next_request(0)
    one.warm = True
    assert ids(one, [0] * 5) == ["q0", "q1", "q2", "q3", "q4"]
    assert one.dry_ns is None, "the last item is being answered"
    assert one.next_request(0) is None
    assert one.dry_ns is not None


def test_measured_items_come_in_the_same_order_for_every_cell_and_wrap_around() -> None:
    for b in (1, 2, 8):
        some = feed(b)
        for slot in range(b):
            some.next_request(slot)
        some.warm = True
        slots = [(7 * n) % b for n in range(12)]
        assert ids(some, slots) == [f"q{n % 5}" for n in range(12)]


def test_warmup_items_are_never_measured_and_measured_ones_never_warm_up() -> None:
    two = feed(2)
    seen = []
    for turn in range(20):
        two.warm = turn >= 6
        request = two.next_request(turn % 2)
        assert request is not None
        seen.append((request.phase, request.item_id[0]))
    assert set(seen) == {("warmup", "w"), ("measured", "q")}


def test_an_item_is_the_same_request_every_time_but_for_its_salt() -> None:
    one = feed(1, measured=1)
    one.next_request(0)
    one.warm = True
    first, again = one.next_request(0), one.next_request(0)
    assert first is not None
    assert again is not None
    assert json.loads(first.body) | {"cache_salt": ""} == json.loads(again.body) | {"cache_salt": ""}


def test_nothing_is_sent_after_stop() -> None:
    two = feed(2)
    two.next_request(0)
    two.stop()
    assert [two.next_request(slot) for slot in (0, 1, 0)] == [None, None, None]


def test_slots_are_dealt_to_processes_so_that_none_has_two_more_than_another() -> None:
    shares = [Share(first, 4).slots(10) for first in range(4)]
    assert [len(slots) for slots in shares] == [3, 3, 2, 2]
    assert sorted(slot for slots in shares for slot in slots) == list(range(10))


def test_processes_together_give_out_what_one_would_each_in_the_items_order() -> None:
    """Five items three times over, by two processes: 15 is odd, so an item is the turn of each in turn."""
    given = []
    for first in range(2):
        share = Share(first, 2)
        own = feed(2, measured=5, limit=15, share=share)
        own.next_request(first)
        own.warm = True
        asked = []
        while (request := own.next_request(first)) is not None:
            asked.append(request.item_id)
        assert own.dry_ns is not None
        given.append(asked)
    assert given == [["q0", "q2", "q4", "q1", "q3", "q0", "q2", "q4"], ["q1", "q3", "q0", "q2", "q4", "q1", "q3"]]


def test_a_share_staggers_by_the_slots_place_in_all_of_b() -> None:
    own = feed(4, share=Share(1, 2))
    assert [limit(own.next_request(slot)) for slot in (1, 3)] == [32, 64]


def test_only_measured_answers_are_held_to_the_limit() -> None:
    one = feed(1)
    one.warm = True
    requests = [one.next_request(0) for _ in range(2)]
    assert [(r.phase, r.max_tokens) for r in requests if r] == [("warmup", None), ("measured", 64)]
