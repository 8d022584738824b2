"""What the client says of itself: CPU time and how late its event loop is."""

from __future__ import annotations

import asyncio

import pytest
from test_pool import VirtualTimeLoop

from loadgen.load.load import PROBE_S, ClientProbe, ClientUse, ProcessUse


def watched(held: list[tuple[float, float]], until_s: float) -> ProcessUse:
    """The use of a loop whose clock jumps: `held` are (when, for how long) it stands still."""

    async def run() -> ProcessUse:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)

        def hold(length_s: float) -> None:
            loop.now_s += length_s

        probe = ClientProbe()
        for when_s, length_s in held:
            loop.call_at(when_s, hold, length_s)
        await asyncio.sleep(until_s)
        return probe.close()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(run())


def test_a_loop_that_is_never_held_up_is_never_late() -> None:
    use = watched([], 2.01)
    assert (use.lag_ms_p50, use.lag_ms_p90, use.lag_ms_p99, use.lag_ms_max) == pytest.approx((0, 0, 0, 0), abs=1e-6)


def test_every_timer_that_a_stall_swallows_counts_with_its_own_lateness() -> None:
    """100 timers; a stall from 0.51 s to 0.91 s makes those due at 0.52, 0.54, ... 0.90 late by 390, 370, ... 10 ms:
    20 of them. The tenth worst of all is the tenth worst of these (210 ms), so the 90th is the next (190 ms)."""
    use = watched([(0.51, 0.4)], 100 * PROBE_S + 0.005)
    assert use.lag_ms_max == pytest.approx(390, abs=0.01)
    assert use.lag_ms_p90 == pytest.approx(190, abs=0.01)
    assert use.lag_ms_p99 == pytest.approx(370, abs=0.01)
    assert use.lag_ms_p50 == pytest.approx(0, abs=0.01), "80 of 100 timers never waited"
    assert use.lag_ms_mean == pytest.approx(20 * (390 + 10) / 2 / 100)


def test_a_window_shorter_than_a_timer_has_no_lag() -> None:
    use = watched([], PROBE_S / 2)
    assert (use.lag_ms_p50, use.lag_ms_p90, use.lag_ms_p99, use.lag_ms_max) == (None, None, None, None)


def test_cpu_time_is_the_sum_and_the_share_and_the_lags_are_the_worst_ones() -> None:
    uses = [
        ProcessUse(
            cpu_s=1.0, wall_s=10.0, lag_ms_mean=0.6, lag_ms_p50=0.5, lag_ms_p90=1.0, lag_ms_p99=9.0, lag_ms_max=10.0
        ),
        ProcessUse(
            cpu_s=4.0, wall_s=8.0, lag_ms_mean=0.75, lag_ms_p50=0.25, lag_ms_p90=2.0, lag_ms_p99=3.0, lag_ms_max=40.0
        ),
        ProcessUse(cpu_s=0.5, wall_s=10.0),
    ]
    assert ClientUse.of(uses, beside_s=0.25) == ClientUse(
        client_processes=3,
        client_cpu_s=5.75,
        client_cpu_share=0.5,
        loop_lag_ms_mean=0.75,
        loop_lag_ms_p50=0.5,
        loop_lag_ms_p90=2.0,
        loop_lag_ms_p99=9.0,
        loop_lag_ms_max=40.0,
    )
