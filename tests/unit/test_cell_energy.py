"""Joules of a cell, from made power samples whose energy is known on paper."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from made_run import MS, answer, cell, cell_data, ended, make_run, scrape

import loadgen
from loadgen.analysis.analyse import analyse
from loadgen.analysis.cells import CellSummary, summarize_cell
from loadgen.analysis.energy import CellEnergy, PowerData, interval_of_window, tokens_by_part
from loadgen.analysis.estimate import window_spread
from loadgen.analysis.validity import Validity
from loadgen.power.sample import GPU_LOST, HW_THERMAL_SLOWDOWN, PowerSample
from loadgen.power.trace import trace_of
from loadgen.record.journal import Journal, power_file

WINDOW_MS = (1000.0, 41_000.0)


def constant(watts: float, gpu: str = "GPU-a", *, until_ms: int = 43_000, **fields: object) -> list[PowerSample]:
    """A sample each 25 ms; the counter climbs with every one."""
    known: dict[str, object] = {"latency_ns": MS, "gpu": gpu, "power_instant_w": watts, "power_average_w": watts}
    return [PowerSample(t_ns=t * MS, counter_j=watts * t / 1000, **known, **fields) for t in range(0, until_ms, 25)]


def energy(tmp_path: Path, power: PowerData | None, **options: float | None) -> CellEnergy:
    return figures(tmp_path, power, **options).energy


def figures(tmp_path: Path, power: PowerData | None, **options: float | None) -> CellSummary:
    """A window of 40 s with one answer of 400 tokens, 10 a second, ended inside it."""
    tokens = [(1000 + 100 * (k + 1), 1) for k in range(400)]
    data = cell_data(
        tmp_path, [answer(900, tokens, end=40_999)],
        [scrape(t, running=1.0, waiting=0.0) for t in range(2000, 41_000, 1000)], end=ended(WINDOW_MS),
    )  # fmt: skip
    return summarize_cell(data, [None] * len(data.exchanges), power, **options)


def of(samples: dict[str, list[PowerSample]], **fields: object) -> PowerData:
    traces = {gpu: trace_of(gpu, ours) for gpu, ours in samples.items()}
    return PowerData(samples=traces, **({"rest_w": {}, "limit_default_w": None, "damaged": 0} | fields))


def test_energy_is_power_times_window_and_is_shared_by_its_tokens(tmp_path: Path) -> None:
    """300 W for 40 s: 12 000 J over the 399 or 400 tokens that arrived in (1 s, 41 s]: 30 J each."""
    cell = figures(tmp_path, of({"GPU-a": constant(300.0)}, rest_w={"GPU-a": 100.0}))
    e = cell.energy
    assert cell.validity == Validity(energy=())
    assert e.energy_reservations == ""
    assert e.energy_j == pytest.approx(12_000, rel=1e-3)
    assert e.power_w_mean == pytest.approx(300, rel=1e-3)
    assert e.energy_per_token_j == pytest.approx(30, rel=1e-3)
    assert e.energy_per_query_j == pytest.approx(30 * 400, rel=1e-3)
    assert e.energy_net_j == pytest.approx(8_000, rel=2e-3)
    assert e.tokens_per_j == pytest.approx(1 / 30, rel=1e-3)
    assert e.energy_ratio == pytest.approx(1.0, abs=1e-3)


def test_energies_of_several_gpus_add_up(tmp_path: Path) -> None:
    e = energy(tmp_path, of({"GPU-a": constant(300.0), "GPU-b": constant(200.0, "GPU-b")}))
    assert e.energy_j == pytest.approx(20_000, rel=1e-3)


def test_a_gpu_that_cannot_be_told_leaves_the_sum_empty(tmp_path: Path) -> None:
    cell = figures(tmp_path, of({"GPU-a": constant(300.0), "GPU-b": constant(200.0, "GPU-b", until_ms=20_000)}))
    assert cell.energy.energy_j is None
    assert cell.validity.energy == ("samples cover only 0.000 to 18.975 s of the window's 40.000 s",)


def test_the_bound_is_board_power_times_time_per_query(tmp_path: Path) -> None:
    """400 tokens at 10 a second are 40 s a query: at 700 W, 28 000 J; the datasheet's figure wins over NVML's limit."""
    power = of({"GPU-a": constant(300.0)}, limit_default_w=650.0)
    assert energy(tmp_path / "a", power, tdp_w=700.0).energy_hli_per_query_j == pytest.approx(28_000, rel=1e-3)
    assert energy(tmp_path / "b", power).energy_hli_per_query_j == pytest.approx(26_000, rel=1e-3)


def test_the_bound_needs_no_sensor_and_a_sensor_no_bound(tmp_path: Path) -> None:
    bound = energy(tmp_path / "a", None, tdp_w=700.0)
    assert bound.energy_hli_per_query_j == pytest.approx(28_000, rel=1e-3)
    assert (bound.energy_j, bound.energy_per_token_j, bound.power_w_mean) == (None, None, None)
    assert energy(tmp_path / "b", of({"GPU-a": constant(300.0)})).energy_hli_per_query_j is None


def test_carbon_is_energy_times_intensity(tmp_path: Path) -> None:
    """12 000 J a query are 12 000 / 3.6e6 kWh; at 0.4 kg per kWh: 1.333 g."""
    e = energy(tmp_path, of({"GPU-a": constant(300.0)}), carbon_kg_per_kwh=0.4)
    assert e.carbon_g_per_query == pytest.approx(12_000 / 3.6e6 * 400, rel=1e-3)


def test_mig_makes_the_energy_somebody_elses_too(tmp_path: Path) -> None:
    cell = figures(tmp_path, of({"GPU-a": constant(300.0)}, mig=("GPU-a",)))
    assert cell.validity == Validity(energy=("GPU-a is in MIG mode: its energy is the whole GPU's",))
    assert cell.figure("energy_per_token_j") is None
    assert cell.figure("tokens_per_s") == pytest.approx(10)


@pytest.mark.parametrize(
    ("fault", "valid"),
    [
        ({}, (True, True, True, True)),
        ({"counter_j": 5.0}, (True, True, False, True)),
        ({"throttle_reasons": HW_THERMAL_SLOWDOWN}, (False, False, False, True)),
        ({"errors": (f"{GPU_LOST}NVML_ERROR_GPU_IS_LOST",)}, (False, False, False, False)),
    ],
)
def test_what_the_gpu_shows_counts_against_what_it_concerns(
    tmp_path: Path, fault: dict[str, object], valid: tuple[bool, ...]
) -> None:
    """At 20 s: a counter that begins again, heat, a GPU that is gone."""
    before, at, after = constant(300.0)[:800], constant(300.0)[800], constant(300.0)[801:]
    seen = [*before, msgspec.structs.replace(at, **fault), *after]
    found = figures(tmp_path, of({"GPU-a": seen})).validity
    assert (found.valid, found.latency_valid, found.energy_valid, found.answers_valid) == valid


def test_power_of_0_w_has_no_interval_and_is_not_valid(tmp_path: Path) -> None:
    dead = [msgspec.structs.replace(sample, counter_j=None) for sample in constant(0.0)]
    found = figures(tmp_path, of({"GPU-a": dead}))
    assert found.energy.energy_j == 0
    assert (found.energy.energy_per_token_j_lo, found.energy.energy_per_token_j_hi) == (None, None)
    assert found.validity.energy_valid is False
    assert "0 W in" in (found.validity.energy or ("",))[0]


def test_a_gpu_that_was_lost_long_before_the_window_is_lost(tmp_path: Path) -> None:
    """Its last sample is at 0.1 s; the window opens at 1 s, and what is kept for it begins 3 s before."""
    until, code = constant(300.0, "GPU-b")[:4], f"{GPU_LOST}NVML_ERROR_GPU_IS_LOST"
    gone = [*until, PowerSample(t_ns=100 * MS, latency_ns=MS, gpu="GPU-b", errors=(code,))]
    shifted = [msgspec.structs.replace(sample, t_ns=sample.t_ns - 10_000 * MS) for sample in gone]
    found = figures(tmp_path, of({"GPU-a": constant(300.0), "GPU-b": shifted})).validity
    assert found.answers == ("the GPU was lost 10.90 s before the window (NVML_ERROR_GPU_IS_LOST)",) == found.load


def test_without_a_sensor_energy_is_neither_valid_nor_invalid(tmp_path: Path) -> None:
    row = figures(tmp_path, None).columns()
    assert (row["valid"], row["energy_valid"], row["energy_reasons"]) == (True, None, None)


def test_peak_memory_is_the_most_seen(tmp_path: Path) -> None:
    power = of({"GPU-a": constant(300.0, memory_used_bytes=5 * 2**30)}, memory_total_bytes=24 * 2**30)
    e = energy(tmp_path, power)
    assert (e.memory_peak_bytes, e.memory_headroom_bytes) == (5 * 2**30, 19 * 2**30)


@pytest.mark.parametrize("at_once", [2, 1 << 15])
def test_tokens_are_counted_in_the_part_of_the_window_that_they_arrived_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """(10, 20] ms in four parts of 2.5 ms; an instant between two belongs to the first, as the window's close to it."""
    monkeypatch.setattr("loadgen.analysis.celldata._AT_ONCE", at_once)
    tokens = [(9, 1), (10, 2), (10.1, 3), (12.5, 4), (12.6, 5), (17, 6), (20, 7), (20.1, 8)]
    data = cell_data(tmp_path, [answer(1, tokens, end=21)], [], end=ended((10.0, 20.0)))
    counts, ends = tokens_by_part(data.token_t_ns, data.token_counts, (10 * MS, 20 * MS), 4)
    assert counts.tolist() == [7, 5, 6, 7]
    assert ends.tolist() == [10 * MS, 12.5 * MS, 12.6 * MS, 17 * MS, 20 * MS]


def test_the_interval_lies_around_the_counters_energy_where_the_course_of_power_is_off_by_a_hundredth(
    tmp_path: Path,
) -> None:
    samples = [msgspec.structs.replace(s, power_instant_w=s.power_instant_w * 1.01) for s in constant(300.0)]
    exact = energy(tmp_path / "exact", of({"GPU-a": constant(300.0)}))
    off = energy(tmp_path / "off", of({"GPU-a": samples}))
    assert off.energy_source == "counter"
    assert off.energy_per_token_j == exact.energy_per_token_j
    assert exact.energy_interval_note == ""
    assert off.energy_per_token_j_lo == pytest.approx(exact.energy_per_token_j_lo, rel=1e-9)
    assert off.energy_per_token_j_hi == pytest.approx(exact.energy_per_token_j_hi, rel=1e-9)


def swaying(rng: np.random.Generator, windows: int, times: float) -> np.ndarray:
    """Power in 120 parts of windows that hold so many correlation times each: mean 100, sd 5 at any instant, AR(1)."""
    steps = 120 * 8
    kept = math.exp(-times / steps)
    power = np.empty((windows, steps))
    power[:, 0] = rng.standard_normal(windows)
    for step in range(1, steps):
        power[:, step] = kept * power[:, step - 1] + math.sqrt(1 - kept**2) * rng.standard_normal(windows)
    return 100 + 5 * power.reshape(windows, 120, 8).mean(axis=2)


def intervals(power: np.ndarray) -> tuple[int, int]:
    """How many of the windows have an interval, and how many of these do not hold the true 100."""
    spreads = [(joules.mean(), window_spread(joules, np.ones(120)).half_width) for joules in power]
    missed = [abs(math.log(100 / mean)) > half_width for mean, half_width in spreads if half_width is not None]
    return len(missed), sum(missed)


@pytest.mark.parametrize("times", [40, 100, 1000])
def test_the_interval_covers_whatever_the_correlation_time_of_power_is(times: float) -> None:
    """28 of 400 windows miss at a coverage of 93%; with three standard errors of 5.1 at most 43."""
    power = swaying(np.random.default_rng(7), 400, times)
    given, missed = intervals(power)
    assert given > 0.6 * 400
    assert missed <= 43


def test_a_fast_noise_does_not_hide_a_slow_sway() -> None:
    """White noise between parts with twice the slow part's sd: neighbouring parts correlate by under 0.2."""
    rng = np.random.default_rng(8)
    power = swaying(rng, 400, 40) + 10 * rng.standard_normal((400, 120))
    assert intervals(power)[1] <= 43


def test_a_window_of_few_correlation_times_has_no_interval() -> None:
    """10 of them: a tenth of the windows may look twice as long."""
    assert intervals(swaying(np.random.default_rng(9), 200, 10))[0] <= 20


def test_a_missing_interval_says_how_long_a_window_has_to_be(tmp_path: Path) -> None:
    """Power that is high for 5 s and low for 5 s: the 40 s window holds few correlation times. Then a drift."""
    square = [
        msgspec.structs.replace(s, power_instant_w=300.0 + 30 * (-1) ** (s.t_ns // (5000 * MS)))
        for s in constant(300.0)
    ]
    found = energy(tmp_path / "square", of({"GPU-a": square}))
    assert (found.energy_per_token_j_lo, found.energy_per_token_j_hi) == (None, None)
    assert found.energy_per_token_j == pytest.approx(30, rel=1e-3)
    note = found.energy_interval_note or ""
    seen = re.fullmatch(
        r"energy per token stays high or low for about (\d+(?:\.\d)?) s, and the window of 40 s holds (\d+) such times "
        r"\(20 are needed\): use at least (\d+) s",
        note,
    )
    assert seen, note
    assert 2 <= float(seen[1]) <= 7
    assert 20 * float(seen[1]) <= int(seen[3]) <= 25 * float(seen[1])
    climbing = [msgspec.structs.replace(s, power_instant_w=280.0 + s.t_ns / (1000 * MS)) for s in constant(300.0)]
    note = energy(tmp_path / "climbing", of({"GPU-a": climbing})).energy_interval_note or ""
    assert note == "energy per token drifts over the whole window of 40 s: use at least 200 s"


def test_steps_that_bring_many_tokens_at_once_are_not_noise() -> None:
    """64 tokens each 23 ms at 300 W for 60 s: parts of 0.5 s hold 21 or 22 steps, 5% apart. Only the step that the
    window's open cuts and the one that its close cuts are not whole: under 0.05% of the window each."""
    trace = trace_of("GPU-a", constant(300.0, until_ms=62_000))
    arrivals = np.repeat(np.arange(5, 62_000, 23) * MS, 64)
    half_width, note = interval_of_window(
        arrivals, np.ones(len(arrivals), np.int32), [trace], (1_000 * MS, 61_000 * MS)
    )
    assert note == ""
    assert half_width is not None
    assert half_width < 0.001


@pytest.mark.parametrize(
    ("each_ms", "until_ms", "note"),
    [
        (1000, 62_000, "the window of 40 s has 40 events with tokens, and an interval needs 60: use at least 60 s"),
        (100, 1_525, "the window of 40 s has 20 power readings, and an interval needs 60: use at least 120 s"),
        (100, 100, "the window of 40 s has 0 power readings, and an interval needs 60: use a longer one"),
    ],
)
def test_too_few_readings_or_tokens_give_no_interval(each_ms: int, until_ms: int, note: str) -> None:
    trace = trace_of("GPU-a", constant(300.0, until_ms=until_ms))
    arrivals = np.arange(0, 62_000, each_ms) * MS
    found = interval_of_window(arrivals, np.ones(len(arrivals), np.int32), [trace], (1_000 * MS, 41_000 * MS))
    assert found == (None, note)


def test_power_samples_become_power_parquet_and_the_columns_of_the_summary(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    journal = Journal(power_file(run_dir, cell().target, 1))
    samples = constant(300.0, until_ms=4_000)
    for sample in samples:
        journal.append(sample)
    journal.close()
    analyse(run_dir)
    run = loadgen.load_run(run_dir)
    assert len(run.power) == len(samples)
    assert set(run.power["gpu_uuid"]) == {"GPU-a"}
    (row,) = run.summary.to_dict("records")
    assert row["power_w_mean"] == pytest.approx(300, rel=0.02)
    assert row["energy_per_token_j"] == pytest.approx(3.0, rel=0.02), "300 W at 100 tokens a second"
    assert math.isnan(row["energy_per_token_j_lo"]), "one repeat: the window's noise says nothing of another start"
    (of_cell,) = run.cells.to_dict("records")
    assert math.isnan(of_cell["energy_per_token_j_lo"]) and math.isnan(of_cell["energy_per_token_j_hi"])
    note = "the window of 1 s has 40 power readings, and an interval needs 60: use at least 2 s"
    assert of_cell["energy_interval_note"] == note
