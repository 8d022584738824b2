"""What a quick run of the tests leaves out, and what it says about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MADE = """
import pytest
from programs import program

def test_quick():
    pass

@pytest.mark.slow
def test_slow():
    pass

@pytest.mark.docker
def test_docker():
    pass

def test_of_a_program():
    assert program("promtool")
"""


def closing_lines(folder: Path, *options: str, **variables: str) -> list[str]:
    """What pytest says at the end of a run of four made tests, without any program on PATH."""
    (folder / "test_made.py").write_text(MADE)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  slow\n  docker\n")
    (folder / "conftest.py").write_bytes((TESTS / "conftest.py").read_bytes())
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    env = {name: value for name, value in os.environ.items() if name != "CI"} | {"PATH": "", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(folder)],
        env=env | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.splitlines()[-2:]


def test_one_line_says_what_was_left_out_and_how_to_run_it(tmp_path: Path) -> None:
    said, closing = closing_lines(tmp_path)
    assert said == (
        "Left out: 3 tests (1 slow, 1 Docker, 1 without promtool). To run everything: .ci/run (it installs missing "
        "programs). To run one kind: .venv/bin/python -m pytest -m KIND, where KIND is slow, vllm, docker."
    )
    assert closing.startswith("1 passed, 3 skipped in ")


@pytest.mark.slow
def test_a_kind_that_is_asked_for_runs(tmp_path: Path) -> None:
    assert closing_lines(tmp_path, "-m", "slow")[-1].startswith("1 passed, 3 deselected in ")


@pytest.mark.slow
def test_in_ci_everything_runs_and_a_missing_program_is_a_failure(tmp_path: Path) -> None:
    said, closing = closing_lines(tmp_path, CI="true")
    assert said.endswith("AssertionError: promtool is not installed: CI needs Debian's package prometheus")
    assert closing.startswith("1 failed, 3 passed in ")
