"""Numbers, intervals and ranges as text: one rule for digits, one minus sign, one way to write an interval."""

from __future__ import annotations

import math

import pytest

from loadgen.analysis.estimate import Estimate
from loadgen.reports.figures.sheet import tip_of
from loadgen.words import count, interval, number, percent, percents, span, spanned, too_wide


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0512, "0.0512"), (5.034, "5.03"), (3.6, "3.60"), (62.0, "62.0"), (0.0, "0"), (99.96, "100"), (1234.5, "1,234"),
     (-0.5, "−0.500"), (None, ""),
     (math.nan, "")],
)  # fmt: skip
def test_a_number_has_three_significant_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_digits_and_sign_can_be_asked_for() -> None:
    assert (number(2, 2), number(1234.56, 1), number(0.143, 3, sign=True)) == ("2.00", "1,234.6", "+0.143")
    assert (percent(0.409), percent(0.75, 1), percent(-0.02, 1, unit=" pp", sign=True)) == ("40.9%", "75.0%", "−2.0 pp")
    assert percent(None) == percent(math.nan) == ""


def test_a_count_has_no_final_zeros() -> None:
    assert [count(value) for value in (20.0, 1.5, 7.60, 0, 1319, None)] == ["20", "1.5", "7.6", "0", "1,319", ""]


def test_an_interval_has_to_between_its_ends() -> None:
    assert (interval(12, 15), interval(-3.4, -0.4)) == ("12.0 to 15.0", "−3.40 to −0.400")
    assert interval(1, 2, 1) == "1.0 to 2.0"
    assert percents(0.386, 0.432) == "38.6 to 43.2%"
    assert interval(None, 2.0) == interval(1.0, math.nan) == percents(None, 1.0) == ""


def test_an_interval_over_a_factor_of_10_is_not_known() -> None:
    assert (interval(2.0, 20.0, floor=0.0), interval(2.0, 20.1, floor=0.0)) == ("2.00 to 20.0", "not known")
    assert (too_wide(2.0, 20.0), too_wide(2.0, 20.1), too_wide(None, 3.0)) == (False, True, False)
    assert (too_wide(-0.9, -0.01, floor=-1.0), too_wide(-0.9, 0.01, floor=-1.0)) == (False, True)
    assert too_wide(-1.0, 1625.0, floor=-1.0)


def test_a_tip_has_the_value_its_unit_and_its_interval() -> None:
    assert tip_of(Estimate(value=0.409, lo=0.386, hi=0.432), unit="%", scale=100) == "40.9% (38.6 to 43.2)"
    assert tip_of(Estimate(value=1234.5, lo=None, hi=2000.0), unit=" J") == "1,234 J"
    assert (
        tip_of(Estimate(value=2, lo=0.1, hi=9), floor=0.0) == "2.00 (interval not known: the repeats differ too much)"
    )


def test_ranges_of_batches() -> None:
    assert (span(1, 128), span(16, 16)) == ("1–128", "16")
    measured = (1, 4, 16, 64)
    assert spanned([1, 4], measured) == "B ≤ 4"
    assert spanned([1, 16, 64], measured) == "B = 1, 16–64"
    assert (spanned([1, 4], measured, ""), spanned([64], measured, "")) == ("≤ 4", "64")
