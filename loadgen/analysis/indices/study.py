"""IndexStudy: all indices of a run, over targets and batch sizes.

TargetIndices: every index of a target against the reference at one concurrency.

Trap: is a precision worth less than the reference (SI < 1)? COR curve: the slowdown in tokens/s over the batch size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import msgspec

from loadgen.analysis.estimate import BatchResult, Estimate, by_span, log_error
from loadgen.analysis.indices.dominance import (
    Dominance,
    SiDifference,
    WeightSpace,
    dominances,
    si_differences,
    weight_space,
)
from loadgen.analysis.indices.formulas import (
    IndexSettings,
    RepeatNoise,
    RepeatsKnown,
    Resampled,
    carbon_kg,
    clamped,
    cor_tps,
    deficit,
    derive,
    efficiency,
    improvement,
    least,
    percent_increase,
    si_geometric,
    si_linear,
)
from loadgen.analysis.indices.point import (
    Energy,
    EnergySource,
    Formula,
    ItemFigures,
    MemorySource,
    OperatingPoint,
    Ratios,
    Speed,
    batch_refusal,
    item_figures,
    ratios_of,
    reference_ratios,
    speed,
)
from loadgen.analysis.trust.significance import RESAMPLES
from loadgen.bounds import Count
from loadgen.options import Form
from loadgen.processgroup import forked

Trap = Literal["trap", "no trap", "cannot tell"]
CorClass = Literal["dissolved", "trap", "casting-dominant", "unresolved"]


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """E_SI with what it is made of."""

    value: Estimate | None
    alpha: float
    eta: Estimate | None
    """TPS / TPS_ref."""
    rho: Estimate | None
    """V_ref / V: measured, never 16 / bits. Below 1 the target needs more memory than the reference."""
    memory_source: MemorySource | None
    floor: float | None
    """Least E_SI at this eta with rho of 1 or more; an E_SI below it needs rho < 1."""


class EnergyChange(msgspec.Struct, frozen=True, kw_only=True):
    """E/query of the target over the reference's: ratio = per_token_ratio x tokens_ratio."""

    source: EnergySource
    """hli: a bound, in which the ratio is one of latencies."""
    ratio: Estimate
    increase_percent: Estimate
    """100 (ratio - 1)."""
    per_token_ratio: Estimate | None
    tokens_ratio: Estimate | None
    """The ratio of the lengths of the answers."""


class TargetIndices(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of analysis.json's `indices`; None: not measured, or refused."""

    target: str
    reference: str
    concurrency: Count
    refusal: str | None
    """Why nothing but T_SI can be compared."""
    cor_tps: Estimate | None
    """TPS_ref / TPS - 1."""
    cor_class: CorClass | None
    t_si: Estimate | None
    e_si: Efficiency
    sustainability: Form
    """The form of S_SI."""
    s_si: Estimate | None
    """At most 1: this one enters SI."""
    s_si_raw: Estimate | None
    caes_kg_per_query: Estimate | None
    """The target's, in kgCO2e."""
    energy_refusal: str | None
    """Why joules per query are not compared, though they were measured: too few items that both sides completed."""
    energy: EnergyChange | None
    energy_hli: EnergyChange | None
    """By the bound; also where energy was measured."""
    weights: tuple[float, float, float]
    si: Estimate | None
    """Linear, of T, E and S clamped."""
    si_raw: Estimate | None
    """Linear, of T, E and S not clamped."""
    si_repeats: dict[int, float] = {}
    """Repeat -> `si` of it alone, from the same sources and items, scaled so that the geometric mean is `si`."""
    si_item_error: float | None = None
    """Relative standard error of `si` that comes from the choice of items, the same in every repeat."""
    si_geometric: Estimate | None
    """Geometric, of T, E and S clamped."""
    si_geometric_raw: Estimate | None
    deficit: Estimate | None
    """1 - si."""
    improvement: Estimate | None
    """1 / si - 1."""
    trap: Trap
    """By `si`."""
    trap_raw: Trap
    """By `si_raw`."""

    @property
    def missing(self) -> str:
        """Why there is no SI; empty where there is one."""
        if self.si is not None:
            return ""
        if self.refusal is not None:
            return "unequal batch"
        pillars = {
            "accuracy": self.t_si,
            "tokens/s": self.e_si.eta,
            "memory": self.e_si.value if self.e_si.eta is not None else self.e_si.rho,
            "energy": self.s_si,
        }
        if self.energy_refusal is not None:
            pillars |= {f"comparable energy: {self.energy_refusal}": pillars.pop("energy")}
        return "no " + ", no ".join(name for name, figure in pillars.items() if figure is None)


class TrapOverBatches(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one target is a quantization trap, over its batch sizes, in words."""

    target: str
    reference: str
    sentence: str
    brief: str = ""
    """The same without its figures."""


class CorPoint(msgspec.Struct, frozen=True, kw_only=True):
    """COR at one asked concurrency; `running_mean` is the measured batch, the curve's x."""

    concurrency: Count
    running_mean: float | None
    cor_tps: Estimate
    cor_class: CorClass


class CorCurve(msgspec.Struct, frozen=True, kw_only=True):
    """COR of one target over B, in the order of B."""

    target: str
    reference: str
    points: tuple[CorPoint, ...]
    sentence: str
    brief: str = ""
    """The same without its figures."""


class IndexStudy(msgspec.Struct, frozen=True, kw_only=True):
    """What the indices say of a run; every list may be empty."""

    indices: tuple[TargetIndices, ...] = ()
    speeds: tuple[Speed, ...] = ()
    cor_curves: tuple[CorCurve, ...] = ()
    traps: tuple[TrapOverBatches, ...] = ()
    weight_space: tuple[WeightSpace, ...] = ()
    dominance: tuple[Dominance, ...] = ()
    si_differences: tuple[SiDifference, ...] = ()

    def entry(self, target: str, concurrency: int) -> TargetIndices | None:
        """The indices of one target at one concurrency; None for the reference."""
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
    by_target: dict[str, list[tuple[OperatingPoint, TargetIndices]]] = defaultdict(list)
    for at in found:
        for point, entry in at.entries:
            by_target[entry.target].append((point, entry))
    return IndexStudy(
        indices=tuple(entry for at in found for _, entry in at.entries),
        speeds=tuple(speed(point) for point in points),
        cor_curves=tuple(curve for entries in by_target.values() if (curve := cor_curve(entries)) is not None),
        traps=tuple(trap_over_batches([entry for _, entry in entries]) for entries in by_target.values()),
        weight_space=tuple(at.space for at in found if at.space is not None),
        dominance=tuple(pair for at in found for pair in at.dominance),
        si_differences=tuple(difference for at in found for difference in at.differences),
    )


class _At(NamedTuple):
    """What one concurrency says."""

    entries: Sequence[tuple[OperatingPoint, TargetIndices]] = ()
    space: WeightSpace | None = None
    dominance: Sequence[Dominance] = ()
    differences: Sequence[SiDifference] = ()


def _at(together: Sequence[OperatingPoint], reference: str, settings: IndexSettings, resamples: int, seed: int) -> _At:
    others = [point for point in together if point.target != reference]
    against = next((point for point in together if point.target == reference), None)
    if against is None or not others:
        return _At()
    b = against.concurrency
    items = item_figures(others, against, resamples=resamples, seed=seed)
    noise = RepeatNoise({r.repeat for point in together for r in point.repeats}, resamples=resamples, seed=seed)
    of_all, entries = [reference_ratios(reference, against.scores)], []
    for point in others:
        ours, refusal = items[point.target], batch_refusal(point, against)
        ratios = Ratios(target=point.target, t=ours.t, scores=point.scores)
        if refusal is None:
            ratios = ratios_of(point, against, items=ours, noise=noise, settings=settings)
        of_all.append(ratios)
        again = partial(ratios_of, items=ours, settings=settings, sources=ratios.sources)
        entry = target_indices(
            ratios,
            reference=reference,
            concurrency=b,
            settings=settings,
            t_si=_t_si(ours),
            refusal=refusal,
            repeats={at: again(point.alone(at), against.alone(at), noise=noise) for at in point.by_repeat("repeat")},
            of_items=again(point, against, noise=RepeatsKnown()),
        )
        entries.append((point, entry))
    return _At(
        entries,
        weight_space(b, of_all, seed=seed),
        list(dominances(b, of_all)),
        list(si_differences(b, of_all, settings.weights)),
    )


def _t_si(items: ItemFigures) -> Estimate | None:
    ratio = items.t_si
    if ratio is None or ratio.value is None:
        return None
    return Estimate(value=ratio.value, lo=ratio.lo, hi=ratio.hi)


def target_indices(
    ratios: Ratios,
    *,
    reference: str,
    concurrency: int,
    settings: IndexSettings,
    t_si: Estimate | None,
    refusal: str | None = None,
    repeats: Mapping[int, Ratios] | None = None,
    of_items: Ratios | None = None,
) -> TargetIndices:
    """The indices from the ratios; `t_si` as reported by the trust tests, from the same items.

    `repeats`: the ratios in each repeat alone, by the same sources; `of_items`: the ratios whose draws have the noise
    of the items alone.
    """
    si, raw = _index(ratios, si_linear, settings)
    geometric, geometric_raw = _index(ratios, si_geometric, settings)
    cor = derive(lambda eta: cor_tps(eta, 1.0), ratios.eta) if ratios.eta else None
    gamma, energy = settings.carbon_kg_per_kwh, ratios.energy
    carbon = derive(lambda energy_j: carbon_kg(energy_j, gamma), energy.target_j) if energy and gamma else None
    return TargetIndices(
        target=ratios.target,
        reference=reference,
        concurrency=concurrency,
        refusal=refusal,
        cor_tps=_estimate(cor),
        cor_class=cor_class_of(cor.estimate) if cor else None,
        t_si=t_si,
        e_si=Efficiency(
            value=_estimate(ratios.e),
            alpha=settings.alpha,
            eta=_estimate(ratios.eta),
            rho=_estimate(ratios.rho),
            memory_source=ratios.memory_source,
            floor=efficiency(ratios.eta.value, 1.0, settings.alpha) if ratios.eta else None,
        ),
        sustainability=settings.sustainability,
        s_si=_estimate(derive(clamped, ratios.s) if ratios.s else None),
        s_si_raw=_estimate(ratios.s),
        caes_kg_per_query=_estimate(carbon),
        energy_refusal=ratios.energy_refusal,
        energy=_change(energy, ratios.tokens),
        energy_hli=_change(ratios.hli, ratios.tokens),
        weights=settings.weights,
        si=si,
        si_raw=raw,
        si_repeats=_si_repeats(si, repeats or {}, settings),
        si_item_error=_item_error(of_items, settings) if of_items is not None else None,
        si_geometric=geometric,
        si_geometric_raw=geometric_raw,
        deficit=si.falling(deficit) if si else None,
        improvement=si.falling(improvement) if si else None,
        trap=trap_of(si),
        trap_raw=trap_of(raw),
    )


def _estimate(figure: Resampled | None) -> Estimate | None:
    return figure.estimate if figure else None


def _index(ratios: Ratios, formula: Formula, settings: IndexSettings) -> tuple[Estimate | None, Estimate | None]:
    """SI with S clamped, and not."""
    found = ratios.index(formula, settings.weights)
    return (least(*found), found[0].estimate) if found is not None else (None, None)


def _si_repeats(si: Estimate | None, repeats: Mapping[int, Ratios], settings: IndexSettings) -> dict[int, float]:
    """SI is a sum of ratios, and the mean of sums is not the sum of means: all repeats are scaled alike."""
    found = {at: own.value for at, alone in repeats.items() if (own := _index(alone, si_linear, settings)[0])}
    if si is None or si.value <= 0 or not found:
        return {}
    scale = si.value / math.exp(sum(map(math.log, found.values())) / len(found))
    return {at: own * scale for at, own in found.items()}


def _item_error(of_items: Ratios, settings: IndexSettings) -> float | None:
    """Where S may be below 1 by its interval, of SI with S: that is not the smaller error of the two."""
    ends = [found.estimate for found in of_items.index(si_linear, settings.weights) or ()]
    known = [(lo, hi) for end in ends if (lo := end.lo) and (hi := end.hi)]
    return log_error(*min(known)) if len(known) == 2 else None


def _change(energy: Energy | None, tokens: Resampled | None) -> EnergyChange | None:
    if energy is None:
        return None
    ratio = derive(lambda ours, theirs: ours / theirs, energy.target_j, energy.reference_j)
    return EnergyChange(
        source=energy.source,
        ratio=ratio.estimate,
        increase_percent=derive(percent_increase, ratio).estimate,
        per_token_ratio=_estimate(derive(lambda query, length: query / length, ratio, tokens) if tokens else None),
        tokens_ratio=_estimate(tokens),
    )


def trap_of(si: Estimate | None) -> Trap:
    """Trap if the whole interval of SI lies below 1 (the reference's SI), no trap if above, else cannot tell."""
    if si is not None and si.below(1):
        return "trap"
    return "no trap" if si is not None and si.above(1) else "cannot tell"


def trap_over_batches(entries: Sequence[TargetIndices]) -> TrapOverBatches:
    """In words; where the clamp of S decides the verdict, the verdict without it is added."""
    results = [_trap_result(entry, entry.si) for entry in entries]
    sentence, brief = by_span(results, "SI"), by_span(results, "SI", briefly=True)
    if raw := [_trap_result(entry, entry.si_raw) for entry in entries if entry.trap != entry.trap_raw]:
        sentence += "; with S not clamped at 1: " + by_span(raw, "SI")
        brief += "; S not clamped: " + by_span(raw, "SI", briefly=True)
    return TrapOverBatches(target=entries[0].target, reference=entries[0].reference, sentence=sentence, brief=brief)


def _trap_result(entry: TargetIndices, si: Estimate | None) -> BatchResult:
    words: dict[Trap, str] = {"trap": "yes", "no trap": "no", "cannot tell": "cannot tell"}
    trap = trap_of(si)
    return BatchResult(
        concurrency=entry.concurrency,
        word=words[trap],
        estimate=si,
        decided=trap != "cannot tell",
        why=entry.missing if si is None else "" if si.lo is not None else "no interval",
    )


def cor_class_of(cor: Estimate) -> CorClass:
    """By the whole interval: dissolved < 0 (faster), trap 0 to 1, casting-dominant > 1.

    Unresolved where it reaches a border, or where there is no interval.
    """
    if cor.below(0):
        return "dissolved"
    if cor.above(1):
        return "casting-dominant"
    return "trap" if cor.above(0) and cor.below(1) else "unresolved"


def cor_curve(entries: Sequence[tuple[OperatingPoint, TargetIndices]]) -> CorCurve | None:
    """None where no COR is known."""
    points, results = [], []
    for point, entry in entries:
        b, cor, word = entry.concurrency, entry.cor_tps, entry.cor_class
        if cor is not None and word is not None:
            points.append(CorPoint(concurrency=b, running_mean=point.running_mean, cor_tps=cor, cor_class=word))
            results.append(BatchResult(concurrency=b, word=word, estimate=cor, decided=word != "unresolved"))
    if not points:
        return None
    return CorCurve(
        target=entries[0][1].target,
        reference=entries[0][1].reference,
        points=tuple(points),
        sentence=by_span(results, "COR"),
        brief=by_span(results, "COR", briefly=True),
    )
