"""Run: a run directory, opened for reading.

Regrade: the answers of a run graded once more by today's rules, without a server.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow.parquet as pq

from loadgen.analysis.analyse import Analysis, analyse, read_analysis
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.crossover.curve import METRICS
from loadgen.analysis.tables import COLUMNS as SUMMARY
from loadgen.analysis.tables import damaged, older, read_csv, read_table
from loadgen.analysis.validity import COLUMNS, REASONS, Invalid, quantities_of
from loadgen.analysis.warnings import planned_cells
from loadgen.errors import UsageError
from loadgen.folder import Folder
from loadgen.load.openloop import CLOSED
from loadgen.notation import did_you_mean, spelled
from loadgen.record.cell import Slo, held_of, level, rates_of
from loadgen.record.manifest import Manifest, read_manifest
from loadgen.workload.grading import VERSION


class Run:
    """What a sweep left behind, as data frames; figures come from the derived files, units are in the column names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def manifest(self) -> Manifest:
        """What was run, by what, on what."""
        return read_manifest(self.path)

    @cached_property
    def analysis(self) -> Analysis:
        """analysis.json. Raises UsageError if it is damaged, or of an older version."""
        return read_analysis(self.path)

    @property
    def arrival(self) -> str | None:
        """An open loop's `--arrival`; None in a closed loop."""
        arrival = self.manifest.config.arrival
        return None if arrival == CLOSED else arrival

    @property
    def rates(self) -> tuple[str, ...]:
        """An open loop's arrivals, a level each; none in a closed loop."""
        return rates_of(self.arrival) if self.arrival is not None else ()

    def level(self, held: float) -> str:
        """What its cells' load is called, by B or by the rate of an open loop: "B = 16", "poisson:20"."""
        named = {held_of(0, rate): rate for rate in self.rates}
        return level(held, named.get(held, self.arrival))

    def crossover(self, target: str, metric: str) -> Crossover:
        """A target's crossover against the reference; `metric` as in `METRICS`. Raises UsageError if there is none."""
        targets = list(dict.fromkeys(found.target for found in self.analysis.crossovers))
        found = self.analysis.crossover(spelled(target, targets), spelled(metric, METRICS))
        if found is not None:
            return found
        meant = did_you_mean(metric, METRICS) if metric not in METRICS else did_you_mean(target, targets)
        there = f"targets: {', '.join(targets) or 'none'}; metrics: {', '.join(METRICS)}"
        raise UsageError(f"no crossover of {target!r} by {metric!r}; {meant}{there}")

    @property
    def complete(self) -> bool:
        """Every planned cell was measured, and each quantity that was measured is valid in all of them; a search has
        ended."""
        story = self.analysis.search
        if story is not None and not story.ended:
            return False
        return len(self.every_cell) == planned_cells(self.manifest) and not self.invalid

    @property
    def invalid(self) -> tuple[Invalid, ...]:
        """Quantities of cells that are not valid, with the reasons."""
        return self.analysis.invalid

    def valid_cells(self, figure: str) -> pd.DataFrame:
        """The rows of `cells` in which a figure may be believed; `figure` as cells.csv names it."""
        return self.cells[self._valid(figure)]

    def invalid_cells(self, figure: str) -> pd.DataFrame:
        """The rows in which it may not, with the column `why`."""
        columns = [REASONS[quantity] for quantity in quantities_of(figure)]
        rows = self.cells[~self._valid(figure)]
        return rows.assign(why=["; ".join(dict.fromkeys(filter(None, row))) for row in rows[columns].to_numpy()])

    def _valid(self, figure: str) -> pd.Series[bool]:
        return (self.cells[[COLUMNS[quantity] for quantity in quantities_of(figure)]] == True).all(axis=1)  # noqa: E712

    @property
    def shape(self) -> str | None:
        """Of a run with several shapes of requests, the one that `summary`, `cells` and the analysis are about; None:
        it has one."""
        return self.analysis.shape if self.manifest.config.shapes else None

    @property
    def dataset(self) -> str:
        """What the figures are about: the dataset, of several shapes the run's."""
        name = self.manifest.dataset.name
        return name if self.shape is None else f"{name.partition(':')[0]}:{self.shape}"

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per target x concurrency, with intervals; of `shape`."""
        return of_shape(self.every_summary, self.shape)

    @cached_property
    def every_summary(self) -> pd.DataFrame:
        """The rows of `summary` of every shape: summary.csv."""
        counts = ("concurrency", "repeats", *COLUMNS.values(), "questions")
        return _checked(self.path, "summary.csv", counts=counts, flags=("simulated",), numbers=SUMMARY)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per target x concurrency x repeat, with validity; of `shape`."""
        return of_shape(self.every_cell, self.shape)

    @cached_property
    def every_cell(self) -> pd.DataFrame:
        """The rows of `cells` of every shape: cells.csv."""
        flags = ("simulated", *COLUMNS.values())
        cells = _checked(self.path, "cells.csv", counts=("concurrency", "repeat"), flags=flags)
        return cells.fillna(dict.fromkeys((*REASONS.values(), "first_failure"), "")).copy()

    @property
    def unverified(self) -> tuple[str, ...]:
        """Targets with valid cells whose server did not report its running batch: requests in flight are used."""
        cells = self.cells[self.cells["valid"] & self.cells["running_mean"].isna()]
        return tuple(dict.fromkeys(cells["target"]))

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per request, warm-up and failed ones included."""
        return read_table(self.path, "requests.parquet")

    @cached_property
    def power(self) -> pd.DataFrame:
        """Every raw power sample; no rows where power was not measured."""
        return read_table(self.path, "power.parquet")

    @cached_property
    def server(self) -> pd.DataFrame:
        """Samples of the servers' `/metrics`."""
        return read_table(self.path, "server.parquet")


def of_shape(table: pd.DataFrame, shape: str | None) -> pd.DataFrame:
    """The rows of a table of a run that are of a shape; all without one."""
    return table if shape is None else table[table["shape"] == shape].reset_index(drop=True)


def held_in(row: Mapping[Any, Any]) -> float:
    """B, or the rate of an open loop, of a row of `Run.summary` or `Run.cells`, or a request's."""
    return held_of(row["concurrency"], row.get("arrival"))


def batch_of(frame: pd.DataFrame) -> pd.Series[float]:
    """The place of rows of `Run.summary` or `Run.cells` on the axis: the running batch, else the requests in flight."""
    return frame["running_mean"].fillna(frame["inflight_mean"])


_KEYS = ("precision", "concurrency", "repeat", "repeats", "valid")
"""Never empty."""
_TEXTS = (
    *("target", "precision", "phase", *REASONS.values(), "first_failure", "answer_notes", "arrival", "shape"),
    *("running_source", "running_note", "energy_interval_note"),
)


def _checked(
    path: Path, name: str, *, counts: Sequence[str], flags: Sequence[str], numbers: Sequence[str] = ()
) -> pd.DataFrame:
    """A table of the run.

    Raises UsageError as `read_csv`, and if one of the columns that others rely on is missing or holds something else
    than whole numbers, True and False, or `numbers` (which older runs may lack).
    """
    frame = read_csv(path, name, _TEXTS)
    if not {"target", "precision", *counts, *flags} <= {*frame.columns}:
        raise older(path)
    numeric = {column for column in frame.columns if pd.api.types.is_numeric_dtype(frame[column])}
    whole = {column for column in numeric.intersection(counts) if (frame[column].dropna() % 1 == 0).all()}
    sure = {column for column in flags if frame[column].dropna().isin([True, False]).all()}
    asked = {column for column in numbers if column in frame.columns and column not in (*_TEXTS, *flags)}
    missing = [column for column in ("target", *_KEYS) if column in frame.columns and frame[column].isna().any()]
    if wrong := sorted(({*counts} - whole) | ({*flags} - sure) | (asked - numeric)) + missing:
        raise damaged(path, name, f"its column {wrong[0]} holds something else than loadgen writes")
    return frame


def load_run(path: str | Path) -> Run:
    """The run in a directory; its derived files are written if they are missing. Raises UsageError if it is not one."""
    run = Run(Path(path))
    read_manifest(run.path)
    if not Folder(run.path).has("analysis.json"):
        analyse(run.path)
    return run


@contextlib.contextmanager
def judged(run: Run, slo: str | None) -> Iterator[Run]:
    """The run with these objectives in place of its own; None: with its own. Its directory stays as it is."""
    asked = None if slo is None else Slo.parse(slo)
    if asked is None or str(asked) == run.analysis.slo:
        yield run
        return
    with tempfile.TemporaryDirectory(prefix="loadgen-judged-") as folder:
        out, made = Path(folder) / "run", run.analysis
        analyse(run.path, made.index_settings, slo=asked, start_sd=made.start_sd, shape=run.shape, out=out)
        yield Run(out)


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
    """Version of the grader that made the earlier grades."""
    now: int = VERSION
    changes: tuple[Change, ...] = ()
    """Item by item, also those whose outcome stays while another answer is read."""


def regrade(run_dir: Path) -> Regraded:
    """Rewrites the derived files of a run directory and compares the outcomes with the earlier ones.

    Raises UsageError if it is not a run directory, or its answers are not to be graded.
    """
    manifest = read_manifest(run_dir)
    if not manifest.graded:
        why = "was measured with --fixed-length: its answers were not free to end and cannot be graded"
        if manifest.protocol.answer == "none":
            why = f"was measured with --dataset {manifest.dataset.name}, which has no right answers to grade by"
        raise UsageError(f"{run_dir} {why}")
    stored = (_verdicts(run_dir), _version(run_dir)) if Folder(run_dir).has(_FILE) else None
    analyse(run_dir)
    after = _verdicts(run_dir)
    graded = int((after["outcome"] != UNGRADED).sum())
    if stored is None:
        return Regraded(graded, None)
    before, version = stored
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
