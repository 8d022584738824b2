"""Runs as they were measured, less what the client's own speed says: these tests share a machine with their servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.analysis import cells
from loadgen.analysis.analyse import analyse
from loadgen.analysis.run import Run, load_run


def analysed(run_dir: Path) -> Run:
    """The run, its cells judged by all rules but those on the client's lateness."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "client_checks", lambda *_, **__: [])
        analyse(run_dir)
    return load_run(run_dir)
