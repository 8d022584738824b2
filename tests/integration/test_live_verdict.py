"""While a sweep runs, an ended cell has the verdict and figures that cells.csv will give it, and what was counted live
comes to the same; what judges cannot harm the sweep."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dashboard_stack import free_port, serving

import loadgen
from loadgen.analysis.cellresult import judge_cell
from loadgen.load.exchange import Exchange
from loadgen.load.latency import Latencies
from loadgen.measure.block import Judge
from loadgen.measure.config import configure
from loadgen.measure.observer import Observer, Progress
from loadgen.measure.run import run_sweep
from loadgen.record.cell import Cell, CellVerdict


class Heard(Observer):
    """Verdicts by B, and the B of every glance behind the first verdict."""

    def __init__(self) -> None:
        self.verdicts: dict[int, CellVerdict] = {}
        self.later: set[int] = set()
        self.accuracy: dict[int, float | None] = {}
        self.latencies: dict[int, list[Latencies]] = defaultdict(list)

    def answered(self, cell: Cell, exchange: Exchange, latencies: Latencies) -> None:
        self.latencies[cell.concurrency].append(latencies)

    def progress(self, progress: Progress) -> None:
        self.accuracy[progress.cell.concurrency] = progress.accuracy
        if self.verdicts:
            self.later.add(progress.cell.concurrency)

    def cell_ends(self, cell: Cell, line: str, verdict: CellVerdict) -> None:
        self.verdicts[cell.concurrency] = verdict


@pytest.fixture(scope="module")
def capped() -> Iterator[str]:
    """A simulated server that runs at most 2 requests at once."""
    port = free_port()
    argv = [sys.executable, "-m", "loadgen", "simulate", "--precision", "fp16", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with serving([*argv, "--max-num-seqs", "2"], f"{url}/health"):
        yield url


def swept(url: str, out: Path, judge: Judge | None) -> Heard:
    heard = Heard()
    config = configure(targets={"fp16": url}, concurrency=[8, 1], dataset="sample", duration=2.0, repeats=1, out=out)
    run_sweep(config, heard, judge)
    return heard


def test_a_capped_batch_is_told_before_the_next_cell(capped: str, tmp_path: Path) -> None:
    heard = swept(capped, tmp_path / "run", judge_cell)
    cells = loadgen.load_run(tmp_path / "run").cells.set_index("concurrency")
    assert heard.verdicts[8].valid is False
    assert "did not reach B = 8: the server caps it" in heard.verdicts[8].reasons
    assert {b: verdict.valid for b, verdict in heard.verdicts.items()} == dict(cells["valid"])
    assert {b: verdict.reasons for b, verdict in heard.verdicts.items()} == dict(cells["reasons"])
    assert heard.later == {1}
    for b, row in cells.iterrows():
        told = heard.verdicts[int(b)].figures
        for figure in ("tokens_per_s", "running_mean", "running_peak", "ttft_ms_mean", "tpot_ms_mean"):
            assert told[figure] == pytest.approx(row[figure]), figure
        live_ms = 1e3 * np.array(heard.latencies[int(b)], dtype=float)
        assert np.nanmean(live_ms, axis=0) == pytest.approx([row["ttft_ms_mean"], row["tpot_ms_mean"]])
        assert heard.accuracy[int(b)] == pytest.approx(row["accuracy"])


@pytest.mark.slow
def test_a_judge_that_fails_costs_its_verdict_alone(capped: str, tmp_path: Path) -> None:
    def broken(run_dir: Path, path: Path) -> CellVerdict:
        raise OSError(f"{path.name} is gone")

    heard = swept(capped, tmp_path / "run", broken)
    told = CellVerdict(valid=None, reasons="OSError: 001-fp16-b8-r1.jsonl is gone")
    assert heard.verdicts[8] == told
    assert list(loadgen.load_run(tmp_path / "run").cells["concurrency"]) == [8, 1]
