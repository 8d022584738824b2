"""`loadgen report` on what a kill leaves, whenever it came: the rest is reported, or one sentence says that none is."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from made_run import cell, make_run

from loadgen.analysis.analyse import analyse
from loadgen.analysis.run import Run, load_run
from loadgen.cli.report import command
from loadgen.errors import UsageError
from loadgen.record.journal import CellStart, Journal, cell_file, cell_files, power_file, sealed

SAMPLE = sealed(b'{"type":"power","t_ns":1,"latency_ns":1,"gpu":"GPU-a"}')


def analysed(run_dir: Path) -> Run:
    analyse(run_dir)
    return load_run(run_dir)


def refused(run_dir: Path) -> str:
    done = CliRunner().invoke(command, [str(run_dir)])
    assert isinstance(done.exception, UsageError), done.output
    return str(done.exception)


def begin_only(run_dir: Path) -> None:
    """The last cell's file is its first line."""
    of = cell(2, target="awq", index=4)
    cell_file(run_dir, of).unlink()
    journal = Journal(cell_file(run_dir, of))
    journal.append(CellStart(cell=of, t_ns=0, simulated=False))
    journal.close()


def hardly_powered(run_dir: Path, left: bytes) -> None:
    path = power_file(run_dir, "awq", 1)
    path.parent.mkdir()
    path.write_bytes(left)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Two targets at B = 1 and 2, one repeat, all four cells valid."""
    return make_run(tmp_path / "run", repeats=1)


def test_before_the_manifest_is_whole_there_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "manifest.partial").write_bytes(b'{"schema": 1, "simul')
    assert "is not a run directory: it has no manifest.json" in refused(tmp_path)


def test_before_the_first_cell_there_is_nothing_to_report(run_dir: Path) -> None:
    for path in cell_files(run_dir):
        path.unlink()
    assert "holds no measured cell" in refused(run_dir)
    (run_dir / "items.json").unlink()
    assert "holds no measured cell" in refused(run_dir)
    (run_dir / "journal").rmdir()
    assert "holds no measured cell" in refused(run_dir)


@pytest.mark.parametrize("left", [b"", b'{"type":"ce'], ids=["empty", "torn"])
def test_a_cell_that_has_not_even_its_first_line_is_not_measured(run_dir: Path, left: bytes) -> None:
    cell_files(run_dir)[-1].write_bytes(left)
    run = analysed(run_dir)
    assert len(run.cells) == 3
    assert run.cells["valid"].all()
    assert not run.complete
    assert "1 of 4 planned cells were not measured" in run.analysis.warnings


def test_a_cell_that_has_its_first_line_only_is_a_row_that_says_so(run_dir: Path) -> None:
    begin_only(run_dir)
    run = analysed(run_dir)
    assert list(run.cells["valid"]) == [True, True, True, False]
    assert run.cells["requests"].iloc[-1] == 0
    assert "awq, B = 2, repeat 1: interrupted before the window opened" in run.analysis.warnings


@pytest.mark.parametrize("left", [b"", SAMPLE], ids=["empty", "one sample"])
def test_power_that_had_hardly_begun_is_no_energy(run_dir: Path, left: bytes) -> None:
    """Killed before the manifest knew the sensors, too."""
    hardly_powered(run_dir, left)
    run = analysed(run_dir)
    assert run.cells["energy_j"].isna().all()
    assert len(run.power) == (1 if left else 0)


def test_attempts_that_were_set_aside_are_in_no_figure(run_dir: Path) -> None:
    whole = analysed(run_dir)
    before = [len(whole.requests), len(whole.cells)]
    attempts = run_dir / "journal" / "attempts"
    attempts.mkdir()
    (attempts / "001-fp16-b1-r1-a1.jsonl").write_bytes(cell_files(run_dir)[0].read_bytes())
    again = analysed(run_dir)
    assert [len(again.requests), len(again.cells)] == before


def test_the_page_is_made_of_all_that_at_once_over_what_a_killed_report_left(run_dir: Path) -> None:
    cell_files(run_dir)[0].write_bytes(b"")
    begin_only(run_dir)
    hardly_powered(run_dir, SAMPLE)
    for name in ("requests.parquet.partial", "cells.csv.partial", "analysis.json.partial", "items.partial"):
        (run_dir / name).write_bytes(b"half")
    done = CliRunner().invoke(command, [str(run_dir)])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert "1 of 4 planned cells were not measured" in done.output
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert not list(run_dir.glob("*.csv.partial"))
