"""Standing: where a target stands against the reference at one B, as figures with joint draws.

Speed: tokens/s of all slots together and of one, which the paper does not tell apart.

CorCurve: the slowdown in tokens/s over batch size, and its classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec
import numpy as np

from loadgen.analysis.indices.formulas import (
    Drawn,
    Estimate,
    IndexSettings,
    carbon_kg,
    clamped,
    derive,
    efficiency,
    sustainability_linear,
    sustainability_log,
)
from loadgen.analysis.indices.point import ItemFigures, OperatingPoint, Said, by_span

EnergySource = Literal["measured", "hli"]
MemorySource = Literal["needed", "peak"]
Sources = tuple[EnergySource | None, MemorySource | None]
_ENERGY: tuple[tuple[EnergySource, str], ...] = (
    ("measured", "energy_per_query_j"), ("hli", "energy_hli_per_query_j"),
)  # fmt: skip
_MEMORY: tuple[tuple[MemorySource, str], ...] = (("needed", "memory_needed_bytes"), ("peak", "memory_peak_bytes"))


class Means(Protocol):
    """How repeats are averaged: `RepeatNoise`, or `RepeatsKnown` for the items' share of the noise."""

    def mean(self, values: Mapping[int, float]) -> Drawn: ...


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Joules per query of both sides, over the repeats and the items they share."""

    source: EnergySource
    target_j: Drawn
    reference_j: Drawn

    @property
    def saving(self) -> Drawn:
        """E_ref / E: above 1 the target needs less."""
        return derive(sustainability_linear, self.target_j, self.reference_j)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Ratios to the reference, above 1 where the target is better; None: not measured, or not comparable."""

    target: str
    t: Drawn | None = None
    scores: Mapping[str, float] = {}
    """Item -> share of correct answers; two targets are compared over the items of both."""
    eta: Drawn | None = None
    """Tokens/s over the reference's."""
    rho: Drawn | None = None
    """The reference's memory over the target's."""
    memory_source: MemorySource | None = None
    saving: Drawn | None = None
    """The reference's joules per query over the target's."""
    energy: Energy | None = None
    hli: Energy | None = None
    """The bound, also where energy was measured."""
    tokens: Drawn | None = None
    """Tokens per query over the reference's: neither better nor worse."""
    energy_refusal: str | None = None
    """Why joules per query are not compared, though they were measured."""
    e: Drawn | None = None
    """E_SI."""
    s: Drawn | None = None
    """S_SI, not clamped."""

    @property
    def sources(self) -> Sources:
        """Of energy and of memory; None: not compared."""
        return self.energy.source if self.energy is not None else None, self.memory_source

    @property
    def s_clamped(self) -> Drawn | None:
        return derive(clamped, self.s) if self.s is not None else None


def reference_standing(reference: str, scores: Mapping[str, float] | None = None) -> Standing:
    """The reference beside itself: 1 in everything, without any doubt."""
    one = Drawn(value=1.0, draws=np.ones(1))
    ones = Standing(target=reference, t=one, eta=one, rho=one, saving=one, tokens=one, e=one, s=one)
    return msgspec.structs.replace(ones, scores=scores or {})


def stand(
    target: OperatingPoint,
    reference: OperatingPoint,
    *,
    items: ItemFigures,
    noise: Means,
    settings: IndexSettings,
    sources: Sources | None = None,
) -> Standing:
    """Of two points at equal B (`batch_refusal`). Energy and memory are compared by `sources`, by default the best that
    both sides have: measured before HLI, memory needed before peak. Joules per query are joules per token times the
    mean length of the items that both completed."""

    def joules(figure: str) -> tuple[Drawn, Drawn] | None:
        if items.tokens is None:
            return None if items.refusal else pair(figure)
        sides = pair(figure, OperatingPoint.joules_per_token)
        if sides is None:
            return None
        ours, theirs = (derive(lambda j, length: j * length, *both) for both in zip(sides, items.tokens, strict=True))
        return ours, theirs

    def pair(
        figure: str, read: Callable[[OperatingPoint, str], dict[int, float]] = OperatingPoint.by_repeat
    ) -> tuple[Drawn, Drawn] | None:
        ours, theirs = read(target, figure), read(reference, figure)
        shared = sorted(ours.keys() & theirs.keys())
        if not shared:
            return None
        return noise.mean({at: ours[at] for at in shared}), noise.mean({at: theirs[at] for at in shared})

    def ratio(figure: str) -> Drawn | None:
        sides = pair(figure)
        return derive(lambda ours, theirs: ours / theirs, *sides) if sides else None

    energies = {
        source: Energy(source=source, target_j=sides[0], reference_j=sides[1])
        for source, figure in _ENERGY
        if (sides := joules(figure))
    }
    memories = {source: found for source, figure in _MEMORY if (found := ratio(figure))}
    if sources is None:
        sources = next(iter(energies), None), next(iter(memories), None)
    energy = energies.get(sources[0]) if sources[0] is not None else None
    memory = memories.get(sources[1]) if sources[1] is not None else None
    measured = any(target.by_repeat(figure) and reference.by_repeat(figure) for _, figure in _ENERGY)
    eta = ratio("tokens_per_s")
    rho = derive(lambda needed: 1 / needed, memory) if memory else None
    return Standing(
        target=target.target,
        t=items.t,
        scores=target.scores,
        eta=eta,
        rho=rho,
        memory_source=sources[1],
        saving=energy.saving if energy else None,
        e=_efficiency(eta, rho, settings.alpha),
        s=_sustainability(energy, settings) if energy else None,
        energy=energy,
        hli=energies.get("hli"),
        tokens=_tokens(items) or (None if items.refusal else ratio("tokens_per_query")),
        energy_refusal=items.refusal if measured else None,
    )


def _tokens(items: ItemFigures) -> Drawn | None:
    return derive(lambda ours, theirs: ours / theirs, *items.tokens) if items.tokens else None


def _efficiency(eta: Drawn | None, rho: Drawn | None, alpha: float) -> Drawn | None:
    if alpha in (0, 1):
        return eta if alpha == 1 else rho
    return derive(lambda speed, memory: efficiency(speed, memory, alpha), eta, rho) if eta and rho else None


def _sustainability(energy: Energy, settings: IndexSettings) -> Drawn:
    if settings.sustainability == "linear":
        return energy.saving
    sides = energy.target_j, energy.reference_j
    gamma = settings.carbon_kg_per_kwh
    if settings.sustainability == "log_kgco2e" and gamma is not None:
        sides = derive(lambda j: carbon_kg(j, gamma), sides[0]), derive(lambda j: carbon_kg(j, gamma), sides[1])
    return derive(sustainability_log, *sides)


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """Of one target at one concurrency: geometric means over its repeats; None: not measured."""

    target: str
    concurrency: int
    running_mean: float | None
    tokens_per_s: float | None
    """Aggregate."""
    tokens_per_s_per_sequence: float | None
    """Aggregate over the running batch: equal to it at B = 1 only."""
    step_s: float | None
    """Running batch over the aggregate: seconds from a sequence's token to its next."""


def speed(point: OperatingPoint) -> Speed:
    """Of a point; the running batch must be known for what is told per sequence."""
    rates = point.by_repeat("tokens_per_s").values()
    aggregate = math.exp(sum(map(math.log, rates)) / len(rates)) if rates else None
    running = point.running_mean
    per_sequence = aggregate / running if aggregate and running else None
    return Speed(
        target=point.target,
        concurrency=point.concurrency,
        running_mean=running,
        tokens_per_s=aggregate,
        tokens_per_s_per_sequence=per_sequence,
        step_s=1 / per_sequence if per_sequence else None,
    )


CorClass = Literal["dissolved", "trap", "casting-dominant", "unresolved"]


class CorPoint(msgspec.Struct, frozen=True, kw_only=True):
    """COR at one asked concurrency; `running_mean` is the measured batch, the curve's x."""

    concurrency: int
    running_mean: float | None
    cor_tps: Estimate
    cor_class: CorClass


class CorCurve(msgspec.Struct, frozen=True, kw_only=True):
    """COR of one target over B, in the order of B."""

    target: str
    reference: str
    points: tuple[CorPoint, ...]
    sentence: str
    brief: str


def cor_class(cor: Estimate) -> CorClass:
    """By the whole interval: dissolved < 0 (faster), trap 0 to 1, casting-dominant > 1.

    Unresolved where it reaches a border, or where there is no interval.
    """
    if cor.below(0):
        return "dissolved"
    if cor.above(1):
        return "casting-dominant"
    return "trap" if cor.above(0) and cor.below(1) else "unresolved"


def cor_curve(target: str, reference: str, points: Sequence[CorPoint]) -> CorCurve:
    """The curve of these points. Raises ValueError without any."""
    if not points:
        raise ValueError("a curve needs a point")
    ordered = tuple(sorted(points, key=lambda point: point.concurrency))
    said = [
        Said(
            concurrency=point.concurrency,
            word=point.cor_class,
            estimate=point.cor_tps,
            decided=point.cor_class != "unresolved",
        )
        for point in ordered
    ]
    return CorCurve(
        target=target,
        reference=reference,
        points=ordered,
        sentence=by_span(said, "COR"),
        brief=by_span(said, "COR", briefly=True),
    )
