"""Calibration learns from samples what the sensors are like."""

from __future__ import annotations

import msgspec
import pytest
from power_trace import GPU, at, constant, ramp, ticks, trace

from loadgen.power.trace import calibrate


def test_update_periods_resolution_and_mean_power() -> None:
    # A ramp: each update differs from the one before. 80 W at 0 s, 120 W at 20 s.
    instants = ticks(20, 0.01)
    samples = trace(ramp(80, 2), instants, counter_s=0.1, phase_s=0.005, instant_s=0.05, averaging_s=0.025)
    averages = trace(ramp(80, 2), instants, instant_s=0.2, phase_s=0.005, averaging_s=1.0)
    samples = [
        msgspec.structs.replace(s, power_average_w=a.power_instant_w) for s, a in zip(samples, averages, strict=True)
    ]
    calibration = calibrate(samples)[GPU]
    assert calibration.sampling_period_s == pytest.approx(0.01)
    assert calibration.counter_period_s == pytest.approx(0.1)
    assert calibration.instant_period_s == pytest.approx(0.05)
    assert calibration.average_period_s == pytest.approx(0.2)
    assert calibration.counter_resolution_j == pytest.approx(0.001)
    assert calibration.power_w_mean == pytest.approx(100, rel=0.001)
    assert calibration.duration_s == pytest.approx(20)


def test_the_resolution_is_the_step_of_the_counter_not_its_growth() -> None:
    # 5, 15 and 35 mJ more: the counter moves by 5 mJ at least.
    samples = [at(i * 0.1, counter_j=joules) for i, joules in enumerate((7.0, 7.005, 7.02, 7.055))]
    assert calibrate(samples)[GPU].counter_resolution_j == pytest.approx(0.005)


def test_what_is_not_there_is_none() -> None:
    calibration = calibrate(trace(constant(60), ticks(5, 0.02), counter_s=None))[GPU]
    assert (calibration.counter_period_s, calibration.counter_resolution_j) == (None, None)
    assert calibration.average_period_s is None
    assert calibration.instant_period_s is None  # even power shows no updates
    assert calibration.power_w_mean == pytest.approx(60)
    alone = calibrate([at(1.0, counter_j=3.0)])[GPU]
    assert (alone.samples, alone.sampling_period_s, alone.power_w_mean) == (1, None, None)


def test_each_gpu_by_itself() -> None:
    samples = trace(constant(60), ticks(5, 0.02))
    other = [msgspec.structs.replace(s, gpu="GPU-other") for s in trace(constant(90), ticks(5, 0.02))]
    calibrations = calibrate([*samples, *other])
    assert calibrations[GPU].power_w_mean == pytest.approx(60, rel=0.01)
    assert calibrations["GPU-other"].power_w_mean == pytest.approx(90, rel=0.01)
    assert calibrate([]) == {}
