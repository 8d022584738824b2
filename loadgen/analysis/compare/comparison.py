"""RunComparison: what several runs say together; compare.csv, imports.csv and compare.json hold it.

What is known of N*, in words.

The paper's claims over model size (arXiv 2602.13595v2, Theorem 4.6 and Corollary 4.7), compared with the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import msgspec
import pandas as pd

from loadgen.analysis.claims import Claim, Verdict
from loadgen.analysis.compare.difference import RunDifference, run_difference
from loadgen.analysis.compare.external import (
    DIFFERENCES,
    ImportedPoint,
    Published,
    PublishedMatch,
    published_matches,
    published_n_star,
    read_import,
)
from loadgen.analysis.compare.gpus import GpuFactor, gpu_factor
from loadgen.analysis.compare.nstar import NStar, SizeCrossing, Unmixed, n_stars, unmixed
from loadgen.analysis.compare.row import CompareRow, given_size, rows_of
from loadgen.analysis.kvcache import kv_caches
from loadgen.analysis.run import Run, load_run
from loadgen.analysis.tables import write_csv
from loadgen.errors import UsageError
from loadgen.folder import Folder
from loadgen.notation import did_you_mean
from loadgen.record.pool import runs_in
from loadgen.words import count, span, too_wide


def size_words(parameters: float) -> str:
    """Parameters as they are read: 7.25B, 600M."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= 0.9995 * factor:
            return f"{count(parameters / factor)}{unit}"
    return f"{parameters:.0f}"


def n_star_sentence(found: NStar) -> str:
    """One line without a full stop; it names the stratum, and says SIMULATED where that is."""
    return f"{found.stratum}: {_finding(found)}"


def _finding(found: NStar) -> str:
    if found.refusal is not None:
        return f"no N*: {found.refusal}"
    sizes = span(size_words(found.points[0].parameters), size_words(found.points[-1].parameters))
    if found.status == "crosses":
        first, *others = found.crossings
        text = f"{_side(first, below=True)} below {_n_star(first)}"
        for crossing in others:
            text += f", {_side(crossing, below=True)} up to {_n_star(crossing)}"
        text += f", {_side(found.crossings[-1], below=False)} above it"
        away = _joined(found, "open")
        return text + (f"; not decided at {away}" if away else "") + _beyond(found, "another N*")
    if found.status in ("better", "worse"):
        word = "faster" if found.status == "better" else "slower"
        outside = _beyond(found, "an N*") or f"; if an N* exists, it is outside {sizes}"
        return f"{word} than the reference at every size measured ({sizes}){outside}"
    decided = {"wins": "faster", "loses": "slower", "open": "open"}
    said = (f"{word} at {_joined(found, sign)}" for sign, word in decided.items() if _joined(found, sign))
    text = f"not decided ({', '.join(said)})"
    if found.suspected:
        places = ", ".join(size_words(crossing.n) for crossing in found.suspected)
        text += f"; COR changes sign at {places}, which noise may have made"
    return text + _beyond(found, "an N*")


def _joined(found: NStar, sign: str) -> str:
    """The sizes with this sign, neighbours joined: "1B, 7B–70B"."""
    runs = [list(run) for same, run in groupby(found.points, key=lambda point: point.sign == sign) if same]
    return ", ".join(span(size_words(run[0].parameters), size_words(run[-1].parameters)) for run in runs)


def _side(crossing: SizeCrossing, *, below: bool) -> str:
    return "faster" if (crossing.direction == "wins_below") == below else "slower"


def _n_star(crossing: SizeCrossing) -> str:
    text = f"N* = {size_words(crossing.n)}"
    if crossing.lo is None or crossing.hi is None:
        return text
    if too_wide(crossing.lo, crossing.hi):
        return f"an N* between {size_words(crossing.bracket[0])} and {size_words(crossing.bracket[1])}"
    return f"{text} (95% CI {span(size_words(crossing.lo), size_words(crossing.hi))})"


def _beyond(found: NStar, what: str) -> str:
    sides = [f"> {size_words(found.above)}"] if found.above is not None else []
    sides += [f"< {size_words(found.below)}"] if found.below is not None else []
    return f"; if {what} exists, it is {' or '.join(sides)}" if sides else ""


def size_claims(found: NStar) -> tuple[Claim, ...]:
    """The claims of one stratum; none where its curve was refused."""
    if found.refusal is not None:
        return ()
    return _trap_dissolves(found), _accuracy_trap_persists(found)


def _claim(found: NStar, claim: str, source: str, verdict: Verdict, evidence: str) -> Claim:
    return Claim(
        claim=claim,
        source=source,
        targets=(found.stratum.precision,),
        verdict=verdict,
        evidence=f"{evidence} ({found.stratum})",
    )


def _trap_dissolves(found: NStar) -> Claim:
    back = [crossing for crossing in found.crossings if crossing.direction == "wins_below"]
    sizes = span(size_words(found.points[0].parameters), size_words(found.points[-1].parameters))
    verdict: Verdict = "cannot tell"
    if back:
        verdict = "contradicted"
        evidence = f"COR rises above zero again at N = {size_words(back[0].n)}"
    elif found.crossings:
        verdict, evidence = "supported", f"COR falls below zero at N* = {size_words(found.crossings[0].n)}"
    elif found.status == "worse":
        evidence = f"slower at every size measured, {sizes}: an N* may lie above"
    elif found.status == "better":
        evidence = f"faster at every size measured, {sizes}: an N* may lie below"
    else:
        evidence = f"no crossing is established and not every size is decided, {sizes}"
    return _claim(found, "above some model size N* the trap dissolves", "Theorem 4.6 of v2", verdict, evidence)


def _accuracy_trap_persists(found: NStar) -> Claim:
    """At the largest size, where an N* lies below it."""
    largest = found.points[-1]
    size = size_words(largest.parameters)
    dissolves = any(crossing.direction == "wins_above" for crossing in found.crossings)
    judged = set(largest.accuracy_verdicts)
    verdict: Verdict = "cannot tell"
    if not dissolves:
        evidence = "no N* is established below the largest size"
    elif largest.sign != "wins":
        verdict = "contradicted" if largest.sign == "loses" else "cannot tell"
        evidence = f"above an N*, at {size}, it is {'slower again' if largest.sign == 'loses' else 'not decided'}"
    elif judged == {"worse"}:
        verdict, evidence = "supported", f"at {size} faster than the reference, and less accurate"
    elif judged <= {"better", "equivalent"}:
        verdict, evidence = "contradicted", f"at {size} faster than the reference, and accuracy {' or '.join(judged)}"
    else:
        evidence = f"at {size} faster than the reference; accuracy: {', '.join(sorted(judged))}"
    claim = "far above N* the efficiency trap vanishes and the accuracy trap persists"
    return _claim(found, claim, "Corollary 4.7 of v2", verdict, evidence)


SCHEMA = 1
Of = TypeVar("Of")


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
    published: tuple[PublishedMatch, ...]
    published_n_star: tuple[Published, ...]
    imports: tuple[ImportedPoint, ...]
    differences: dict[str, str]
    """How the definitions of the tools imported from differ."""
    warnings: tuple[str, ...]
    gpus: GpuFactor = GpuFactor()
    """The GPU as a factor, of runs that were measured on several."""
    kv_caches: tuple[str, ...] = ()
    """A sentence per run: whether its targets had one size of KV cache, or what the card left them."""
    pair: RunDifference | None = None
    """The second run against the first; None unless there are two."""

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
    """Run directories side by side.

    `size`: parameters ("7.25B") by run, model or target name; `imports`: TOOL[:LABEL]=FILE each. Raises UsageError if
    a directory is no run or given twice, a size names nothing, or a file cannot be read.
    """
    sizes = {name: given_size(text) for name, text in (size or {}).items()}
    opened = _open(runs)
    points = [point for argument in imports for point in read_import(argument)]
    rows = tuple(row for label, run in opened.items() for row in rows_of(run, label, sizes))
    _check_names(sizes, rows, [run.manifest.config.model for run in opened.values()])
    found = n_stars(rows)
    unknown = dict.fromkeys(f"{row.run}: {row.parameters_source}" for row in rows if row.parameters is None)
    caches = {label: kv_caches(run.manifest) for label, run in opened.items()}
    return RunComparison(
        simulated=any(row.simulated for row in rows),
        rows=rows,
        n_stars=found,
        sentences=tuple(map(n_star_sentence, found)),
        unmixed=unmixed(rows),
        claims=tuple(claim for one in found for claim in size_claims(one)),
        published=published_matches(rows),
        published_n_star=published_n_star(),
        imports=tuple(points),
        differences={point.tool: DIFFERENCES[point.tool] for point in points},
        warnings=tuple(unknown),
        gpus=gpu_factor(opened),
        kv_caches=tuple(f"{label}: {found.sentence}" for label, found in caches.items() if found is not None),
        pair=run_difference(_two(list(opened)), _two(list(opened.values())), rows) if len(opened) == 2 else None,
    )


def _two(both: list[Of]) -> tuple[Of, Of]:
    first, second = both
    return first, second


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
    paths = [run for path in paths for run in runs_in(Path(path))]
    runs = {Path(path).resolve(): load_run(path) for path in paths}
    if len(runs) < len(paths):
        twice = next(path for path in runs if sum(Path(other).resolve() == path for other in paths) > 1)
        raise UsageError(f"{twice} is listed twice; list each run once")
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
            hint = f"{did_you_mean(name, names)}the runs are {there}"
            raise UsageError(f"--size {name}: no run, model or target has that name; {hint}")
