"""Tests that measure run alone, also where pytest has a process per core."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
import undisturbed


@pytest.mark.parametrize(
    ("runs", "tried", "waits"),
    [
        ("tests/unit/test_a.py::test", fcntl.LOCK_SH, False),
        ("tests/unit/test_a.py::test", fcntl.LOCK_EX, True),
        ("tests/integration/test_a.py::test", fcntl.LOCK_SH, True),
        ("tests/e2e/test_a.py::test", fcntl.LOCK_EX, True),
        ("tests/integration/test_kill.py::test", fcntl.LOCK_SH, False),
    ],
)
def test_one_that_measures_and_another_wait_for_each_other(
    runs: str, tried: int, waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file of its own: this test holds the real one."""
    lock = tmp_path / "lock"
    lock.touch()
    monkeypatch.setattr(undisturbed, "__file__", str(lock))
    with undisturbed.measured_alone(runs), lock.open() as other:
        try:
            fcntl.flock(other, tried | fcntl.LOCK_NB)
        except BlockingIOError:
            assert waits
        else:
            assert not waits


def test_files_that_take_long_come_first_and_those_that_measure_last() -> None:
    long, other, measuring = "tests/e2e/test_docker_stack.py::a", "tests/unit/test_a.py::a", "tests/e2e/test_a.py::a"
    assert sorted([measuring, other, long], key=undisturbed.place) == [long, other, measuring]
    tests = Path(undisturbed.__file__).parent
    assert [file for file in undisturbed.BESIDE if not (tests.parent / file).is_file()] == []
    made, used = "tests/e2e/test_environments.py::a", "tests/e2e/test_real_precisions.py::a"
    assert undisturbed.place(made) < undisturbed.place(used)


def test_those_on_one_environment_run_in_one_process_behind_what_makes_it() -> None:
    scheduling = object.__new__(undisturbed.MeasuredInOneProcess)
    scopes = [scheduling._split_scope(f"{file}::a") for file in undisturbed.ON_VLLM]
    assert len({*scopes}) == 1
    assert not any(undisturbed.measured(f"{file}::a") for file in undisturbed.ON_VLLM)
    assert scheduling._split_scope("tests/e2e/test_real_vllm.py::a") not in scopes
