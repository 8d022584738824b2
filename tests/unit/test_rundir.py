"""The run directory of a sweep that is refused before its first cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.settings import new_run_dir


def refused(out: Path) -> None:
    with new_run_dir(configure(out=out)) as run_dir:
        assert run_dir.is_dir(), "whether it can be written is known before a server is asked"
        raise UsageError("no")


def test_folders_that_were_made_for_it_are_taken_away(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        refused(tmp_path / "runs" / "today" / "first")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_stay(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for out in ("mine", "new"):
        with pytest.raises(UsageError):
            refused(tmp_path / "runs" / out)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]


def test_without_out_nothing_is_left_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError), new_run_dir(configure()):
        raise UsageError("no")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_begins_keeps_its_folder(tmp_path: Path) -> None:
    with new_run_dir(configure(out=tmp_path / "run")):
        pass
    assert (tmp_path / "run").is_dir()
