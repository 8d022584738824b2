"""Questions the simulated model can answer."""

from __future__ import annotations

from pathlib import Path

from loadgen.workload.dataset import items_of_file
from loadgen.workload.item import Item
from loadgen.workload.sample import own_shots, sample_items, warmup_items


def known_items(data_file: Path | None = None) -> list[Item]:
    """The shipped problems, and the rows of a data file.

    Raises UsageError for a file that is missing or malformed.
    """
    items = [*sample_items(), *warmup_items(), *own_shots()]
    if data_file is not None:
        items += items_of_file(data_file)
    return items
