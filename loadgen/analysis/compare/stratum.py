"""Stratum: what must be equal for two CORs to differ by the size of the model alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import msgspec

from loadgen.analysis.compare.row import CompareRow
from loadgen.client.arrivals import CLOSED
from loadgen.sweep.plan import level


class Stratum(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One curve of COR over model size stays within one of these."""

    precision: str
    reference: str
    concurrency: int
    arrival: str = CLOSED
    """An open loop equals none but one of the same arrivals."""
    gpu: str
    gpu_count: int
    dataset: str
    protocol: str
    fixed_length: int | None
    kernels: str | None
    """As the server's log names them, the target's; None: not known."""
    simulated: bool

    def __str__(self) -> str:
        length = f", {self.fixed_length} tokens each" if self.fixed_length else ""
        kernels = f" ({self.kernels})" if self.kernels else ""
        protocol = f", {self.protocol}" if self.protocol != self.dataset else ""
        return (
            f"{'SIMULATED ' if self.simulated else ''}{self.precision}{kernels} against {self.reference} at "
            f"{level(self.concurrency, self.arrival)}, {self.gpu} × {self.gpu_count}, {self.dataset}{protocol}{length}"
        )


class Unmixed(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs of different model sizes that share no stratum for these precisions, and why."""

    runs: tuple[str, str]
    precisions: tuple[str, ...]
    reason: str


_WORDS = {
    "gpu": "GPU",
    "gpu_count": "number of GPUs",
    "concurrency": "B",
    "arrival": "arrivals",
    "dataset": "dataset",
    "protocol": "protocol",
    "fixed_length": "fixed length",
    "reference": "reference",
    "kernels": "kernels",
    "simulated": "origin",
}


def stratum_of(row: CompareRow) -> Stratum | None:
    """None where there is no COR, or the hardware is not recorded: nothing can be said to equal it."""
    if row.cor is None or row.gpu is None or row.gpu_count is None:
        return None
    return Stratum(
        precision=row.precision,
        reference=row.reference,
        concurrency=row.concurrency,
        arrival=row.arrival,
        gpu=row.gpu,
        gpu_count=row.gpu_count,
        dataset=row.dataset,
        protocol=row.protocol,
        fixed_length=row.fixed_length,
        kernels=row.kernels,
        simulated=row.simulated,
    )


def strata(rows: Iterable[CompareRow]) -> dict[Stratum, list[CompareRow]]:
    """The rows that have a COR, by stratum, in the order of their first row."""
    found: dict[Stratum, list[CompareRow]] = {}
    for row in rows:
        stratum = stratum_of(row)
        if stratum is not None:
            found.setdefault(stratum, []).append(row)
    return found


def unmixed(rows: Sequence[CompareRow]) -> tuple[Unmixed, ...]:
    """Every pair of runs whose CORs would have to be mixed over different conditions to make a curve over N."""
    reasons: dict[tuple[tuple[str, str], str], list[str]] = {}
    by_run: dict[str, dict[str, list[CompareRow]]] = {}
    for row in rows:
        if row.cor is not None:
            by_run.setdefault(row.run, {}).setdefault(row.precision, []).append(row)
    for one, other in combinations(by_run, 2):
        for precision in by_run[one].keys() & by_run[other].keys():
            reason = _reason(by_run[one][precision], by_run[other][precision])
            if reason is not None:
                reasons.setdefault(((one, other), reason), []).append(precision)
    return tuple(
        Unmixed(runs=runs, precisions=tuple(sorted(precisions)), reason=reason)
        for (runs, reason), precisions in reasons.items()
    )


def _reason(ours: Sequence[CompareRow], theirs: Sequence[CompareRow]) -> str | None:
    """None where a stratum is shared, or the sizes are equal or unknown: then nothing would be gained by mixing."""
    sizes = {row.parameters for row in (*ours, *theirs)}
    if None in sizes or len(sizes) < 2:
        return None
    mine, yours = strata(ours), strata(theirs)
    if mine.keys() & yours.keys():
        return None
    if not mine or not yours:
        return "the hardware is not recorded, so that nothing can be said to equal it"
    differences = (
        {name: (a, b) for name in _WORDS if (a := getattr(m, name)) != (b := getattr(y, name))}
        for m in mine for y in yours
    )  # fmt: skip
    fewest = min(differences, key=lambda found: (len(found), "concurrency" in found))
    return "; ".join(f"{_WORDS[name]}: {_shown(name, a)} and {_shown(name, b)}" for name, (a, b) in fewest.items())


def _shown(name: str, value: object) -> str:
    if name == "simulated":
        return "SIMULATED" if value else "measured"
    return "not known" if value is None and name == "kernels" else "none" if value is None else str(value)
