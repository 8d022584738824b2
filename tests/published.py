"""Published data files, which the project may not carry: tests read them where somebody has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("LOADGEN_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")


def published(name: str) -> Path:
    """The path of the published file. Where nobody has it the test is skipped."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip("published data files: LOADGEN_TEST_DATA=FOLDER")
    return path
