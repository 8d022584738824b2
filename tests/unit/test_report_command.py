"""`loadgen report`: the indices' free choices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from made_run import made_open_run, make_run

import loadgen
from loadgen.cli import group
from loadgen.errors import UsageError
from loadgen.reports import html


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(html, "write_report", lambda run: run.path)
    return make_run(tmp_path / "run")


def report(run_dir: Path, *options: str) -> Result:
    return CliRunner().invoke(group, ["report", str(run_dir), *options])


@pytest.mark.parametrize(("given", "used"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")])
def test_linear_algebra_has_one_thread_unless_the_user_says_otherwise(
    tmp_path: Path, given: dict[str, str], used: str
) -> None:
    """A program's own thread for each core would wait for work beside the processes that share it. The number must be
    known before numpy is loaded."""
    program = (
        "import os, sys\n"
        "from loadgen.cli import group\n"
        "class Seen:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy':\n            print('threads', os.environ.get('OPENBLAS_NUM_THREADS'))\n"
        "sys.meta_path.insert(0, Seen())\n"
        "group.main(['report', sys.argv[1]], standalone_mode=False)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"} | given
    run = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    done = subprocess.run(
        [sys.executable, "-c", program, str(run)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == f"threads {used}"
    assert (run / "report.html").exists()


def choices(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "analysis.json").read_bytes())["index_settings"]
    return found


def test_without_options_the_choices_are_the_papers(run_dir: Path) -> None:
    assert report(run_dir).exit_code == 0
    assert choices(run_dir) == {
        "alpha": 0.5, "weights": [0.34, 0.33, 0.33], "sustainability": "linear", "carbon_kg_per_kwh": None,
    }  # fmt: skip


def test_other_choices_are_used_and_named(run_dir: Path) -> None:
    done = report(run_dir, "--weights", "0.6,0.2,0.2", "--alpha", "1", "--s-form", "log_kgco2e", "--carbon", "0.4")
    assert done.exit_code == 0, done.output
    assert choices(run_dir) == {
        "alpha": 1.0, "weights": [0.6, 0.2, 0.2], "sustainability": "log_kgco2e", "carbon_kg_per_kwh": 0.4,
    }  # fmt: skip


def test_goodput_is_counted_by_other_objectives_and_the_sweeps_own_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "write_report", lambda run: run.path)
    run_dir = made_open_run(tmp_path / "run", slo="ttft:500ms")
    assert report(run_dir, "--slo", "ttft:100ms").exit_code == 0
    assert loadgen.load_run(run_dir).summary["goodput_share"].tolist() == [0.5, 0.5]
    assert report(run_dir).exit_code == 0
    assert loadgen.load_run(run_dir).summary["goodput_share"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--slo", "ttft:200"], "--slo ttft:200: ttft is given '200'; write a time above 0 with its unit"),
        (["--weights", "1,2"], "--weights 1,2 is not three numbers; write T,E,S such as 0.34,0.33,0.33"),
        (["--weights", "0.5,0.5,0.5"], "give three shares from 0 that sum to 1"),
        (["--alpha", "2"], "alpha of E_SI is 2.0, give a share from 0 to 1"),
        (["--s-form", "log_kgco2e"], "give one in kgCO2e/kWh"),
    ],
)
def test_choices_without_a_meaning_are_refused(run_dir: Path, options: list[str], sentence: str) -> None:
    refused = report(run_dir, *options)
    assert isinstance(refused.exception, UsageError)
    assert sentence in str(refused.exception)
