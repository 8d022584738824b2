"""IndexStudy: all indices of a run, over targets and batch sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from loadgen.analysis.forked import forked
from loadgen.analysis.indices.dominance import Dominance, WeightSpace, dominances, weight_space
from loadgen.analysis.indices.formulas import Estimate, IndexSettings, RepeatNoise, RepeatsKnown
from loadgen.analysis.indices.point import ItemFigures, OperatingPoint, batch_refusal, item_figures
from loadgen.analysis.indices.standing import (
    CorCurve,
    CorPoint,
    Speed,
    Standing,
    cor_curve,
    reference_standing,
    speed,
    stand,
)
from loadgen.analysis.indices.target import (
    SiDifference,
    TargetIndices,
    TrapAnswer,
    TrapPoint,
    si_differences,
    target_indices,
    trap_answer,
)
from loadgen.analysis.trust.significance import RESAMPLES


class IndexStudy(msgspec.Struct, frozen=True, kw_only=True):
    """What the indices say of a run; every list may be empty."""

    indices: tuple[TargetIndices, ...] = ()
    speeds: tuple[Speed, ...] = ()
    cor_curves: tuple[CorCurve, ...] = ()
    traps: tuple[TrapAnswer, ...] = ()
    weight_space: tuple[WeightSpace, ...] = ()
    dominance: tuple[Dominance, ...] = ()
    si_differences: tuple[SiDifference, ...] = ()

    def of(self, target: str, concurrency: int) -> TargetIndices | None:
        """Of one target at one concurrency; None for the reference."""
        found = (entry for entry in self.indices if (entry.target, entry.concurrency) == (target, concurrency))
        return next(found, None)


def index_study(
    points: Sequence[OperatingPoint],
    *,
    reference: str,
    settings: IndexSettings | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    processes: int = 1,
) -> IndexStudy:
    """Every target against the reference at the same asked concurrency; points of concurrencies at which the
    reference was not measured get no indices.

    At one concurrency all figures of all targets come from the same draws: items resampled together, repeats by
    `RepeatNoise`.
    """
    settings = settings or IndexSettings()
    at_b: dict[int, list[OperatingPoint]] = defaultdict(list)
    for point in points:
        at_b[point.concurrency].append(point)
    tasks = [partial(_at, together, reference, settings, resamples, seed) for _, together in sorted(at_b.items())]
    found = list(forked(tasks, processes))
    entries = [entry for at in found for entry in at.entries]
    return IndexStudy(
        indices=tuple(entry for _, entry in entries),
        speeds=tuple(speed(point) for point in points),
        cor_curves=tuple(_curves(entries)),
        traps=tuple(_traps([entry for _, entry in entries])),
        weight_space=tuple(at.space for at in found if at.space is not None),
        dominance=tuple(pair for at in found for pair in at.dominance),
        si_differences=tuple(difference for at in found for difference in at.differences),
    )


class _At(NamedTuple):
    """What one concurrency says."""

    entries: list[tuple[OperatingPoint, TargetIndices]]
    space: WeightSpace | None
    dominance: list[Dominance]
    differences: list[SiDifference]


def _at(together: Sequence[OperatingPoint], reference: str, settings: IndexSettings, resamples: int, seed: int) -> _At:
    others = [point for point in together if point.target != reference]
    against = next((point for point in together if point.target == reference), None)
    if against is None or not others:
        return _At([], None, [], [])
    b = against.concurrency
    items = item_figures(others, against, resamples=resamples, seed=seed)
    noise = RepeatNoise({r.repeat for point in together for r in point.repeats}, resamples=resamples, seed=seed)
    standings, entries = [reference_standing(reference, against.scores)], []
    for point in others:
        refusal = batch_refusal(point, against)
        standing = _standing(point, against, items[point.target], noise, settings, refusal)
        standings.append(standing)
        again = partial(stand, items=items[point.target], settings=settings, sources=standing.sources)
        entry = target_indices(
            standing,
            reference=reference,
            concurrency=b,
            settings=settings,
            t_si=_t_si(items[point.target]),
            refusal=refusal,
            repeats={at: again(point.alone(at), against.alone(at), noise=noise) for at in point.by_repeat("repeat")},
            of_items=again(point, against, noise=RepeatsKnown()),
        )
        entries.append((point, entry))
    return _At(
        entries,
        weight_space(b, standings, seed=seed),
        list(dominances(b, standings)),
        list(si_differences(b, standings, settings.weights)),
    )


def _standing(
    point: OperatingPoint,
    against: OperatingPoint,
    items: ItemFigures,
    noise: RepeatNoise,
    settings: IndexSettings,
    refusal: str | None,
) -> Standing:
    if refusal is not None:
        return Standing(target=point.target, t=items.t, scores=point.scores)
    return stand(point, against, items=items, noise=noise, settings=settings)


def _t_si(items: ItemFigures) -> Estimate | None:
    ratio = items.t_si
    if ratio is None or ratio.value is None:
        return None
    return Estimate(value=ratio.value, lo=ratio.lo, hi=ratio.hi)


def _curves(entries: Sequence[tuple[OperatingPoint, TargetIndices]]) -> Iterable[CorCurve]:
    points: dict[tuple[str, str], list[CorPoint]] = defaultdict(list)
    for point, entry in entries:
        if entry.cor_tps is not None and entry.cor_class is not None:
            points[entry.target, entry.reference].append(
                CorPoint(
                    concurrency=entry.concurrency,
                    running_mean=point.running_mean,
                    cor_tps=entry.cor_tps,
                    cor_class=entry.cor_class,
                )
            )
    return (cor_curve(target, reference, found) for (target, reference), found in points.items())


def _traps(entries: Sequence[TargetIndices]) -> Iterable[TrapAnswer]:
    points: dict[tuple[str, str], list[TrapPoint]] = defaultdict(list)
    for entry in entries:
        points[entry.target, entry.reference].append(
            TrapPoint(concurrency=entry.concurrency, si=entry.si, si_raw=entry.si_raw, missing=_missing(entry))
        )
    return (trap_answer(target, reference, found) for (target, reference), found in points.items())


def _missing(entry: TargetIndices) -> str:
    if entry.si is not None:
        return ""
    if entry.refusal is not None:
        return "unequal batch"
    pillars = {
        "accuracy": entry.t_si,
        "tokens/s": entry.e_si.eta,
        "memory": entry.e_si.value if entry.e_si.eta is not None else entry.e_si.rho,
        "energy": entry.s_si,
    }
    missing = "no " + ", no ".join(name for name, figure in pillars.items() if figure is None)
    if entry.energy_refusal is None:
        return missing
    return f"{missing.removesuffix('energy')}comparable energy: {entry.energy_refusal}"
