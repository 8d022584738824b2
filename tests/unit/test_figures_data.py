"""What the figures take from a run's Parquet files: latencies of the window, and traces over a cell's time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_run import answer, cell, ended, make_run, scrape, write_cell

from loadgen.analysis.analyse import analyse
from loadgen.analysis.requests import CellTrace, Latencies, Traces, latencies_ms, read_cells
from loadgen.analysis.run import Run
from loadgen.analysis.tables import POWER

S = 1_000_000_000


def analysed(folder: Path, **cells: Any) -> Run:
    """One cell of fp16 at B = 1, from `exchanges` and `samples`."""
    run_dir = make_run(folder / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    for path in (run_dir / "journal").glob("*.jsonl"):
        path.unlink()
    write_cell(run_dir, cell(1), cells["exchanges"], cells.get("samples", ()), ended())
    analyse(run_dir)
    return Run(run_dir)


def write_power(run: Run, columns: dict[str, list[Any]], gpus: int = 1) -> None:
    """The same samples on every GPU."""
    length = len(columns["t_ns"])
    rows = [
        {"target": "fp16", "precision": "fp16", "repeat": 1, "session": 1, "gpu_uuid": f"gpu-{gpu}", "simulated": False}
        | {name: values[k] for name, values in columns.items()}
        for gpu in range(gpus)
        for k in range(length)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=POWER), run.path / "power.parquet")


def trace_of(run: Run) -> CellTrace:
    ((of, requests),) = read_cells(run.path)
    return Traces(run).of(of, requests)


def test_latencies_count_where_they_happened_as_in_the_table(tmp_path: Path) -> None:
    """The window is 1000 to 2000 ms. Of the answer in it: TTFT 100 ms, the last of 3 tokens 400 ms after the first, so
    TPOT 200 ms, the last byte 600 ms after the request. Of one that ends too late the first token alone counts (TTFT
    90 ms), of one that began before all but the first token (TTFT 400 ms). Others are of the warm-up, or failed."""
    tokens = [(1100, 1), (1300, 1), (1500, 1)]
    run = analysed(
        tmp_path,
        exchanges=[
            answer(1000, tokens, end=1600),
            answer(1000, tokens, phase="warmup", slot=1),
            answer(1000, tokens, status="timeout", error="late", slot=2),
            answer(1500, [(1590, 1), (2100, 1)], slot=3),
            answer(500, [(900, 1), (1000, 1), (1100, 1)], slot=4),
        ],
    )
    ((of, rows),) = read_cells(run.path)
    assert of == ("fp16", 1, 1) and len(rows) == 5
    found = {name: sorted(values.round(6)) for name, values in latencies_ms(rows, (1e9, 2e9)).items()}
    assert found == {"ttft": [90.0, 100.0], "tpot": [100.0, 200.0], "e2e": [600.0, 600.0]}
    row = run.cells.iloc[0]
    for name, values in found.items():
        assert np.median(values) == pytest.approx(row[f"{name}_ms_p50"]), name
        assert np.percentile(values, 99) == pytest.approx(row[f"{name}_ms_p99"]), name
    assert rows["t_last_ns"].tolist()[:3] == [1.5 * S] * 3


def test_an_answer_of_one_token_has_no_tpot() -> None:
    rows = pd.DataFrame(
        {
            "phase": ["measured"],
            "status": ["ok"],
            "t_scheduled_ns": [None],
            "t_send_ns": [0],
            "t_first_ns": [5.0],
            "t_last_ns": [5.0],
            "t_end_ns": [9],
            "output_tokens": [1.0],
        }
    )
    assert latencies_ms(rows, (0.0, 9.0))["tpot"].size == 0
    assert latencies_ms(rows, (0.0, 9.0))["ttft"].tolist() == [5e-6]


def test_distributions_pool_valid_cells_and_fall_back_on_invalid_ones(tmp_path: Path) -> None:
    """Two valid repeats of one answer each; without any valid cell the invalid ones are given, marked so."""
    run = Run(make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=2))
    analyse(run.path)
    valid, latencies = Latencies(run), Latencies(run)
    for of, rows in read_cells(run.path):
        valid.add(of, rows)
    found = valid.of("fp16", 1, "e2e")
    assert found is not None and (len(found[0]), found[1]) == (2, True)
    run.cells["latency_valid"] = False
    latencies = Latencies(run)
    for of, rows in read_cells(run.path):
        latencies.add(of, rows)
    found = latencies.of("fp16", 1, "e2e")
    assert found is not None and (len(found[0]), found[1]) == (2, False)
    assert latencies.of("fp16", 16, "e2e") is None and latencies.levels("e2e") == [1]


def test_a_cell_in_several_row_groups_is_one_cell(tmp_path: Path) -> None:
    run = analysed(tmp_path, exchanges=[answer(1000 + k, [(1100 + k, 1)], slot=k) for k in range(10)])
    path = run.path / "requests.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=3)
    ((_, rows),) = read_cells(run.path)
    assert len(rows) == 10


def test_in_flight_is_a_mean_over_time(tmp_path: Path) -> None:
    """0 to 1 s one request, 0.5 to 1.5 s another: 1, then 2, then 1; their areas add up to 2 s."""
    run = analysed(tmp_path, exchanges=[answer(0, end=1000), answer(500, end=1500, slot=1)])
    t, n = trace_of(run).in_flight or (np.array([]), np.array([]))
    assert len(t) == len(n) == 150
    assert n.sum() * 0.01 == pytest.approx(2.0)
    assert n[(t < 0.49)] == pytest.approx(1.0) and n[(t > 0.51) & (t < 0.99)] == pytest.approx(2.0)


def test_running_is_the_server_s_gauge_since_the_first_request(tmp_path: Path) -> None:
    samples = [scrape(400, running=0.0), scrape(1000, running=3.0), scrape(1250, running=4.0)]
    run = analysed(tmp_path, exchanges=[answer(500, end=1500)], samples=samples)
    running = trace_of(run).running
    assert running is not None
    assert (running[0].tolist(), running[1].tolist()) == ([0.5, 0.75], [3.0, 4.0])


T_NS = [k * S // 10 for k in range(-5, 26)]


@pytest.mark.parametrize(
    "columns",
    [
        {"power_instant_w": [100.0] * 31, "counter_j": [7.0 * k for k in range(31)]},
        {"counter_j": [10.0 * k for k in range(31)]},
        {"power_average_w": [100.0] * 31},
    ],
    ids=["instantaneous before anything", "counter: 10 J each 0.1 s", "average as the last resort"],
)
def test_power_is_in_watts_summed_over_gpus(tmp_path: Path, columns: dict[str, list[float]]) -> None:
    run = analysed(tmp_path, exchanges=[answer(0, end=2000)])
    write_power(run, {"t_ns": T_NS, **columns}, gpus=2)
    power = trace_of(run).power
    assert power is not None
    t, watts = power
    assert watts == pytest.approx(200.0)
    assert t.min() >= 0 and t.max() <= 2.0 and len(t) >= 20


def test_without_power_there_is_no_trace_of_it(tmp_path: Path) -> None:
    run = analysed(tmp_path, exchanges=[answer(0, end=2000)])
    assert trace_of(run).power is None
    write_power(run, {"t_ns": T_NS, "temperature_c": [50.0] * 31})
    assert trace_of(run).power is None


def test_the_window_is_shaded_where_its_edges_are_known(tmp_path: Path) -> None:
    """First request at 0.5 s, window from 1 to 2 s: 0.5 to 1.5 s after it."""
    run = analysed(tmp_path, exchanges=[answer(500, end=2500)])
    assert trace_of(run).window == (0.5, 1.5)
    run.cells["window_open_ns"] = np.nan
    assert trace_of(run).window is None
