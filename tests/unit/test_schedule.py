"""What an open loop asks, and when: warm-up, the window's items, cool-down."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise

import pytest

from loadgen.load.body import RequestMaker, RequestSettings
from loadgen.load.exchange import Request
from loadgen.load.openloop import Arrivals, Schedule
from loadgen.workload.item import Item
from loadgen.workload.protocol import load_protocol

S = 1_000_000_000


def items(prefix: str, count: int) -> list[Item]:
    return [Item(id=f"{prefix}{n}", question=f"{prefix} {n}?", solution="", gold="1") for n in range(count)]


def schedule(arrival: str = "constant:10", *, seed: str = "0/1", limit: int | None = None) -> Schedule:
    maker = RequestMaker(RequestSettings(protocol=load_protocol("sample"), model="m", seed=0, max_tokens=64))
    arrivals = Arrivals.parse(arrival)
    assert arrivals is not None
    return Schedule(maker, items("q", 4), items("w", 3), arrivals, seed, limit)


def told(requests: Iterator[Request], count: int) -> list[tuple[str, str, float]]:
    """Phase, item and due time in s."""
    taken = list(islice(requests, count))
    return [(r.phase, r.item_id, (r.t_scheduled_ns or 0) / S) for r in taken]


def test_the_warm_up_begins_at_once_and_goes_on_at_the_rate() -> None:
    assert told(schedule().warmup(5 * S), 4) == [
        ("warmup", "w0", 5.0), ("warmup", "w1", 5.1), ("warmup", "w2", 5.2), ("warmup", "w0", 5.3),
    ]  # fmt: skip


def test_the_window_has_what_is_due_in_it_and_the_traffic_goes_on_behind_it() -> None:
    of = schedule()
    found = told(of.window(100 * S, 100 * S + 550_000_000), 8)
    assert found == [
        ("measured", "q0", 100.1), ("measured", "q1", 100.2), ("measured", "q2", 100.3), ("measured", "q3", 100.4),
        ("measured", "q0", 100.5), ("cooldown", "w0", 100.65), ("cooldown", "w1", 100.75), ("cooldown", "w2", 100.85),
    ]  # fmt: skip
    assert of.measured == 5
    assert of.dry_ns is None, "time ends this window, not the items"


def test_an_arrival_at_the_closing_instant_is_of_the_window() -> None:
    of = schedule()
    list(islice(of.window(0, S), 12))
    assert of.measured == 10


def test_of_so_many_requests_the_last_ones_time_closes_the_window() -> None:
    of = schedule(limit=3)
    requests = of.window(100 * S, None)
    assert [phase for phase, *_ in told(requests, 3)] == ["measured"] * 3
    assert of.dry_ns is None, "the third has not been sent yet"
    assert told(requests, 1) == [("cooldown", "w0", 100.4)]
    assert of.dry_ns == 100 * S + 300_000_000


@pytest.mark.parametrize("warmup", [0, 7, 100])
def test_the_same_seed_has_the_same_items_due_at_the_same_times_however_long_the_warm_up_took(warmup: int) -> None:
    one, other = schedule("poisson:10"), schedule("poisson:10")
    list(islice(other.warmup(0), warmup))
    assert told(one.window(50 * S, 52 * S), 40) == told(other.window(50 * S, 52 * S), 40)


def test_another_repeat_has_other_arrivals_and_the_same_items() -> None:
    first, second = (told(schedule("poisson:10", seed=f"0/{repeat}").window(0, 100 * S), 200) for repeat in (1, 2))
    assert [item for _, item, _ in first] == [item for _, item, _ in second]
    assert not {due for *_, due in first} & {due for *_, due in second}


def test_the_parts_of_a_cell_do_not_repeat_each_others_gaps() -> None:
    of = schedule("poisson:10")
    behind = told(of.window(0, 20 * S), 500)
    parts = [
        told(of.warmup(0), 50),
        [found for found in behind if found[0] == "measured"][:50],
        [found for found in behind if found[0] == "cooldown"][:50],
    ]
    gaps = [round(b - a, 6) for part in parts for (*_, a), (*_, b) in pairwise(part)]
    assert len(gaps) == 3 * 49
    assert len(set(gaps)) > len(gaps) - 3
