"""Look: how a target appears, the same in every figure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

TEXT = "#1c1c1c"
"""Text and axes: the page puts its own colour in this one's place."""
GRID = "#9a9a9a"
"""Grid and border lines, mapped by the page too."""
INVALID = "#808080"
STAMP = "#cf2a45"
COLOURS = ("#0072b2", "#d55e00", "#00936b", "#bf5b93", "#9a7400", "#7a6ae0", "#1f8fa8", "#a4604a")
"""Each has a contrast of 3:1 to white and to #14171a."""
MARKERS = "osD^vPX*"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "loadgen",
    "text.parse_math": False,
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "path.simplify_threshold": 0.2,
}
"""What differs from matplotlib's own settings."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """Colour and marker of a target; `slug` is its name in ids."""

    target: str
    slug: str
    colour: str
    marker: str


def looks_of(targets: Iterable[str]) -> dict[str, Look]:
    """By target, in the given order; from the ninth on colours come again, with another marker."""
    looks: dict[str, Look] = {}
    for place, target in enumerate(dict.fromkeys(targets)):
        again = place // len(COLOURS)
        looks[target] = Look(
            target=target,
            slug=target.replace(".", "_"),
            colour=COLOURS[place % len(COLOURS)],
            marker=MARKERS[(place + again) % len(MARKERS)],
        )
    return looks
