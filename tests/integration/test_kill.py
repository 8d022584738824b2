"""SIGKILL of the client at random instants, then --resume until the run is complete: none lost, none doubled.

bench/kill_resume.py does the same 200 times, and compares rates, too.
"""

from __future__ import annotations

import random

import pytest
from kills import IN_CELL, KilledRun, violations

from loadgen.record.manifest import read_manifest

pytestmark = pytest.mark.slow

KILLS = 6
WITHIN_S = 1.5
"""About what a cell takes, warm-up and drain included."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> KilledRun:
    run = KilledRun(tmp_path_factory.mktemp("kill") / "run")
    run.go_by_cells(random.Random(7), KILLS, WITHIN_S)
    return run


def test_after_all_kills_nothing_is_lost_and_nothing_doubled(killed: KilledRun) -> None:
    assert violations(killed) == []


def test_it_was_killed_and_resumed(killed: KilledRun) -> None:
    assert len(killed.kills) == KILLS
    assert IN_CELL in {kill.phase for kill in killed.kills}
    sessions = read_manifest(killed.run_dir).sessions
    assert [session.session for session in sessions] == list(range(1, len(sessions) + 1))
    assert len(sessions) <= len(killed.kills) + 1


def test_a_record_that_went_missing_would_be_seen(killed: KilledRun) -> None:
    """The check itself: one line less in the file of a finished cell, and it complains."""
    label = sorted(label for kill in killed.kills for label in kill.finished)[0]
    path = killed.run_dir / "journal" / f"{label}.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    try:
        assert violations(killed)
    finally:
        path.write_bytes(whole)
