"""Energy of a window whose one source has no second one to check it: what cannot be true is invalid."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from power_trace import at, constant, ns, square, ticks, trace

from loadgen.power.energy import WindowEnergy, energy_of_window
from loadgen.power.sample import GpuInfo, PowerSample

BOTH = trace(constant(400), ticks(80, 0.02), phase_s=0.01)
POWER_ONLY = [msgspec.structs.replace(s, counter_j=None) for s in BOTH]
COUNTER_ONLY = [msgspec.structs.replace(s, power_instant_w=None) for s in BOTH]


def window(samples: list[PowerSample], t0_s: float = 10, t1_s: float = 70, **known: Any) -> WindowEnergy:
    return energy_of_window(samples, ns(t0_s), ns(t1_s), **known)


def some(samples: list[PowerSample], **fields: Any) -> list[PowerSample]:
    """Three samples in the window with other fields."""
    return [msgspec.structs.replace(s, **fields) if i in (1000, 1500, 2000) else s for i, s in enumerate(samples)]


def test_no_gpu_draws_0_w_under_load() -> None:
    energy = window(some(POWER_ONLY, power_instant_w=0.0))
    assert energy.verdict == "invalid"
    assert energy.reasons[0].startswith("instantaneous power was 0 W in 3 of 3001 readings")
    assert window([msgspec.structs.replace(s, power_instant_w=0.0) for s in POWER_ONLY]).verdict == "invalid"


@pytest.mark.parametrize(("watts", "verdict"), [(1050.0, "warning"), (1051.0, "invalid")])
def test_power_above_one_and_a_half_times_the_limit_is_a_fault_of_the_sensor(watts: float, verdict: str) -> None:
    energy = window(some(POWER_ONLY, power_instant_w=watts), limit_w=700.0)
    assert energy.verdict == verdict
    if verdict == "invalid":
        assert "was up to 1051 W in 3 of 3001 readings, more than 1.5 times the limit of 700 W" in energy.reasons[0]


def test_a_counter_checks_the_power() -> None:
    assert window(some(BOTH, power_instant_w=0.0), limit_w=200.0).verdict == "good"


@pytest.mark.parametrize(("limit_w", "verdict"), [(385.0, "warning"), (375.0, "invalid"), (None, "warning")])
def test_a_counter_without_power_may_not_count_more_than_the_limit(limit_w: float | None, verdict: str) -> None:
    # 400 W: 385 W and the 5% by which a GPU held at its limit wavers are 404 W.
    energy = window(COUNTER_ONLY, limit_w=limit_w)
    assert energy.verdict == verdict
    if verdict == "invalid":
        assert "J are 400 W on average, more than the limit of 375 W, and no power reading" in energy.reasons[0]


def test_a_higher_limit_among_the_samples_counts() -> None:
    assert window(some(COUNTER_ONLY, power_limit_w=450.0), limit_w=300.0).verdict == "warning"


def test_a_counter_that_stands_still_without_power_is_invalid() -> None:
    energy = window([msgspec.structs.replace(s, counter_j=5.0) for s in COUNTER_ONLY])
    assert (energy.verdict, energy.energy_j) == ("invalid", None)


def averaged(low_w: float, high_w: float, period_s: float, counter: bool = False) -> list[PowerSample]:
    """A square wave as a mean of the last second shows it."""
    curve = square(low_w, high_w, period_s)
    made = trace(curve, ticks(80, 0.02), instant_s=0.02, averaging_s=1.0, counter_s=0.1 if counter else None)
    return [msgspec.structs.replace(s, power_average_w=s.power_instant_w, power_instant_w=None) for s in made]


def test_average_power_is_used_where_there_is_no_instantaneous_power() -> None:
    energy = window(averaged(400, 400, 10))
    assert (energy.source, energy.verdict) == ("average", "warning")
    assert energy.energy_j == pytest.approx(24_000)
    said = "no instantaneous power: NVML's average over about 1 s is used, and the energy is uncertain by up to 0.0%"
    assert any(reason.startswith(said) for reason in energy.reasons)


def test_average_power_belongs_to_the_middle_of_its_second() -> None:
    # 200 W, and 600 W from 40 s on: 30 s of each. Taken as of the end of its second it would be 200 J less.
    made = averaged(600, 200, 80)
    assert window(made).energy_j == pytest.approx(24_000, abs=5)


def test_average_power_is_not_believed_in_a_short_window_with_a_step_at_its_edge() -> None:
    # From 40 s on 600 W instead of 200 W: half a second of 400 W may lie on either side, of 2 s at 600 W.
    energy = window(averaged(600, 200, 80), 40, 42)
    assert energy.verdict == "invalid"
    assert "uncertain by up to 1" in energy.reasons[0]
    assert "use a longer window" in energy.reasons[0]
    assert window(averaged(600, 200, 80), 42, 44).verdict == "warning"


def test_average_power_checks_the_counter() -> None:
    made = averaged(400, 400, 10, counter=True)
    energy = window(made)
    assert (energy.source, energy.ratio) == ("counter", pytest.approx(1, abs=1e-3))
    said = "no instantaneous power: NVML's average over about 1 s is used to check the energy counter"
    assert energy.reasons == (said,)
    wrong = [msgspec.structs.replace(s, power_average_w=300.0) for s in made]
    assert window(wrong).verdict == "invalid"


def test_a_modules_counter_is_neither_the_headline_nor_a_check() -> None:
    # A superchip: 400 W of the GPU beside 300 W of CPU and memory.
    module = [msgspec.structs.replace(s, counter_j=(s.counter_j or 0) * 7 / 4) for s in BOTH]
    energy = window(module, scope="module", limit_w=700.0)
    assert (energy.verdict, energy.source) == ("warning", "integral")
    assert energy.energy_j == pytest.approx(24_000, abs=0.01)
    assert energy.counter_j == pytest.approx(42_000, abs=1)
    assert energy.reasons == (
        "the energy counter is the whole module's (GPU, CPU and memory): the energy is the integral of the GPU's "
        "instantaneous power alone",
    )
    assert window(module).verdict == "invalid"
    assert window(some(module, power_instant_w=0.0), scope="module").verdict == "invalid"
    alone = window([msgspec.structs.replace(s, power_instant_w=None) for s in module], scope="module")
    assert (alone.verdict, alone.energy_j) == ("invalid", None)


def test_a_gpu_that_came_back_before_the_window_is_not_lost() -> None:
    lost = at(7, errors=("gpu: NVML_ERROR_GPU_IS_LOST",))
    assert window([*(s for s in BOTH if s.t_ns > ns(8)), lost]).verdict == "good"
    assert "was lost" in window([*(s for s in BOTH if s.t_ns < ns(7)), lost]).reasons[0]


def test_the_limit_of_a_package_is_its_highest() -> None:
    known = {"uuid": "x", "index": 0, "name": "x", "power_limit_enforced_w": 165.0, "power_limit_max_w": 250.0}
    assert GpuInfo(**known).plausible_limit_w == 165.0  # type: ignore[arg-type]
    assert GpuInfo(**known, scope="package").plausible_limit_w == 250.0  # type: ignore[arg-type]
