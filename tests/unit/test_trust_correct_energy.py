"""Joules per correct answer: the accuracy's uncertainty and the energy's, together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from loadgen.analysis.trust.accuracy import correct_energy

SCORES = np.repeat([1.0, 0.0], [520, 799])


def test_energy_per_correct_is_energy_over_accuracy() -> None:
    energy = correct_energy(10.0, SCORES, relative_error=0.0)
    assert energy is not None
    assert energy.value == pytest.approx(10 * 1319 / 520)


def test_an_exact_energy_leaves_the_accuracys_interval() -> None:
    """Relative standard error of 520 of 1319: sqrt(.6058 / .3942 / 1319) = 3.41%."""
    energy = correct_energy(10.0, SCORES, relative_error=0.0)
    assert energy is not None and energy.lo is not None and energy.hi is not None
    error = math.sqrt(799 / 520 / 1319)
    assert math.log(energy.hi / energy.lo) == pytest.approx(2 * 1.96 * error, rel=0.03)


def test_both_uncertainties_add_in_squares() -> None:
    energy = correct_energy(10.0, SCORES, relative_error=0.05)
    assert energy is not None and energy.lo is not None and energy.hi is not None
    both = math.hypot(math.sqrt(799 / 520 / 1319), 0.05)
    assert math.log(energy.hi / energy.lo) == pytest.approx(2 * 1.96 * both, rel=0.03)


def test_few_repeats_widen_it_as_students_t_does() -> None:
    """Every item right: only the energy is uncertain, three repeats, t of 2 degrees is 4.30."""
    energy = correct_energy(10.0, np.ones(100), relative_error=0.02, degrees=2)
    assert energy is not None and energy.lo is not None and energy.hi is not None
    assert math.log(energy.hi / energy.lo) == pytest.approx(2 * stats.t.ppf(0.975, 2) * 0.02, rel=0.08)


def test_no_correct_answer_has_no_energy_and_an_unknown_error_no_interval() -> None:
    assert correct_energy(10.0, np.zeros(20), relative_error=0.1) is None
    assert correct_energy(10.0, np.array([]), relative_error=0.1) is None
    alone = correct_energy(10.0, SCORES)
    assert alone is not None
    assert (alone.lo, alone.hi) == (None, None)
    rare = correct_energy(10.0, np.repeat([1.0, 0.0], [1, 99]), relative_error=0.1)
    assert rare is not None
    assert rare.value == pytest.approx(1000)
    assert rare.lo is None
