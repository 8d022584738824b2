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
