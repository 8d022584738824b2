"""NStar: the model size at which a precision stops being a trap, or starts to be one: the zero of COR over log N
(Theorem 4.6 and Figure 8 of arXiv 2602.13595v2). Stratum: what must be equal for two CORs to differ by size alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Literal

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.compare.row import CompareRow
from loadgen.analysis.crossover.crossing import Crossing, GridPoint, band_of, beyond, crossings, grid_points
from loadgen.analysis.crossover.curve import PairedCurve
from loadgen.analysis.crossover.noise import ALPHA, Noise
from loadgen.analysis.estimate import Direction
from loadgen.load.openloop import CLOSED
from loadgen.record.cell import level


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
    return msgspec.convert(row, Stratum, from_attributes=True)


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


Status = Literal["better", "worse", "crosses", "unresolved"]
SMALLEST_ERROR = 1e-12


class SizePoint(msgspec.Struct, frozen=True, kw_only=True):
    """COR at one model size; several runs of one size are one point."""

    parameters: float
    models: tuple[str, ...]
    runs: tuple[str, ...]
    cor: float
    cor_lo: float
    cor_hi: float
    sign: Literal["wins", "loses", "open"]
    """`wins`: proven faster than the reference (COR < 0), over all sizes together at 5%."""
    headroom: float | None
    """The headroom of the precision's memory; None: not known."""
    reference_headroom: float | None
    accuracy_verdicts: tuple[str, ...]


class SizeCrossing(msgspec.Struct, frozen=True, kw_only=True):
    """A zero of COR, in parameters."""

    n: float
    lo: float | None
    """95% interval; None: not bounded within the sizes measured."""
    hi: float | None
    bracket: tuple[float, float]
    direction: Direction
    """`wins_above`: faster than the reference above n (the paper's N*); `wins_below`: a trap again above n."""


class NStar(msgspec.Struct, frozen=True, kw_only=True):
    """COR over model size in one stratum."""

    stratum: Stratum
    points: tuple[SizePoint, ...] = ()
    """By ascending size."""
    status: Status = "unresolved"
    """`better`, `worse`: proven at every size; `crosses`: at least one crossing is established."""
    crossings: tuple[SizeCrossing, ...] = ()
    """The established ones."""
    suspected: tuple[SizeCrossing, ...] = ()
    """Other sign changes of COR, which noise may have made."""
    above: float | None = None
    """If a (further) N* exists, the trend puts it above so many parameters; None: no such trend is proven."""
    below: float | None = None
    refusal: str | None = None
    notes: tuple[str, ...] = ()


def n_stars(rows: Sequence[CompareRow]) -> tuple[NStar, ...]:
    """One per stratum that holds a COR, sorted."""
    found = strata(rows)
    ordered = sorted(found, key=lambda one: (one.simulated, one.precision, one.concurrency, str(one)))
    return tuple(_n_star(stratum, found[stratum], rows) for stratum in ordered)


def _n_star(stratum: Stratum, members: Sequence[CompareRow], rows: Sequence[CompareRow]) -> NStar:
    notes = []
    by_size: dict[float, list[CompareRow]] = {}
    for row in members:
        if row.parameters is None:
            notes.append(f"{row.run}: left out, {row.parameters_source}")
        elif row.cor_lo is None or row.cor_hi is None or row.pairs < 2:
            notes.append(f"{row.run}: left out, one repeat has no interval; measure three")
        else:
            by_size.setdefault(row.parameters, []).append(row)
    notes += [
        f"{', '.join(row.run for row in group)} have the same size: their mean is one point, with the widest interval"
        for group in by_size.values() if len(group) > 1
    ]  # fmt: skip
    versions = sorted({row.vllm for row in members if row.vllm})
    if len(versions) > 1:
        notes.append(f"vLLM versions differ ({', '.join(versions)}), which alone can move a COR")
    if len(by_size) < 2:
        kinds = "one model size" if by_size else "no model size with an interval"
        return NStar(stratum=stratum, refusal=f"{kinds}, and a curve over N needs two", notes=tuple(notes))
    sizes = sorted(by_size)
    curve, noise = _curve(sizes, [by_size[size] for size in sizes])
    grid, band = grid_points(curve, noise), band_of(curve.batch, curve.mean, noise)
    found = crossings(grid, band)
    ends = {end.side: end.batch for end in beyond(grid, band, noise)}
    return NStar(
        stratum=stratum,
        points=tuple(_point(size, by_size[size], point, rows) for size, point in zip(sizes, grid, strict=True)),
        status=_status(grid, found),
        crossings=tuple(_in_parameters(crossing, sizes) for crossing in found if crossing.established),
        suspected=tuple(_in_parameters(crossing, sizes) for crossing in found if not crossing.established),
        above=ends.get("above"),
        below=ends.get("below"),
        notes=tuple(notes),
    )


def _curve(sizes: Sequence[float], groups: Sequence[Sequence[CompareRow]]) -> tuple[PairedCurve, Noise]:
    """-log(1 + COR), the log-advantage in tokens/s, over N; its errors are those of the runs' own intervals of COR.

    Runs are independent of each other; the fewest repeats' degrees of freedom count for all.
    """
    logs = [float(np.mean([-math.log1p(row.cor or 0.0) for row in group])) for group in groups]
    errors = np.array([max(max(map(_log_error, group)), SMALLEST_ERROR) for group in groups])
    curve = PairedCurve(
        concurrency=tuple(range(len(sizes))),
        batch=np.array(sizes),
        advantage=np.array(logs)[:, None],
        window_error=errors,
        item_error=np.zeros(len(sizes)),
        notes=(),
    )
    noise = Noise(
        repeat_square=0.0,
        repeat_degrees=math.inf,
        rest_square=errors**2,
        rest_degrees=np.full(len(sizes), min(row.pairs for group in groups for row in group) - 1.0),
        coefficient=math.inf,
        counts=np.ones(len(sizes)),
        overlap=np.eye(len(sizes)),
        item_error=np.zeros(len(sizes)),
    )
    return curve, noise


def _log_error(row: CompareRow) -> float:
    """Standard error of log(1 + COR): the interval's half is Student's quantile times it."""
    assert row.cor_lo is not None and row.cor_hi is not None
    half = (math.log1p(row.cor_hi) - math.log1p(row.cor_lo)) / 2
    return half / -float(special.stdtrit(row.pairs - 1, ALPHA / 2))


def _point(size: float, group: Sequence[CompareRow], point: GridPoint, rows: Sequence[CompareRow]) -> SizePoint:
    assert point.lo is not None and point.hi is not None
    runs = {(own.run, own.concurrency) for own in group}
    references = [row.memory_headroom for row in rows if row.is_reference and (row.run, row.concurrency) in runs]
    return SizePoint(
        parameters=size,
        models=tuple(dict.fromkeys(row.model or "" for row in group)),
        runs=tuple(dict.fromkeys(row.run for row in group)),
        cor=math.expm1(-point.log_advantage),
        cor_lo=math.expm1(-point.hi),
        cor_hi=math.expm1(-point.lo),
        sign=point.sign,
        headroom=_least([row.memory_headroom for row in group]),
        reference_headroom=_least(references),
        accuracy_verdicts=tuple(dict.fromkeys(row.accuracy_verdict or "not tested" for row in group)),
    )


def _least(values: Sequence[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _status(points: Sequence[GridPoint], found: Sequence[Crossing]) -> Status:
    if any(crossing.established for crossing in found):
        return "crosses"
    signs = {point.sign for point in points}
    return "better" if signs == {"wins"} else "worse" if signs == {"loses"} else "unresolved"


def _in_parameters(crossing: Crossing, sizes: Sequence[float]) -> SizeCrossing:
    low, high = (sizes[place] for place in crossing.bracket)
    return SizeCrossing(n=crossing.b, lo=crossing.lo, hi=crossing.hi, bracket=(low, high), direction=crossing.direction)
