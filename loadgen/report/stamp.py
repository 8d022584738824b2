"""The word that stands by everything that came from a cost model."""

from __future__ import annotations

STAMP = "SIMULATED"


def stamped(name: str, *, simulated: bool) -> str:
    """The name, followed by the stamp where it was not measured."""
    return f"{name} {STAMP}" if simulated else name
