"""Questions the simulated model can answer."""

from __future__ import annotations

from pathlib import Path

from loadgen.errors import UsageError
from loadgen.workload.gsm8k import read_gsm8k
from loadgen.workload.item import Item
from loadgen.workload.sample import own_shots, sample_items, warmup_items


def known_items(data_file: Path | None = None) -> list[Item]:
    """The shipped problems, and the rows of a file in GSM8K's published schema.

    Raises UsageError for a file that is missing or malformed.
    """
    items = [*sample_items(), *warmup_items(), *own_shots()]
    if data_file is not None:
        if not data_file.is_file():
            raise UsageError(f"--data-file {data_file}: there is no such file")
        items += read_gsm8k(data_file, split="test")
    return items
