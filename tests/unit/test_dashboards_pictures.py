"""The pictures of the dashboards: figures with units as Grafana formats them, and lines that end where data do."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "dashboards"))
from boards.live import Series, Span
from render import scale, shown, with_gaps


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.05208, "s", "52.1 ms"), (90, "s", "1.5 min"), (0, "s", "0 s"), (502.3, "watt", "502 W"),
        (8034, "joule", "8.03 kJ"), (0.5401, "joule", "540 mJ"), (0.3696, "percentunit", "37%"), (12, "none", "12"),
        (1, "percentunit", "100%"), (1.76e9, "hertz", "1.76 GHz"), (14.3e9, "bytes", "13.3 GiB"),
        (59, "celsius", "59 °C"), (929.5, "suffix: tok/s", "930 tok/s"), (12431.7, "suffix: tok/s", "12432 tok/s"),
    ],
)  # fmt: skip
def test_a_figure_has_its_unit_and_three_digits(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_an_axis_has_one_unit_that_of_its_largest_figure() -> None:
    assert scale("s", 0.3) == (1e-3, "ms")
    assert scale("bytes", 3 * 2**30) == (2.0**30, "GiB")
    assert scale("percentunit", 0.004) == (0.01, "%")


def test_a_line_does_not_cross_a_gap() -> None:
    points = ((10.0, 1.0), (11.0, 2.0), (15.0, 3.0))
    places = list(with_gaps(Series({}, points), Span(0, 20)))
    assert [at for at, value in places if math.isnan(value)] == [11.0]
    assert [place for place in places if not math.isnan(place[1])] == list(points)
