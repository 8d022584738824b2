"""Targets are told apart by everyone, on light and on dark."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.reports.figures.sheet import COLOURS, INVALID, STAMP, looks_of


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colour", [*COLOURS, INVALID, STAMP])
def test_data_are_readable_on_light_and_on_dark(colour: str) -> None:
    """WCAG 2.2, 1.4.11: graphics at 3:1 to what is beside them."""
    for ground in ("#ffffff", "#14171a"):
        light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3.0


def test_targets_that_differ_in_a_dot_alone_have_files_and_ids_of_their_own() -> None:
    assert [look.slug for look in looks_of(["a.b", "a_b", "a.b_", "a.b"]).values()] == ["a_b", "a_b_", "a_b__"]


def test_eight_targets_differ_in_colour_and_marker_and_sixteen_in_one_of_both() -> None:
    looks: list[Any] = list(looks_of(f"t{k}" for k in range(16)).values())
    assert len({look.colour for look in looks[:8]}) == len({look.marker for look in looks[:8]}) == 8
    assert len({(look.colour, look.marker) for look in looks}) == 16
