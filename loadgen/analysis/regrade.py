"""Regrade: the answers of a run graded once more by today's rules, without a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow.parquet as pq

from loadgen.analysis.analyse import analyse
from loadgen.analysis.tables import read_table
from loadgen.errors import UsageError
from loadgen.folder import Folder
from loadgen.sweep.manifest import read_manifest
from loadgen.workload.grading import VERSION

_FILE = "requests.parquet"
_REQUEST = ["target", "concurrency", "repeat", "slot", "t_send_ns"]
_READ = ["item_id", "outcome", "answer", "extractor"]
UNGRADED = "none"
FIRST_VERSION = 1
"""The grader of runs whose requests.parquet names none."""


class Reading(msgspec.Struct, frozen=True):
    """What a grader made of an answer."""

    outcome: str
    answer: str | None
    extractor: str | None

    def __str__(self) -> str:
        if self.answer is None:
            return self.outcome
        return f"{self.outcome} ({self.answer}, by {self.extractor})"


class Change(msgspec.Struct, frozen=True):
    """A reading that differs from the stored one, and how often it was given."""

    item_id: str
    before: Reading
    now: Reading
    times: int


class Regraded(msgspec.Struct, frozen=True):
    """What the rules of today make of a run."""

    graded: int
    """Requests that have an outcome now."""
    changed: Mapping[tuple[str, str], int] | None
    """Requests by old and new outcome where these differ, the most first; None if there was no requests.parquet."""
    before: int | None = None
    """Version of the grader whose verdicts stood there."""
    now: int = VERSION
    changes: tuple[Change, ...] = ()
    """Item by item, also those whose outcome stays while another answer is read."""


def regrade(run_dir: Path) -> Regraded:
    """Rewrites the derived files of a run directory and compares the outcomes with those that stood there.

    Raises UsageError if it is no run directory, or its answers are not to be graded.
    """
    if not read_manifest(run_dir)["graded"]:
        raise UsageError(
            f"{run_dir} was measured with --fixed-length: its answers were not free to end and cannot be graded"
        )
    there = Folder(run_dir).has(_FILE)
    before = _verdicts(run_dir) if there else None
    version = _version(run_dir) if there else None
    analyse(run_dir)
    after = _verdicts(run_dir)
    graded = int((after["outcome"] != UNGRADED).sum())
    if before is None:
        return Regraded(graded, None)
    return Regraded(graded, _outcomes(before, after), version, VERSION, _changes(before, after))


def _verdicts(run_dir: Path) -> pd.DataFrame:
    read = read_table(run_dir, _FILE, columns=[*_REQUEST, *_READ]).set_index(_REQUEST)
    return read.assign(outcome=read["outcome"].fillna(UNGRADED))


def _version(run_dir: Path) -> int:
    """The one that graded the file; it is written as a whole, so there is one."""
    with Folder(run_dir).open(_FILE) as file:
        if "grader" not in pq.read_schema(file).names:
            return FIRST_VERSION
    known = read_table(run_dir, _FILE, columns=["grader"])["grader"].dropna()
    return int(known.iloc[0]) if len(known) else VERSION


def _outcomes(before: pd.DataFrame, after: pd.DataFrame) -> dict[tuple[str, str], int]:
    pairs = pd.DataFrame({"old": before["outcome"], "new": after["outcome"]}).fillna(UNGRADED)
    changed = pairs[pairs["old"] != pairs["new"]]
    return dict(Counter(zip(changed["old"], changed["new"], strict=True)).most_common())


def _changes(before: pd.DataFrame, after: pd.DataFrame) -> tuple[Change, ...]:
    both = before.add_suffix("_old").join(after.add_suffix("_new"), how="inner").astype(object)
    both = both.where(both.notna(), None)
    rows: list[dict[Any, Any]] = both.to_dict("records")
    found = Counter(
        (str(row["item_id_new"]), _reading(row, "old"), _reading(row, "new"))
        for row in rows
        if (row["outcome_old"], row["answer_old"]) != (row["outcome_new"], row["answer_new"])
    )
    return tuple(
        Change(item, old, new, times)
        for (item, old, new), times in sorted(found.items(), key=lambda entry: (-entry[1], entry[0][0]))
    )


def _reading(row: dict[Any, Any], age: str) -> Reading:
    return Reading(row[f"outcome_{age}"], row[f"answer_{age}"], row[f"extractor_{age}"])
