"""The sampler: absolute deadlines, numbered samples, and nothing dropped without being counted."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import pytest

from loadgen.errors import UsageError
from loadgen.power.sample import GpuInfo, GpuLostError, PowerSample
from loadgen.power.sampler import Sampler

PATIENCE_S = 20.0


class MadeReader:
    """Readings numbered by their counter; `misbehave(uuid, n)` may raise, or return a latency in nanoseconds."""

    def __init__(self, misbehave: Callable[[str, int], int | None] = lambda uuid, n: None) -> None:
        self._misbehave = misbehave
        self.asked_slow: list[bool] = []
        self._count: dict[str, int] = {}

    def gpus(self) -> list[GpuInfo]:
        return []

    def read(self, uuid: str, *, slow: bool) -> PowerSample:
        self.asked_slow.append(slow)
        n = self._count[uuid] = self._count.get(uuid, -1) + 1
        latency_ns = self._misbehave(uuid, n) or 1000
        return PowerSample(t_ns=time.monotonic_ns(), latency_ns=latency_ns, gpu=uuid, counter_j=float(n))

    def close(self) -> None: ...


def of_gpu(sampler: Sampler, gpu: str) -> list[PowerSample]:
    return [sample for sample in sampler.since(0)[2] if sample.gpu == gpu]


def run_until(sampler: Sampler, samples: int) -> None:
    """Runs the sampler until it has numbered that many."""
    give_up = time.monotonic() + PATIENCE_S
    with sampler:
        while sampler.since(0)[0] < samples:
            assert time.monotonic() < give_up
            time.sleep(0.002)


def test_every_sample_is_handed_out_once_in_order() -> None:
    sampler = Sampler(MadeReader(), ["a"], period_s=0.001)
    handed: list[PowerSample] = []
    following = 0
    with sampler:
        while following < 50:
            following, lost, samples = sampler.since(following)
            assert lost == 0
            handed += samples
    following, lost, samples = sampler.since(following)
    handed += samples
    assert (lost, following) == (0, len(handed))
    assert [sample.counter_j for sample in handed] == list(range(len(handed)))
    assert sampler.since(following) == (following, 0, [])


def test_what_no_longer_fits_the_ring_is_counted_as_lost() -> None:
    sampler = Sampler(MadeReader(), ["a"], period_s=0.001, history_s=0.01)  # ten samples
    run_until(sampler, 25)
    following, lost, samples = sampler.since(3)
    assert len(samples) == 10
    assert [sample.counter_j for sample in samples] == list(range(following - 10, following))
    assert lost == following - 10 - 3


def test_gpus_are_read_in_each_tick() -> None:
    sampler = Sampler(MadeReader(), ["a", "b"], period_s=0.001)
    run_until(sampler, 20)
    following, _, samples = sampler.since(0)
    assert [sample.gpu for sample in samples] == ["a", "b"] * (following // 2)
    assert sampler.statistics().ticks == following // 2


def test_slow_fields_are_due_at_once_and_then_when_their_period_is_over() -> None:
    for slow_period_s, expected in ((1000.0, {False}), (0.0, {True})):
        reader = MadeReader()
        run_until(Sampler(reader, ["a"], period_s=0.001, slow_period_s=slow_period_s), 10)
        assert reader.asked_slow[0]
        assert set(reader.asked_slow[1:]) == expected


def test_deadlines_are_absolute() -> None:
    # Each reading takes 2 of 5 ms. Waiting 5 ms after each would lose 2 ms a tick: 29 * 2 / 5 = 11 ticks behind.
    sampler = Sampler(MadeReader(lambda uuid, n: time.sleep(0.002)), ["a"], period_s=0.005)
    run_until(sampler, 30)
    samples, statistics = sampler.since(0)[2], sampler.statistics()
    periods = (samples[-1].t_ns - samples[0].t_ns) / 5e6
    assert statistics.lateness_ms_max is not None
    assert periods - (statistics.ticks + statistics.ticks_missed - 1) <= 1 + statistics.lateness_ms_max / 5


def test_deadlines_that_passed_during_a_reading_are_counted_not_made_up_for() -> None:
    # One reading of 55 ms at a period of 10 ms: five deadlines pass before it ends.
    sampler = Sampler(MadeReader(lambda uuid, n: time.sleep(0.055) if n == 3 else None), ["a"], period_s=0.01)
    run_until(sampler, 8)
    assert sampler.statistics().ticks_missed >= 4
    assert sampler.statistics().ticks == sampler.since(0)[0]


def test_a_reading_slower_than_the_period_is_dropped_and_counted() -> None:
    sampler = Sampler(MadeReader(lambda uuid, n: 2_000_001 if n == 4 else 2_000_000), ["a"], period_s=0.002)
    run_until(sampler, 8)
    assert [sample.counter_j for sample in sampler.since(0)[2]][:6] == [0, 1, 2, 3, 5, 6]
    assert sampler.statistics().slow_reads == {"a": 1}


def test_of_a_lost_gpu_the_last_sample_says_so_and_the_others_go_on() -> None:
    def lose_a(uuid: str, n: int) -> None:
        if uuid == "a" and n == 3:
            raise GpuLostError("NVML_ERROR_GPU_IS_LOST")

    sampler = Sampler(MadeReader(lose_a), ["a", "b"], period_s=0.001)
    run_until(sampler, 30)
    of_a = of_gpu(sampler, "a")
    assert [sample.counter_j for sample in of_a] == [0, 1, 2, None]
    assert of_a[-1].errors == ("gpu: NVML_ERROR_GPU_IS_LOST",)
    assert len(of_gpu(sampler, "b")) >= 26
    assert sampler.statistics().lost == {"a": "NVML_ERROR_GPU_IS_LOST"}


def test_a_thread_that_fails_is_not_silent() -> None:
    def fail(uuid: str, n: int) -> None:
        raise OSError("the bus is gone")

    with pytest.raises(RuntimeError, match=r"the power sampler has stopped.*the bus is gone"):
        run_until(Sampler(MadeReader(fail), ["a"], period_s=0.001), 1)


def test_lateness_is_unknown_before_the_first_tick() -> None:
    statistics = Sampler(MadeReader(), ["a"]).statistics()
    assert (statistics.ticks, statistics.lateness_ms_p50, statistics.lateness_ms_p99) == (0, None, None)


class DarkReader(MadeReader):
    """Gives no energy field until it was opened again `attempts` times."""

    def __init__(self, attempts: int) -> None:
        super().__init__()
        self.left = attempts
        self.opened = 0

    def read(self, uuid: str, *, slow: bool) -> PowerSample:
        sample = super().read(uuid, slow=slow)
        if not self.left:
            return sample
        if uuid == "lost":
            raise GpuLostError("NVML_ERROR_GPU_IS_LOST")
        return msgspec.structs.replace(sample, counter_j=None, errors=("counter_j: NVML_ERROR_UNKNOWN",))

    def reopen(self) -> None:
        self.opened += 1
        self.left -= 1
        if self.left:
            raise UsageError("no driver")


def test_sensors_that_went_dark_are_opened_again_with_a_line_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.power.sampler.DARK_S", 0.05)
    monkeypatch.setattr("loadgen.power.sampler.REOPEN_FIRST_S", 0.01)
    reader, lines = DarkReader(3), list[str]()
    sampler = Sampler(reader, ["a", "lost"], period_s=0.001, reopen=reader.reopen, say=lines.append)
    give_up = time.monotonic() + PATIENCE_S
    with sampler:
        while len(lines) < 2:
            assert time.monotonic() < give_up
            time.sleep(0.002)
        time.sleep(0.02)
    assert reader.opened == 3
    assert len(lines) == 2
    assert "no GPU reported energy or power" in lines[0]
    assert "counter_j: NVML_ERROR_UNKNOWN" in lines[0]
    assert lines[1].startswith("the power sensors answer again after")
    assert {sample.gpu for sample in sampler.since(0)[2][-2:]} == {"a", "lost"}
    assert sampler.statistics().lost == {}


def test_one_gpu_that_answers_keeps_the_sensors_open() -> None:
    def misbehave(uuid: str, n: int) -> int | None:
        if uuid == "b":
            raise GpuLostError("NVML_ERROR_GPU_IS_LOST")
        return None

    opened: list[int] = []
    run_until(Sampler(MadeReader(misbehave), ["a", "b"], period_s=0.001, reopen=lambda: opened.append(1)), 100)
    assert opened == []
