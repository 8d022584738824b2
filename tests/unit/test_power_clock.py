"""The offset of another machine's clock, measured over exchanges whose delays are known."""

from __future__ import annotations

import pytest

from loadgen.power.feed import EXCHANGES, measure_offset
from loadgen.power.sample import ClockOffset
from loadgen.power.wire import ClockReading


class Wire:
    """An exporter whose clock is `ahead_ns` of ours; each exchange takes (there, back) nanoseconds."""

    def __init__(self, ahead_ns, delays, boot_id="theirs"):
        self.ahead_ns = ahead_ns
        self.delays = list(delays)
        self.boot_id = boot_id
        self.now_ns = 1_000_000_000

    def read(self):
        there_ns, back_ns = self.delays.pop(0) if self.delays else (9_000_000, 9_000_000)
        self.now_ns += there_ns
        reading = ClockReading(monotonic_ns=self.now_ns + self.ahead_ns, unix_ns=0, boot_id=self.boot_id)
        self.now_ns += back_ns
        return reading

    def measure(self, own_boot_id):
        return measure_offset(self.read, own_boot_id=own_boot_id, now_ns=lambda: self.now_ns)


def test_even_delays_give_the_exact_offset():
    clock = Wire(5_000_000_000, [(200_000, 200_000)] * EXCHANGES).measure("ours")
    assert clock == ClockOffset(offset_ns=5_000_000_000, bound_ns=200_000, same_machine=False)


def test_the_quickest_exchange_counts():
    delays = [(3_000_000, 1_000_000), (150_000, 50_000), (2_000_000, 2_000_000)]
    clock = Wire(-7_000_000_000, delays).measure("ours")
    assert clock.bound_ns == 100_000
    assert clock.offset_ns == -7_000_000_000 + (150_000 - 50_000) // 2


@pytest.mark.parametrize("delays", [(0, 800_000), (800_000, 0), (300_000, 500_000), (799_999, 1)])
@pytest.mark.parametrize("ahead_ns", [0, 12_345_678_901, -12_345_678_901])
def test_the_true_offset_is_within_the_bound_however_uneven_the_delays(ahead_ns, delays):
    clock = Wire(ahead_ns, [delays] * EXCHANGES).measure("ours")
    assert abs(clock.offset_ns - ahead_ns) <= clock.bound_ns


def test_one_boot_is_one_clock():
    clock = Wire(0, [(200_000, 100_000)] * EXCHANGES, boot_id="ours").measure("ours")
    assert clock == ClockOffset(offset_ns=0, bound_ns=0, same_machine=True)


def test_one_boot_with_clocks_apart_is_measured():
    """A container with a time namespace of its own."""
    clock = Wire(60_000_000_000, [(200_000, 200_000)] * EXCHANGES, boot_id="ours").measure("ours")
    assert (clock.offset_ns, clock.same_machine) == (60_000_000_000, False)


def test_two_unknown_boots_are_not_taken_for_one():
    assert not Wire(0, [(100_000, 100_000)] * EXCHANGES, boot_id=None).measure(None).same_machine
