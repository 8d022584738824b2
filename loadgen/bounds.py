"""Bounds on what others wrote: every read of a file or an answer has one. Each is far above what is met in practice."""

from __future__ import annotations

MOST_FILE_BYTES = 256 * 2**20
"""Of a JSON file that is read whole. A manifest of 1,000 servers has 5 MB, the facts of MathQA's 37,000 items 6 MB."""
MOST_JSON_DEPTH = 100
"""Levels of lists and objects. A manifest has 8; functions that call themselves level by level end at some 300."""


def shown_bytes(count: int) -> str:
    """`256 MiB`."""
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count / 2**10:g} KiB"
