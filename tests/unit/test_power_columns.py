"""Power samples as columns say what the samples say one by one: the same joules, the same rows, nothing filled in."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from made_run import make_run
from power_trace import ns

import loadgen
from loadgen.power.energy import energy_of_window
from loadgen.power.sample import PowerSample
from loadgen.power.trace import calibrate, trace_of, traces_of
from loadgen.record.journal import Journal, power_file

RESET_S, T0_S, T1_S = 2.0, 5.0, 45.0
T0_NS, T1_NS = ns(T0_S), ns(T1_S)
LENGTH_S = T1_S - T0_S


def sampled(seed: int, gpu: str = "GPU-a") -> list[PowerSample]:
    """50 s at about 20 ms: readings that are missing, two samples of one instant, a reset before the window, a gap of
    0.4 s in it, an error."""
    rng = random.Random(seed)
    samples, t_s, joules = [], 0.0, 1e5
    while t_s < 50:
        watts = 300 + 50 * math.sin(t_s) + rng.gauss(0, 5)
        joules += watts * 0.02
        samples.append(
            PowerSample(
                t_ns=ns(t_s),
                latency_ns=rng.randrange(100_000),
                gpu=gpu,
                counter_j=None if rng.random() < 0.1 else round(joules, 3),
                power_instant_w=None if rng.random() < 0.1 else watts,
                power_average_w=watts if rng.random() < 0.5 else None,
                temperature_c=60.0 if rng.random() < 0.02 else None,
                throttle_reasons=rng.choice([0, 1]) if rng.random() < 0.02 else None,
                memory_used_bytes=rng.randrange(2**40) if rng.random() < 0.02 else None,
                errors=("power_average_w: NVML_ERROR_UNKNOWN",) if rng.random() < 0.02 else (),
            )
        )
        if rng.random() < 0.02:
            samples.append(msgspec.structs.replace(samples[-1], power_instant_w=watts + 1))
        before_s, t_s = t_s, t_s + rng.uniform(0.015, 0.025)
        if before_s < RESET_S <= t_s:
            joules = 0.0
        if before_s < 20 <= t_s:
            t_s = before_s + 0.42
    return samples


def readings(samples: list[PowerSample], field: str) -> dict[float, float]:
    """Seconds into the window -> value; of one instant the last reading."""
    known = [s for s in samples if getattr(s, field) is not None]
    return {(s.t_ns - T0_NS) / 1e9: getattr(s, field) for s in sorted(known, key=lambda s: s.t_ns)}


def at(points: list[tuple[float, float]], t_s: float) -> float:
    """On the straight line between the points beside it."""
    (a_s, a), (b_s, b) = next((p, q) for p, q in pairwise(points) if p[0] <= t_s <= q[0])
    return a + (b - a) * (t_s - a_s) / (b_s - a_s)


def integral_j(samples: list[PowerSample]) -> float:
    """Trapezoid by trapezoid, interpolated at both edges."""
    points = list(readings(samples, "power_instant_w").items())
    inside = [point for point in points if 0 < point[0] < LENGTH_S]
    line = [(0.0, at(points, 0.0)), *inside, (LENGTH_S, at(points, LENGTH_S))]
    return sum((b_s - a_s) * (a + b) / 2 for (a_s, a), (b_s, b) in pairwise(line))


def counter_j(samples: list[PowerSample]) -> float:
    """Along the updates since the reset, each in the middle of the two readings that show it."""
    seen = [point for point in readings(samples, "counter_j").items() if point[0] > RESET_S + 0.1 - T0_S]
    updates = [((a_s + b_s) / 2, b) for (a_s, a), (b_s, b) in pairwise(seen) if a != b]
    return at(updates, LENGTH_S) - at(updates, 0.0)


@pytest.mark.parametrize("seed", range(6))
def test_joules_are_those_of_the_samples_one_by_one(seed: int) -> None:
    samples = sampled(seed)
    energy = energy_of_window(trace_of("GPU-a", samples), T0_NS, T1_NS)
    assert energy.integral_j == pytest.approx(integral_j(samples), rel=1e-12)
    assert energy.counter_j == pytest.approx(counter_j(samples), rel=1e-9)
    assert energy.samples == sum(T0_NS <= s.t_ns <= T1_NS for s in samples)
    assert energy.max_gap_s == pytest.approx(0.42, abs=1e-6)
    inside = [s for s in samples if T0_NS <= s.t_ns <= T1_NS]
    assert energy.memory_used_bytes_max == max(s.memory_used_bytes or 0 for s in inside)
    assert type(energy.memory_used_bytes_max) is int


def test_neither_order_nor_other_gpus_matter() -> None:
    """Samples as they come from two GPUs, and shuffled: of two at one instant the later in the list stands."""
    a, b = sampled(1), sampled(2, "GPU-b")
    mixed = sorted(a + b, key=lambda s: s.t_ns)
    traces = traces_of(mixed)
    assert [energy_of_window(traces[gpu], T0_NS, T1_NS) for gpu in ("GPU-a", "GPU-b")] == [
        energy_of_window(own, T0_NS, T1_NS) for own in (a, b)
    ]
    alone = [s for s, following in pairwise([*a, a[-1]]) if following.t_ns > s.t_ns]
    shuffled = random.Random(0).sample(alone, len(alone))
    assert energy_of_window(trace_of("GPU-a", shuffled), T0_NS, T1_NS) == energy_of_window(alone, T0_NS, T1_NS)
    assert calibrate(shuffled) == calibrate(alone)


def test_a_part_of_a_trace_has_both_its_ends() -> None:
    trace = trace_of("GPU-a", [PowerSample(t_ns=t, latency_ns=1, gpu="GPU-a") for t in (1, 2, 2, 3, 4)])
    assert trace.between(2, 3).t_ns.tolist() == [2, 2, 3]
    assert len(trace.between(5, 9)) == 0
    assert len(trace_of("GPU-b", [])) == 0


def test_power_parquet_has_every_sample_as_it_was_read(tmp_path: Path) -> None:
    """GPU by GPU; what was not read is null, never 0."""
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    a, b = sampled(3), sampled(4, "GPU-b")
    journal = Journal(power_file(run_dir, "fp16", 1))
    for sample in sorted(a + b, key=lambda s: s.t_ns):
        journal.append(sample)
    journal.close()
    table = loadgen.load_run(run_dir).power.astype(object)
    table = table.where(table.notna(), None)
    assert len(table) == len(a + b)
    for row, sample in zip(table.to_dict("records"), a + b, strict=True):
        fields = msgspec.structs.asdict(sample)
        gpu, errors = fields.pop("gpu"), fields.pop("errors")
        assert {name: row[name] for name in fields} == fields
        assert (row["gpu_uuid"], row["errors"]) == (gpu, "; ".join(errors) or None)
        assert (row["target"], row["repeat"], row["session"], row["simulated"]) == ("fp16", 1, 1, False)
