"""Open loops in `loadgen compare`: beside other runs, in no stratum with them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from made_run import made_open_run, make_run

import loadgen
from loadgen.analysis.analyse import analyse
from loadgen.analysis.compare.comparison import RunComparison
from loadgen.analysis.compare.nstar import stratum_of
from loadgen.reports.compare import RUNS
from loadgen.reports.html.compare import speed_over_concurrency
from loadgen.reports.rows import table_of


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> RunComparison:
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(folder / "closed", concurrency=(64,)),
        made_open_run(folder / "at-4", slo="ttft:100ms", arrival="poisson:4"),
        made_open_run(folder / "at-5", slo="ttft:100ms", arrival="poisson:5"),
    ]
    for run_dir in runs:
        analyse(run_dir)
    return loadgen.compare(*runs)


def test_rates_and_goodput_stand_side_by_side(compared: RunComparison) -> None:
    assert {row.run: (row.arrival, row.rate_per_s, row.slo, row.goodput_share) for row in compared.rows} == {
        "closed": ("closed", None, None, None),
        "at-4": ("poisson:4", 4.0, "ttft:100ms", 0.5),
        "at-5": ("poisson:5", 4.0, "ttft:100ms", 0.5),
    }
    assert {(row.accuracy, row.questions) for row in compared.rows} == {(0.5, 2)}
    table = table_of(RUNS, compared.rows)
    assert {row[table.headings.index("right % (n)")] for row in table.rows} == {"1/2"}
    shown = {row[0]: row[table.headings.index("B")] for row in table.rows}
    assert shown == {"closed": "64", "at-4": "poisson:4", "at-5": "poisson:5"}


def test_an_open_loop_has_no_cor_and_so_no_stratum(compared: RunComparison) -> None:
    for row in compared.rows:
        if row.arrival != "closed":
            assert row.cor is None
            assert stratum_of(msgspec.structs.replace(row, gpu="X", gpu_count=1)) is None


def test_whatever_had_a_cor_arrivals_would_keep_apart(compared: RunComparison) -> None:
    forced = [msgspec.structs.replace(row, cor=0.1, gpu="X", gpu_count=1) for row in compared.rows]
    strata = {stratum_of(row) for row in forced if row.target == "awq"}
    assert len(strata) == 3
    assert any("at poisson:4, X × 1" in str(stratum) for stratum in strata)


def test_no_curve_over_the_concurrency_has_a_cap_on_it(compared: RunComparison, tmp_path: Path) -> None:
    figure = speed_over_concurrency(compared.rows, (), tmp_path)
    assert figure is not None
    drawn = figure.svg.read_text(encoding="utf-8")
    assert "closed" in drawn
    assert "at-4" not in drawn
