"""Joules of a cell, from made power samples whose energy is known on paper."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from made_run import MS, answer, cell, cell_data, ended, make_run, scrape

import loadgen
from loadgen.analysis.analyse import analyse
from loadgen.analysis.bootstrap import ratio_interval
from loadgen.analysis.cells import CellSummary, summarize_cell
from loadgen.analysis.energy import CellEnergy, tokens_by_part
from loadgen.analysis.powerdata import PowerData
from loadgen.analysis.validity import Validity
from loadgen.power import throttle
from loadgen.power.sample import GPU_LOST, PowerSample
from loadgen.power.trace import trace_of
from loadgen.sweep.journal import Journal, power_file

WINDOW_MS = (1000.0, 41_000.0)


def constant(watts: float, gpu: str = "GPU-a", *, until_ms: int = 43_000, **fields: object) -> list[PowerSample]:
    """A sample each 25 ms; the counter climbs with every one."""
    known: dict[str, object] = {"latency_ns": MS, "gpu": gpu, "power_instant_w": watts, "power_average_w": watts}
    return [
        PowerSample(t_ns=t * MS, counter_j=watts * t / 1000, **known, **fields) for t in range(0, until_ms, 25)
    ]


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
        ({"throttle_reasons": throttle.HW_THERMAL_SLOWDOWN}, (False, False, False, True)),
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
    monkeypatch.setattr("loadgen.analysis.energy._AT_ONCE", at_once)
    tokens = [(9, 1), (10, 2), (10.1, 3), (12.5, 4), (12.6, 5), (17, 6), (20, 7), (20.1, 8)]
    data = cell_data(tmp_path, [answer(1, tokens, end=21)], [], end=ended((10.0, 20.0)))
    assert tokens_by_part(data, (10 * MS, 20 * MS), 4).tolist() == [7, 5, 6, 7]


def test_a_constant_ratio_has_an_interval_of_no_width() -> None:
    tokens = np.array([10.0, 20.0, 30.0, 10.0, 20.0, 30.0])
    assert ratio_interval(3 * tokens, tokens, block=2) == pytest.approx((3.0, 3.0))


def test_the_interval_lies_around_the_ratio_though_the_ends_differ_from_the_middle() -> None:
    """Blocks that never cross the ends would draw the first and the last bins less often: all above the ratio, here."""
    above = np.concatenate([np.full(6, 90.0), np.full(18, 100.0), np.full(6, 90.0)]) + np.tile([0.5, -0.5], 15)
    low, high = ratio_interval(above, np.ones(30), block=10)
    assert low is not None
    assert high is not None
    assert low < above.mean() < high
    assert (low + high) / 2 == pytest.approx(above.mean(), rel=0.005)


def test_the_interval_lies_around_the_counters_energy_where_the_course_of_power_is_off_by_a_hundredth(
    tmp_path: Path,
) -> None:
    samples = [msgspec.structs.replace(s, power_instant_w=s.power_instant_w * 1.01) for s in constant(300.0)]
    exact = energy(tmp_path / "exact", of({"GPU-a": constant(300.0)}))
    off = energy(tmp_path / "off", of({"GPU-a": samples}))
    assert off.energy_source == "counter"
    assert off.energy_per_token_j == exact.energy_per_token_j
    assert off.energy_per_token_j_lo == pytest.approx(exact.energy_per_token_j_lo, rel=1e-9)
    assert off.energy_per_token_j_hi == pytest.approx(exact.energy_per_token_j_hi, rel=1e-9)


def test_a_block_as_long_as_the_disturbance_widens_the_interval() -> None:
    """Neighbours that resemble each other say less than as many independent bins."""
    above = np.repeat(np.random.default_rng(1).normal(100, 10, 12), 10)
    below = np.ones(120)
    narrow, wide = (np.subtract(*ratio_interval(above, below, block=b)[::-1]) for b in (1, 10))
    assert wide > 1.5 * narrow


@pytest.mark.parametrize("below", [np.zeros(6), np.array([1.0, 1.0])])
def test_a_ratio_without_ground_has_no_interval(below: np.ndarray) -> None:
    assert ratio_interval(np.ones(len(below)), below, block=1) == (None, None)


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
    assert of_cell["energy_per_token_j_lo"] <= row["energy_per_token_j"] <= of_cell["energy_per_token_j_hi"]
