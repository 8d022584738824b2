"""Regrade: the answers of a run graded once more by today's rules, without a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pandas as pd

from loadgen.analysis.analyse import analyse
from loadgen.errors import UsageError
from loadgen.sweep.manifest import read_manifest

_REQUEST = ["target", "concurrency", "repeat", "slot", "t_send_ns"]
UNGRADED = "none"


class Regraded(msgspec.Struct, frozen=True):
    """What the rules of today make of a run."""

    graded: int
    """Requests that have an outcome now."""
    changed: Mapping[tuple[str, str], int] | None
    """Requests by old and new outcome where these differ, the most first; None if there was no requests.parquet."""


def regrade(run_dir: Path) -> Regraded:
    """Rewrites the derived files of a run directory and compares the outcomes with those that stood there.

    Raises UsageError if it is no run directory, or its answers are not to be graded.
    """
    if not read_manifest(run_dir)["graded"]:
        raise UsageError(
            f"{run_dir} was measured with --fixed-length: its answers were not free to end and cannot be graded"
        )
    path = run_dir / "requests.parquet"
    before = _outcomes(path) if path.exists() else None
    analyse(run_dir)
    after = _outcomes(path)
    return Regraded(
        graded=int((after != UNGRADED).sum()), changed=None if before is None else _changes(before, after)
    )


def _outcomes(path: Path) -> pd.Series[str]:
    return pd.read_parquet(path, columns=[*_REQUEST, "outcome"]).set_index(_REQUEST)["outcome"].fillna(UNGRADED)


def _changes(before: pd.Series[str], after: pd.Series[str]) -> dict[tuple[str, str], int]:
    pairs = pd.DataFrame({"old": before, "new": after}).fillna(UNGRADED)
    changed = pairs[pairs["old"] != pairs["new"]]
    return dict(Counter(zip(changed["old"], changed["new"], strict=True)).most_common())
