"""RunComparison: what several runs say together; compare.csv, imports.csv and compare.json hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pandas as pd

from loadgen.analysis.claims import Claim
from loadgen.analysis.compare.imported import DIFFERENCES, ImportedPoint, read_import
from loadgen.analysis.compare.nstar import NStar, n_stars
from loadgen.analysis.compare.published import Beside, Published, beside, published_n_star
from loadgen.analysis.compare.row import CompareRow, rows_of
from loadgen.analysis.compare.size import given_size
from loadgen.analysis.compare.stratum import Unmixed, unmixed
from loadgen.analysis.compare.theorem import size_claims
from loadgen.analysis.compare.words import n_star_sentence
from loadgen.analysis.run import Run, load_run
from loadgen.analysis.tables import write_csv
from loadgen.errors import UsageError
from loadgen.folder import Folder

SCHEMA = 1


class RunComparison(msgspec.Struct, frozen=True, kw_only=True):
    """The content of compare.json."""

    schema: int = SCHEMA
    simulated: bool
    """Any of the runs is."""
    rows: tuple[CompareRow, ...]
    n_stars: tuple[NStar, ...]
    """By stratum; a stratum with a single model size is there with its refusal."""
    sentences: tuple[str, ...]
    """One per entry of `n_stars`."""
    unmixed: tuple[Unmixed, ...]
    claims: tuple[Claim, ...]
    published: tuple[Beside, ...]
    published_n_star: tuple[Published, ...]
    imports: tuple[ImportedPoint, ...]
    differences: dict[str, str]
    """Of the tools imported from: how their definitions differ."""
    warnings: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """compare.csv as a data frame."""
        return pd.DataFrame(msgspec.to_builtins(self.rows), columns=list(CompareRow.__struct_fields__))

    @property
    def imported(self) -> pd.DataFrame:
        """imports.csv as a data frame."""
        return pd.DataFrame(msgspec.to_builtins(self.imports), columns=list(ImportedPoint.__struct_fields__))


def compare_runs(
    runs: Sequence[str | Path], *, size: Mapping[str, str | float] | None = None, imports: Sequence[str] = ()
) -> RunComparison:
    """Run directories beside each other.

    `size`: parameters ("7.25B") by run, model or target name; `imports`: TOOL[:LABEL]=FILE each. Raises UsageError if
    a directory is no run or given twice, a size names nothing, or a file cannot be read.
    """
    sizes = {name: given_size(text) for name, text in (size or {}).items()}
    opened = _open(runs)
    points = [point for argument in imports for point in read_import(argument)]
    rows = tuple(row for label, run in opened.items() for row in rows_of(run, label, sizes))
    _check_names(sizes, rows, [run.manifest["config"].get("model") for run in opened.values()])
    found = n_stars(rows)
    unknown = dict.fromkeys(f"{row.run}: {row.parameters_source}" for row in rows if row.parameters is None)
    return RunComparison(
        simulated=any(row.simulated for row in rows),
        rows=rows,
        n_stars=found,
        sentences=tuple(map(n_star_sentence, found)),
        unmixed=unmixed(rows),
        claims=tuple(claim for one in found for claim in size_claims(one)),
        published=beside(rows),
        published_n_star=published_n_star(),
        imports=tuple(points),
        differences={point.tool: DIFFERENCES[point.tool] for point in points},
        warnings=tuple(unknown),
    )


def write_comparison(comparison: RunComparison, out: Path) -> None:
    """Writes compare.csv, compare.json and, if anything was imported, imports.csv into `out`, made if need be."""
    out.mkdir(parents=True, exist_ok=True)
    write_csv(comparison.table, out, "compare.csv")
    if comparison.imports:
        write_csv(comparison.imported, out, "imports.csv")
    text = msgspec.json.format(msgspec.json.encode(comparison), indent=2)
    Folder(out).write("compare.json", text + b"\n")


def _open(paths: Sequence[str | Path]) -> dict[str, Run]:
    """Runs by the shortest tails of their paths that tell them apart."""
    if not paths:
        raise UsageError("nothing to compare: name run directories")
    runs = {Path(path).resolve(): load_run(path) for path in paths}
    if len(runs) < len(paths):
        twice = next(path for path in runs if sum(Path(other).resolve() == path for other in paths) > 1)
        raise UsageError(f"{twice} is given twice; name every run once")
    tails = dict.fromkeys(runs, 1)
    while clashes := [path for path in tails if sum(_tail(p, tails[p]) == _tail(path, tails[path]) for p in tails) > 1]:
        for path in clashes:
            tails[path] += 1
    return {_tail(path, tails[path]): run for path, run in runs.items()}


def _tail(path: Path, parts: int) -> str:
    return "/".join(path.parts[-parts:])


def _check_names(sizes: Mapping[str, float], rows: Sequence[CompareRow], models: Sequence[str | None]) -> None:
    names = {name for row in rows for name in (row.run, row.model, row.target) if name} | {m for m in models if m}
    for name in sizes:
        if name not in names:
            there = ", ".join(dict.fromkeys(row.run for row in rows))
            raise UsageError(f"--size {name}: no run, model or target of that name; the runs are {there}")
