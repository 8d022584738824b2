"""TargetIndices: every index of a target against the reference at one concurrency.

The trap verdict: is a precision worth less than the reference (SI < 1)?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.indices.formulas import (
    Drawn,
    Estimate,
    IndexSettings,
    carbon_kg,
    cor_tps,
    deficit,
    derive,
    efficiency_floor,
    improvement,
    least,
    percent_increase,
    si_geometric,
    si_linear,
)
from loadgen.analysis.indices.point import Said, by_span
from loadgen.analysis.indices.standing import CorClass, Energy, EnergySource, MemorySource, Standing, cor_class
from loadgen.analysis.intervals import log_error
from loadgen.bounds import Count
from loadgen.options import Form

Trap = Literal["trap", "no trap", "cannot tell"]
_WORDS: dict[Trap, str] = {"trap": "yes", "no trap": "no", "cannot tell": "cannot tell"}


class TrapPoint(msgspec.Struct, frozen=True, kw_only=True):
    """SI at one concurrency, with S clamped and not; None where a pillar is missing."""

    concurrency: Count
    si: Estimate | None
    si_raw: Estimate | None
    missing: str = ""
    """Why there is no SI."""


class TrapAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The verdicts of one target over its batch sizes, in words."""

    target: str
    reference: str
    sentence: str
    brief: str


def trap_verdict(si: Estimate | None) -> Trap:
    """Trap if the whole interval of SI lies below 1 (the reference's SI), no trap if above, else cannot tell."""
    if si is not None and si.below(1):
        return "trap"
    return "no trap" if si is not None and si.above(1) else "cannot tell"


def trap_answer(target: str, reference: str, points: Sequence[TrapPoint]) -> TrapAnswer:
    """In words; where the clamp of S decides the verdict, the verdict without it stands beside."""
    clamped, turned = (
        [_said(p, p.si) for p in points],
        [p for p in points if trap_verdict(p.si) != trap_verdict(p.si_raw)],
    )
    sentence, brief = "quantization trap: " + by_span(clamped, "SI"), by_span(clamped, "SI", briefly=True)
    if turned:
        raw = [_said(p, p.si_raw) for p in turned]
        sentence += "; with S not clamped at 1: " + by_span(raw, "SI")
        brief += "; S not clamped: " + by_span(raw, "SI", briefly=True)
    return TrapAnswer(target=target, reference=reference, sentence=sentence, brief=brief)


def _said(point: TrapPoint, si: Estimate | None) -> Said:
    why = point.missing if si is None else "" if si.lo is not None else "no interval"
    verdict = trap_verdict(si)
    return Said(
        concurrency=point.concurrency,
        word=_WORDS[verdict],
        estimate=si,
        decided=verdict != "cannot tell",
        why=why,
    )


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
    """Of the lengths of the answers."""


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
    """Of the target, in kgCO2e."""
    energy_refusal: str | None
    """Why joules per query are not compared, though they were measured: too few items that both sides completed."""
    energy: EnergyChange | None
    energy_hli: EnergyChange | None
    """By the bound; beside a measured one."""
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
    """Of S clamped."""
    si_geometric_raw: Estimate | None
    deficit: Estimate | None
    """1 - si."""
    improvement: Estimate | None
    """1 / si - 1."""
    trap: Trap
    """By `si`."""
    trap_raw: Trap
    """By `si_raw`."""


class SiDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a target's SI is higher or lower than another's at one concurrency, from their joint draws."""

    target: str
    other: str
    concurrency: Count
    higher: bool
    """The direction that `p` speaks for."""
    p: float
    """Two-sided, of this concurrency alone: a claim over several needs Holm's correction."""


def target_indices(
    standing: Standing,
    *,
    reference: str,
    concurrency: int,
    settings: IndexSettings,
    t_si: Estimate | None,
    refusal: str | None = None,
    repeats: Mapping[int, Standing] | None = None,
    of_items: Standing | None = None,
) -> TargetIndices:
    """Of a standing; `t_si` as reported by the trust tests, from the same items.

    `repeats`: the standing in each repeat alone, by the same sources; `of_items`: the standing whose draws have the
    noise of the items alone.
    """
    si, raw = _index(standing, si_linear, settings)
    geometric, geometric_raw = _index(standing, si_geometric, settings)
    cor = derive(lambda eta: cor_tps(eta, 1.0), standing.eta) if standing.eta else None
    gamma, energy = settings.carbon_kg_per_kwh, standing.energy
    return TargetIndices(
        target=standing.target,
        reference=reference,
        concurrency=concurrency,
        refusal=refusal,
        cor_tps=_estimate(cor),
        cor_class=cor_class(cor.estimate) if cor else None,
        t_si=t_si,
        e_si=_efficiency(standing, settings.alpha),
        sustainability=settings.sustainability,
        s_si=_estimate(standing.s_clamped),
        s_si_raw=_estimate(standing.s),
        caes_kg_per_query=(
            derive(lambda energy_j: carbon_kg(energy_j, gamma), energy.target_j).estimate if energy and gamma else None
        ),
        energy_refusal=standing.energy_refusal,
        energy=_change(energy, standing.tokens),
        energy_hli=_change(standing.hli, standing.tokens),
        weights=settings.weights,
        si=si,
        si_raw=raw,
        si_repeats=_si_repeats(si, repeats or {}, settings),
        si_item_error=_item_error(of_items, settings) if of_items is not None else None,
        si_geometric=geometric,
        si_geometric_raw=geometric_raw,
        deficit=si.falling(deficit) if si else None,
        improvement=si.falling(improvement) if si else None,
        trap=trap_verdict(si),
        trap_raw=trap_verdict(raw),
    )


def _index(
    standing: Standing, formula: Callable[..., float | Floats], settings: IndexSettings
) -> tuple[Estimate | None, Estimate | None]:
    """SI with S clamped, and not."""
    found = _sides(standing, formula, settings.weights)
    return (least(*found), found[0].estimate) if found is not None else (None, None)


def _sides(
    standing: Standing, formula: Callable[..., float | Floats], weights: tuple[float, float, float]
) -> tuple[Drawn, Drawn] | None:
    """SI with S, and with 1 in its place: with S clamped it is the smaller of the two."""
    t, e, s = standing.t, standing.e, standing.s
    if not (t and e and s):
        return None
    raw = derive(lambda *pillars: formula(*pillars, weights), t, e, s)
    return raw, derive(lambda *pillars: formula(*pillars, 1.0, weights), t, e)


def _si_repeats(si: Estimate | None, repeats: Mapping[int, Standing], settings: IndexSettings) -> dict[int, float]:
    """SI is a sum of ratios, and the mean of sums is not the sum of means: all repeats are scaled alike."""
    found = {at: own.value for at, alone in repeats.items() if (own := _index(alone, si_linear, settings)[0])}
    if si is None or si.value <= 0 or not found:
        return {}
    scale = si.value / math.exp(sum(map(math.log, found.values())) / len(found))
    return {at: own * scale for at, own in found.items()}


def _item_error(of_items: Standing, settings: IndexSettings) -> float | None:
    """Where S may be below 1 by its interval, of SI with S: that is not the smaller error of the two."""
    found = _sides(of_items, si_linear, settings.weights)
    ends = [side.estimate for side in found] if found is not None else []
    known = [(lo, hi) for end in ends if (lo := end.lo) and (hi := end.hi)]
    return log_error(*min(known)) if len(known) == 2 else None


def si_differences(
    concurrency: int, standings: Sequence[Standing], weights: tuple[float, float, float]
) -> Iterator[SiDifference]:
    """Of every unordered pair whose SI has draws."""
    known = [
        (standing.target, (raw, full))
        for standing in standings
        if (sides := _sides(standing, si_linear, weights)) is not None
        and (raw := sides[0].draws) is not None
        and (full := sides[1].draws) is not None
    ]
    for (target, ours), (other, theirs) in combinations(known, 2):
        lower, higher = _p_below(ours, theirs), _p_below(theirs, ours)
        yield SiDifference(
            target=target,
            other=other,
            concurrency=concurrency,
            higher=higher < lower,
            p=min(1.0, 2 * min(lower, higher)),
        )


def _p_below(ours: tuple[Floats, Floats], theirs: tuple[Floats, Floats]) -> float:
    """One-sided p that our SI is not below theirs. Ours is below if one of its two figures lies below both of theirs;
    two chances cost twice the p, as in `least`."""
    ways = []
    for draws in ours:
        misses = [(1 + np.count_nonzero(~(draws < other))) / (1 + max(len(draws), len(other))) for other in theirs]
        ways.append(max(misses))
    return float(min(1.0, 2 * min(ways)))


def _efficiency(standing: Standing, alpha: float) -> Efficiency:
    return Efficiency(
        value=_estimate(standing.e),
        alpha=alpha,
        eta=_estimate(standing.eta),
        rho=_estimate(standing.rho),
        memory_source=standing.memory_source,
        floor=efficiency_floor(standing.eta.value, alpha) if standing.eta else None,
    )


def _change(energy: Energy | None, tokens: Drawn | None) -> EnergyChange | None:
    if energy is None:
        return None
    ratio = derive(lambda ours, theirs: ours / theirs, energy.target_j, energy.reference_j)
    per_token = derive(lambda query, length: query / length, ratio, tokens) if tokens else None
    return EnergyChange(
        source=energy.source,
        ratio=ratio.estimate,
        increase_percent=derive(percent_increase, ratio).estimate,
        per_token_ratio=_estimate(per_token),
        tokens_ratio=_estimate(tokens),
    )


def _estimate(drawn: Drawn | None) -> Estimate | None:
    return drawn.estimate if drawn else None
