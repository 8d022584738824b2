"""When an open loop's requests are due."""

from __future__ import annotations

import time
from itertools import islice

import numpy as np
import pytest
from scipy import stats

from loadgen.errors import UsageError
from loadgen.load.openloop import Alarm, Arrivals

MANY = 1_000_000


def offsets(text: str, count: int, seed: str = "0") -> list[int]:
    arrivals = Arrivals.parse(text)
    assert arrivals is not None
    return list(islice(arrivals.offsets_ns(seed), count))


def test_constant_arrivals_do_not_drift_over_a_million() -> None:
    due = offsets("constant:7", MANY)
    assert due[-1] == round(MANY * 1e9 / 7)
    exact = np.arange(1, MANY + 1) * (1e9 / 7)
    assert np.abs(np.array(due) - exact).max() <= 1, "ns"


def test_as_many_constant_arrivals_as_the_rate_says_fall_into_a_window() -> None:
    due = offsets("constant:20", 1000)
    assert sum(0 < t <= 10_000_000_000 for t in due) == 200
    assert due[0] == 50_000_000, "the first is one gap late: nothing is due at the window's opening"


def test_poisson_gaps_are_exponential_with_the_rates_mean() -> None:
    gaps_s = np.diff([0, *offsets("poisson:20", 20_000)]) / 1e9
    assert stats.kstest(gaps_s, stats.expon(scale=1 / 20).cdf).pvalue > 0.01
    assert gaps_s.mean() == pytest.approx(1 / 20, rel=3 / np.sqrt(20_000)), "three standard errors"


def test_poisson_gaps_are_independent() -> None:
    gaps = np.diff(offsets("poisson:20", 20_000))
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 3 / np.sqrt(20_000)


def test_poisson_arrivals_keep_their_mean_over_a_million() -> None:
    assert offsets("poisson:50", MANY)[-1] / 1e9 == pytest.approx(MANY / 50, rel=3 / np.sqrt(MANY))


def test_the_seed_decides_the_arrivals() -> None:
    assert offsets("poisson:20", 100, seed="a") == offsets("poisson:20", 100, seed="a")
    assert offsets("poisson:20", 100, seed="a") != offsets("poisson:20", 100, seed="b")


@pytest.mark.parametrize("text", ["poisson:20", "constant:0.5", "poisson:1e-05", "constant:100000"])
def test_arrivals_print_as_they_are_written(text: str) -> None:
    assert str(Arrivals.parse(text)) == text


def test_closed_is_no_schedule() -> None:
    assert Arrivals.parse("closed") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("poisson", "--arrival poisson: write closed, poisson:RATE or constant:RATE, as in poisson:20"),
        ("burst:3", "--arrival burst:3: write closed, poisson:RATE"),
        ("poisson:", "--arrival poisson:: '' is not a rate; give requests per second"),
        ("constant:-1", "'-1' is not a rate"),
        ("constant:0", "'0' is not a rate"),
        ("poisson:nan", "'nan' is not a rate"),
        ("poisson:inf", "'inf' is not a rate"),
        ("poisson:2/m", "'2/m' is not a rate"),
        ("poisson:200000", "above 0 and at most 100000"),
        ("closed:2", "write closed, poisson:RATE"),
    ],
)
def test_what_is_no_arrival_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        Arrivals.parse(text)
    assert said in str(refused.value)


@pytest.mark.parametrize("kernel", [True, False])
def test_an_alarm_never_rings_early(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    import uvloop

    if not kernel:
        monkeypatch.setattr("loadgen.load.openloop._timerfd", lambda: -1)

    async def run() -> list[int]:
        lateness: list[int] = []
        rung = asyncio.Event()

        def ring() -> None:
            lateness.append(time.monotonic_ns() - due)
            rung.set()

        alarm = Alarm(ring)
        for k in range(40):
            rung.clear()
            due = time.monotonic_ns() + k * 100_000 - 200_000
            alarm.set(due + 10**9)
            alarm.set(due)
            await asyncio.wait_for(rung.wait(), 5)
        alarm.close()
        return lateness

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        lateness = runner.run(run())
    assert len(lateness) == 40, "set again, it rings once, at the later instant"
    assert min(lateness) >= 0
