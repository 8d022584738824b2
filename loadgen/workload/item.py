"""Item: one question of a dataset."""

from __future__ import annotations

import msgspec


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One question with its published answer."""

    id: str
    """Stable over releases: dataset, split and row, e.g. `gsm8k-test-0007`."""
    question: str
    solution: str
    """The published worked answer, as it would stand in a few-shot example."""
    gold: str
    """The final answer alone, without thousands separators."""
