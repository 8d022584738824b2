"""Figure: a drawing on disk and the words that belong to it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Section = Literal["answer", "paper", "latency", "time"]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure, drawn twice: an SVG without background for a page, a PNG with title on white to send around.

    In the SVG, text and axes are #1c1c1c and grid lines #9a9a9a. Every artist of a target has the id
    `series-TARGET`, further ones `series-TARGET--2`, `--3` and so on; its points have `pt-TARGET-1` and so on; its
    legend entry `legend-TARGET`. TARGET is the target's name with every dot as `_`. Ids are unique within a figure.
    """

    name: str
    """Stem of both files."""
    section: Section
    title: str
    caption: str
    """What is drawn, which intervals, which figure of the paper it answers, where its numbers stand."""
    alt: str
    svg: Path
    png: Path
    tips: dict[str, str]
    """Id of a point or a line -> its figures in words."""
