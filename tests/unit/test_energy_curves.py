"""Energy of a window: the counter within 0.5% and the integral within 0.1% on known power curves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from power_trace import Curve, constant, ns, ramp, square, ticks, trace

from loadgen.power.energy import WindowEnergy, energy_of_window

MILLI = 0.001


@st.composite
def samplers(draw: st.DrawFn) -> dict[str, Any]:
    """A window of 30 to 60 s, a sampler of 20 to 50 ms and a counter updated every 20 to 100 ms."""
    period_s = draw(st.integers(20, 50)) * MILLI
    t0 = draw(st.floats(2, 30))
    return {
        "t0": t0,
        "t1": t0 + draw(st.floats(30, 60)),
        "period_s": period_s,
        "jitter_s": draw(st.floats(0, 0.1)) * period_s,
        "seed": draw(st.integers(0, 1000)),
        "counter_s": draw(st.integers(20, 100)) * MILLI,
        "phase_s": draw(st.floats(0, 0.1)),
    }


def measure(curve: Curve, sampler: dict[str, Any], **sensor: Any) -> WindowEnergy:
    instants = ticks(sampler["t1"] + 2, sampler["period_s"], sampler["jitter_s"], sampler["seed"])
    samples = trace(curve, instants, counter_s=sampler["counter_s"], phase_s=sampler["phase_s"], **sensor)
    return energy_of_window(samples, ns(sampler["t0"]), ns(sampler["t1"]))


def assert_true(energy: WindowEnergy, curve: Curve, sampler: dict[str, Any], beyond_j: float = 0.0) -> None:
    """`beyond_j`: what the sensor cannot see of the integral, besides 0.1%."""
    true_j = curve.between_j(sampler["t0"], sampler["t1"])
    assert energy.counter_j == pytest.approx(true_j, rel=0.005)
    assert abs(energy.integral_j - true_j) <= 0.001 * true_j + beyond_j
    assert (energy.source, energy.energy_j, energy.verdict) == ("counter", energy.counter_j, "good")
    assert energy.power_w_mean == pytest.approx(true_j / (sampler["t1"] - sampler["t0"]), rel=0.005)


@settings(max_examples=40, deadline=None)
@given(samplers(), st.floats(20, 1000))
def test_constant_power(sampler: dict[str, Any], watts: float) -> None:
    assert_true(measure(constant(watts), sampler), constant(watts), sampler)


@settings(max_examples=40, deadline=None)
@given(samplers(), st.floats(200, 700), st.floats(-1.5, 5))
def test_a_ramp(sampler: dict[str, Any], start_w: float, watts_per_s: float) -> None:
    curve = ramp(start_w, watts_per_s)
    assert_true(measure(curve, sampler), curve, sampler)


@settings(max_examples=40, deadline=None)
@given(samplers(), st.floats(100, 1000), st.floats(0, 0.5), st.floats(1, 5))
def test_a_load_that_comes_and_goes(sampler: dict[str, Any], mean_w: float, swing: float, slower: float) -> None:
    # Each step of D watts may cost the trapezoid D * gap / 2, and the gap is at most 1.1 periods. With a step each 600
    # periods, W/(600 p) + 1 steps of half the mean: (W/(600 p) + 1) * 0.5 * 1.1 p / 2 / W <= 0.1% of W at W = 30 s,
    # p = 50 ms. The counter's edges: (1.25 * 1.1 p / 2 + 0.5 * 0.1 s / 4) * 2 / W <= 0.31%.
    curve = square(mean_w * (1 - swing / 2), mean_w * (1 + swing / 2), 2 * 600 * sampler["period_s"] * slower)
    assert_true(measure(curve, sampler), curve, sampler)


@settings(max_examples=40, deadline=None)
@given(samplers(), st.integers(10, 100), st.integers(1, 5), st.floats(0, 200), st.floats(200, 1000))
def test_resonance_with_a_sensor_that_averages_all_the_time(
    sampler: dict[str, Any], update_ms: int, cycles: int, low_w: float, high_w: float
) -> None:
    # Whole cycles of the load fit each update of a sensor that misses nothing: every reading is the mean. So the window
    # is charged with the mean of the two cycles that its edges cut: half a cycle's half swing at most.
    update_s = update_ms * MILLI
    curve = square(low_w, high_w, update_s / cycles)
    cut_j = (high_w - low_w) / 2 * update_s / cycles / 2
    assert_true(measure(curve, sampler, instant_s=update_s, averaging_s=update_s), curve, sampler, cut_j)


@settings(max_examples=20, deadline=None)
@given(samplers(), st.floats(0, 0.05))
def test_resonance_with_a_sensor_that_sees_a_quarter_is_caught_by_the_counter(
    sampler: dict[str, Any], phase_s: float
) -> None:
    # 25 of each 100 ms, always the same part of a 100 ms load cycle, all high or all low: the integral says 600 or
    # 200 W where 400 W is true. The counter is not fooled and the two together are not believed.
    curve = square(200, 600, 0.1)
    sampler = {**sampler, "counter_s": 0.1, "phase_s": 0.03 + (0.05 if phase_s > 0.025 else 0)}
    energy = measure(curve, sampler, instant_s=0.1, averaging_s=0.025)
    assert energy.counter_j == pytest.approx(curve.between_j(sampler["t0"], sampler["t1"]), rel=0.005)
    assert energy.ratio == pytest.approx(0.5 if phase_s > 0.025 else 1.5, rel=0.01)
    assert energy.verdict == "invalid"
