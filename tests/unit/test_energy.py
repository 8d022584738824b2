"""Energy of a window: its edges, its checks, and every fault named. The true curves are in test_energy_curves.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from power_trace import GPU, at, constant, ns, ramp, square, ticks, trace

from loadgen.errors import UsageError
from loadgen.power.energy import WindowEnergy, energy_of_window
from loadgen.power.sample import (
    HW_POWER_BRAKE_SLOWDOWN,
    HW_SLOWDOWN,
    HW_THERMAL_SLOWDOWN,
    SW_POWER_CAP,
    SW_THERMAL_SLOWDOWN,
    GpuInfo,
    PowerSample,
)

STEADY = trace(constant(400), ticks(80, 0.02), phase_s=0.01)
"""400 W for 80 s; the counter is updated at 0.01, 0.11, ... s, right between two samples."""


def steady(samples: Sequence[PowerSample] = STEADY, t0_s: float = 10, t1_s: float = 70) -> WindowEnergy:
    return energy_of_window(samples, ns(t0_s), ns(t1_s))


def changed(t0_s: float, t1_s: float, **fields: Any) -> list[PowerSample]:
    """The steady trace with `fields` set in (t0_s, t1_s]."""
    return [msgspec.structs.replace(s, **fields) if ns(t0_s) < s.t_ns <= ns(t1_s) else s for s in STEADY]


def only_reason(energy: WindowEnergy, verdict: str) -> str:
    assert energy.verdict == verdict, energy.reasons
    (reason,) = energy.reasons
    return reason


def test_an_undisturbed_window_is_good() -> None:
    energy = steady()
    assert (energy.verdict, energy.reasons, energy.gpu) == ("good", (), GPU)
    assert energy.energy_j == pytest.approx(24_000, abs=1e-2)
    assert energy.ratio == pytest.approx(1, abs=1e-5)
    assert energy.samples == 3001  # 60 s at 20 ms, both edges on a tick
    assert energy.max_gap_s == pytest.approx(0.02, abs=1e-6)


def test_edges_between_samples_and_between_updates_are_interpolated() -> None:
    # 0.05 s of 60 s: without interpolation the staircase would give a multiple of 40 J.
    assert steady(t0_s=10.0, t1_s=70.05).counter_j == pytest.approx(24_020, abs=0.01)
    assert steady(t0_s=10.013, t1_s=70.0).integral_j == pytest.approx(23_994.8, abs=0.01)


def test_power_between_samples_lies_on_a_straight_line() -> None:
    # 600 W at 10 s, 1800 W at 70 s: 1200 W * 60 s. Holding each reading to the next would lose 20 * 60 * 0.01 = 12 J.
    samples = trace(ramp(400, 20), ticks(80, 0.02))
    assert energy_of_window(samples, ns(10), ns(70)).integral_j == pytest.approx(72_000, abs=0.1)


def test_the_order_of_samples_does_not_matter() -> None:
    assert steady(STEADY[::-1]) == steady()


def test_equal_readings_are_not_dropped() -> None:
    # 100 W for 30 s, then 700 W for 30 s: a trapezoid over changed values only would be 24 kJ less or more.
    samples = trace(square(700, 100, 80), ticks(80, 0.02))
    assert energy_of_window(samples, ns(10), ns(70)).integral_j == pytest.approx(30 * 800, abs=0.5 * 600 * 0.02 + 0.01)


@pytest.mark.parametrize(
    ("factor", "verdict", "limit"), [(1.029, "good", ""), (0.969, "warning", "3%"), (1.11, "invalid", "10%")]
)
def test_counter_and_integral_must_agree(factor: float, verdict: str, limit: str) -> None:
    energy = steady([msgspec.structs.replace(s, power_instant_w=400 * factor) for s in STEADY])
    assert energy.ratio == pytest.approx(factor, abs=1e-4)
    assert energy.energy_j == pytest.approx(24_000, abs=0.01)
    if verdict == "good":
        assert energy.verdict == "good"
    else:
        assert only_reason(energy, verdict).endswith(f"more than {limit} apart")


def test_a_reset_is_invalid_and_shows_both_values() -> None:
    samples = [
        s if s.t_ns < ns(40) else msgspec.structs.replace(s, counter_j=(s.counter_j or 0) - 1_015_964) for s in STEADY
    ]
    energy = steady(samples)
    assert energy.counter_j is None
    assert "fell from 1015964.000 to 0.000 J 30.00 s into the window" in only_reason(energy, "invalid")
    assert energy.integral_j == pytest.approx(24_000, abs=0.01)


def test_a_reset_outside_the_window_does_no_harm() -> None:
    for reset_s in (9, 71):
        samples = [
            s if s.t_ns < ns(reset_s) else msgspec.structs.replace(s, counter_j=(s.counter_j or 0) - 1e6)
            for s in STEADY
        ]
        assert steady(samples) == steady()


def test_a_lost_gpu_is_named() -> None:
    samples = [s for s in STEADY if s.t_ns < ns(40)] + [at(40, errors=("gpu: NVML_ERROR_GPU_IS_LOST",))]
    energy = steady(samples)
    assert (energy.verdict, energy.energy_j, energy.source) == ("invalid", None, None)
    assert energy.reasons[0] == "the GPU was lost 30.00 s into the window (NVML_ERROR_GPU_IS_LOST)"
    assert steady(samples, 5, 39).verdict == "good"
    assert "lost 5.00 s before the window" in steady(samples, 45, 80).reasons[0]
    assert "lost 20.00 s before the window" in steady(samples, 60, 80).reasons[0]


def test_a_gap_is_invalid_from_half_a_second_on() -> None:
    def without(t0_s: float, t1_s: float) -> WindowEnergy:
        return steady([s for s in STEADY if not ns(t0_s) < s.t_ns < ns(t1_s)])

    assert without(20, 20.48).verdict == "good"
    reason = only_reason(without(20, 20.6), "invalid")
    assert reason == "no sample for 0.60 s, 10.00 s into the window (the limit is 0.50 s)"
    assert without(9.8, 10.4).max_gap_s == pytest.approx(0.6)  # across the edge
    assert without(9, 9.8).verdict == "good"  # before it


def test_a_gap_is_counted_in_periods_for_a_slow_sampler() -> None:
    samples = [s for s in trace(constant(400), ticks(80, 0.2)) if not ns(20) < s.t_ns < ns(20.7)]
    assert energy_of_window(samples, ns(10), ns(70)).verdict == "good"  # 0.8 s is 4 periods
    samples = [s for s in samples if not ns(20) < s.t_ns < ns(21.1)]
    assert energy_of_window(samples, ns(10), ns(70)).verdict == "invalid"  # 1.2 s is 6


def test_a_sensor_that_fails_for_a_second_is_a_gap_of_that_sensor() -> None:
    reason = only_reason(steady(changed(20, 21, power_instant_w=None)), "invalid")
    assert reason.startswith("no reading of instantaneous power for 1.02 s")
    reason = only_reason(steady(changed(20, 21, counter_j=None)), "invalid")
    assert reason.startswith("no reading of the energy counter for 1.02 s")


def test_samples_must_reach_beyond_both_edges() -> None:
    reason = only_reason(steady([s for s in STEADY if ns(10.5) <= s.t_ns <= ns(69)]), "invalid")
    assert reason == "samples cover only 0.500 to 59.000 s of the window's 60.000 s"
    assert only_reason(steady(t0_s=100, t1_s=160), "invalid").startswith("neither the energy counter nor")
    assert only_reason(steady(t0_s=80.5, t1_s=140), "invalid").startswith("samples cover none")
    assert steady([]).energy_j is None


def test_the_counter_needs_an_update_beyond_both_edges() -> None:
    energy = steady([s for s in STEADY if s.t_ns >= ns(9.96)])
    assert "updates were seen only from 0.010 to" in only_reason(energy, "warning")
    assert (energy.source, energy.counter_j) == ("integral", None)
    assert energy.energy_j == pytest.approx(24_000, abs=0.01)


def test_a_counter_that_stands_still_is_not_used() -> None:
    energy = steady([msgspec.structs.replace(s, counter_j=5.0) for s in STEADY])
    assert only_reason(energy, "warning").startswith("the energy counter did not change")
    assert (energy.source, energy.energy_j) == ("integral", energy.integral_j)


def test_without_a_counter_the_integral_stands_and_says_so() -> None:
    error = "counter_j: NVML_ERROR_NO_PERMISSION"
    energy = steady([msgspec.structs.replace(s, counter_j=None, errors=(error,)) for s in STEADY])
    assert only_reason(energy, "warning").startswith(f"no energy counter ({error}): the energy is the integral")
    assert (energy.source, energy.ratio, energy.energy_j) == ("integral", None, energy.integral_j)


def test_without_instantaneous_power_the_counter_stands_and_says_so() -> None:
    energy = steady(trace(constant(400), ticks(80, 0.02), instant_s=None))
    assert "the energy counter is not checked" in only_reason(energy, "warning")
    assert (energy.source, energy.integral_j, energy.ratio) == ("counter", None, None)


def test_with_neither_there_is_no_energy() -> None:
    energy = steady(trace(constant(400), ticks(80, 0.02), counter_s=None, instant_s=None))
    assert only_reason(energy, "invalid") == "neither the energy counter nor instantaneous power was read"
    assert (energy.energy_j, energy.power_w_mean, energy.source) == (None, None, None)


@pytest.mark.parametrize(
    ("bit", "name", "verdict"),
    [
        (HW_SLOWDOWN, "HwSlowdown", "invalid"),
        (SW_THERMAL_SLOWDOWN, "SwThermalSlowdown", "invalid"),
        (HW_THERMAL_SLOWDOWN, "HwThermalSlowdown", "invalid"),
        (HW_POWER_BRAKE_SLOWDOWN, "HwPowerBrakeSlowdown", "invalid"),
        (SW_POWER_CAP, "SwPowerCap", "warning"),
    ],
)
def test_throttling_is_named_bit_by_bit(bit: int, name: str, verdict: str) -> None:
    samples = [msgspec.structs.replace(s, throttle_reasons=0) if i % 50 == 0 else s for i, s in enumerate(STEADY)]
    samples[1000] = msgspec.structs.replace(samples[1000], throttle_reasons=bit | 1)
    energy = steady(samples)
    assert only_reason(energy, verdict) == f"the GPU's clocks were lowered ({name}) in 1 of 61 readings"
    assert energy.throttle_reasons == bit | 1
    assert steady(samples, 21, 70).verdict == "good"  # sample 1000 is at 20 s


def test_a_short_window_says_how_vague_its_edges_are() -> None:
    # Each edge lies between updates known to half a sampling period: 2 * 10 ms of 1 s.
    energy = steady(t0_s=10.0, t1_s=11.0)
    reason = only_reason(energy, "warning")
    assert reason.startswith("energy uncertain by up to 2.0%: window too short, 1.00 s with 10 updates")
    assert energy.energy_j == pytest.approx(400, rel=0.02)


def test_a_short_window_may_disagree_by_what_its_edges_leave_open() -> None:
    samples = [msgspec.structs.replace(s, power_instant_w=400 * 1.045) for s in STEADY]
    assert len(steady(samples, 10.0, 11.0).reasons) == 1  # 4.5% <= 3% + 2%
    assert len(steady(samples).reasons) == 1  # and in a long one only for the ratio
    assert "apart" in steady(samples).reasons[0]


def test_state_beside_the_energy() -> None:
    samples = changed(40, 40.02, temperature_c=71.0, memory_used_bytes=30_000_000_000)
    samples = [msgspec.structs.replace(s, temperature_c=90.0) if s.t_ns < ns(5) else s for s in samples]
    energy = steady(samples)
    assert (energy.temperature_c_max, energy.memory_used_bytes_max) == (71.0, 30_000_000_000)


def test_wrong_windows_and_mixed_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="no length: give a t1 after t0"):
        steady(t0_s=10, t1_s=10)
    with pytest.raises(ValueError, match="several GPUs"):
        steady([*STEADY, msgspec.structs.replace(STEADY[0], gpu="GPU-other")])


def test_a_gpu_in_mig_mode_cannot_be_attributed() -> None:
    info = GpuInfo(uuid="GPU-1", index=0, name="H200")
    assert info.mig_reason is None
    assert "H200 GPU-1 is in MIG mode" in (msgspec.structs.replace(info, mig=True).mig_reason or "")
