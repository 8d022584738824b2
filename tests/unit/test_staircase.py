"""Updates of a held value, seen between samples."""

from __future__ import annotations

import numpy as np
import pytest

from loadgen.power.trace import staircase

STEPS = staircase(np.array([0.0, 1.0, 2.0, 4.0, 5.0]), np.array([7.0, 7.0, 10.0, 13.0, 13.0]))


def test_an_update_lies_midway_between_the_samples_that_show_it() -> None:
    assert STEPS.instants_s.tolist() == [1.5, 3.0]
    assert STEPS.values.tolist() == [10.0, 13.0]


def test_between_updates_runs_a_straight_line() -> None:
    assert STEPS.at(2.0) == pytest.approx(11.0)
    assert STEPS.at(3.0) == 13.0


def test_an_update_is_known_to_half_the_distance_of_its_samples() -> None:
    assert STEPS.doubts_s.tolist() == [0.5, 1.0]
    assert STEPS.doubt_at(2.0) == 1.0  # of the updates on either side, the vaguer
    assert STEPS.doubt_at(1.5) == 0.5


def test_only_what_lies_between_updates_is_covered() -> None:
    assert [STEPS.covers(t) for t in (1.4, 1.5, 3.0, 3.1)] == [False, True, True, False]
    assert STEPS.updates_between(1.5, 4.0) == 1


def test_a_value_that_never_changes_covers_nothing() -> None:
    still = staircase(np.array([0.0, 1.0]), np.array([7.0, 7.0]))
    assert still.instants_s.size == 0
    assert not still.covers(0.5)
