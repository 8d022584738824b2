"""OperatingPoint: what was measured of a target at one concurrency, repeat by repeat and item by item.

ItemFigures: accuracy and answer lengths of targets against one reference, over the items that both completed.

Ratios: the figures of a target over the reference's at one concurrency, with joint draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.indices.formulas import (
    IndexSettings,
    RepeatNoise,
    RepeatsKnown,
    Resampled,
    carbon_kg,
    derive,
    efficiency,
    sustainability_linear,
    sustainability_log,
)
from loadgen.analysis.trust.answers import PairedItems, PairedLengths, influence, pair_lengths, paired
from loadgen.analysis.trust.significance import TrustRatio, ratio_draws, trust_ratio
from loadgen.errors import UsageError

UNEQUAL_BATCH = 0.03
"""Running batches further apart than this share are not the same B."""


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """One valid cell; None: not measured. Raises UsageError for a figure that is not a number above 0."""

    repeat: int
    running_mean: float | None = None
    """Measured running batch."""
    tokens_per_s: float | None = None
    """Aggregate over all slots."""
    energy_per_query_j: float | None = None
    """Measured: counter or integral of the power."""
    energy_hli_per_query_j: float | None = None
    """Board power x time: a bound."""
    tokens_per_query: float | None = None
    memory_needed_bytes: float | None = None
    """Weights and the KV cache in use at its peak."""
    memory_peak_bytes: float | None = None
    """NVML's peak, a server's reservation included."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__[1:]:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} of repeat {self.repeat} is {value}, give a number above 0 or None")


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Repeats of several targets with the same number ran next to each other: they are compared pairwise."""

    target: str
    concurrency: int
    repeats: tuple[Repeat, ...] = ()
    scores: Mapping[str, float] = {}
    """Item -> share of correct answers (0 to 1), in the order asked; empty: not graded, or not comparable."""
    lengths: Mapping[str, float] = {}
    """Item -> mean output tokens of its answers. Joules per query are then compared over the items of both sides;
    empty: not known, each side's `energy_per_query_j` is taken unchanged."""

    def by_repeat(self, figure: str) -> dict[int, float]:
        """The repeats in which `figure`, a field of Repeat, was measured."""
        return {repeat.repeat: value for repeat in self.repeats if (value := getattr(repeat, figure)) is not None}

    def alone(self, repeat: int) -> OperatingPoint:
        """The same point as if this repeat were the only one."""
        return msgspec.structs.replace(self, repeats=tuple(r for r in self.repeats if r.repeat == repeat))

    def joules_per_token(self, figure: str) -> dict[int, float]:
        """`figure`, joules per query, over the mean length of the same cell's answers; by repeat."""
        tokens = self.by_repeat("tokens_per_query")
        return {at: joules / tokens[at] for at, joules in self.by_repeat(figure).items() if at in tokens}

    @property
    def running_mean(self) -> float | None:
        """Mean over repeats; None where no repeat has it."""
        known = self.by_repeat("running_mean")
        return sum(known.values()) / len(known) if known else None


def batch_refusal(target: OperatingPoint, reference: OperatingPoint) -> str | None:
    """Why speed and energy of the two cannot be compared (paper: equal B), in one sentence; None if they can."""
    if target.concurrency != reference.concurrency:
        return (
            f"not compared: {target.target} was measured at B = {target.concurrency}, {reference.target} at "
            f"B = {reference.concurrency}; measure both at the same B"
        )
    ours, theirs = target.running_mean, reference.running_mean
    if ours is None or theirs is None or abs(ours / theirs - 1) <= UNEQUAL_BATCH:
        return None
    return (
        f"not compared: {ours:.4g} sequences of {target.target} ran at a time, {theirs:.4g} of {reference.target}, "
        f"more than {UNEQUAL_BATCH:.0%} apart at B = {target.concurrency}; find out why the batch was not full"
    )


class ItemFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one target, with joint draws: items vary together for all figures of all targets."""

    t_si: TrustRatio | None = None
    t: Resampled | None = None
    """T_SI (Eq. 2); None without shared items, or where the reference has none of them right."""
    tokens: tuple[Resampled, Resampled] | None = None
    """Mean output tokens per answer of target and reference; None where no length is known, or where `refusal`."""
    refusal: str | None = None
    """Why lengths, and so joules per query, cannot be compared."""


def item_figures(
    targets: Sequence[OperatingPoint], reference: OperatingPoint, *, resamples: int, seed: int
) -> dict[str, ItemFigures]:
    """By target. Draws are those of a sum over items, each with its own normal deviate that all figures share
    (delta method on logarithms), so that a figure keeps its own interval and its correlation with the others."""
    pairs = {target.target: paired(target.scores, reference.scores) for target in targets}
    lengths = {target.target: pair_lengths(target.lengths, reference.lengths) for target in targets}
    columns: dict[tuple[str, str], tuple[tuple[str, ...], Floats]] = {}
    for name, items in pairs.items():
        if items is not None:
            columns[name, "t"] = items.item_ids, influence(items.target) - influence(items.reference)
    for name, found in lengths.items():
        if found is not None and found.refusal is None:
            columns[name, "target"] = found.item_ids, influence(found.target)
            columns[name, "reference"] = found.item_ids, influence(found.reference)
    deviates = _deviates(columns, resamples=resamples, seed=seed)
    return {
        name: _figures(items, lengths[name], {what: found for (of, what), found in deviates.items() if of == name})
        for name, items in pairs.items()
    }


def _figures(
    items: PairedItems | None, lengths: PairedLengths | None, deviates: Mapping[str, tuple[float, Floats]]
) -> ItemFigures:
    ratio, t = trust_ratio(items) if items is not None else None, None
    if ratio is not None and ratio.value is not None:
        t = Resampled(value=ratio.value, draws=ratio_draws(ratio, deviates["t"][1]))
    if lengths is None or lengths.refusal is not None:
        return ItemFigures(t_si=ratio, t=t, refusal=lengths.refusal if lengths is not None else None)

    def mean(side: str, tokens: Floats) -> Resampled:
        error, normal = deviates[side]
        value = float(tokens.mean())
        return Resampled(value=value, draws=value * np.exp(error * normal))

    return ItemFigures(t_si=ratio, t=t, tokens=(mean("target", lengths.target), mean("reference", lengths.reference)))


def _deviates(
    columns: Mapping[tuple[str, str], tuple[tuple[str, ...], Floats]], *, resamples: int, seed: int
) -> dict[tuple[str, str], tuple[float, Floats]]:
    """Standard error of each column's sum, and its draws in units of it: standard normal, correlated as the columns
    are. A column without variance gets independent ones."""
    places: dict[str, int] = {}
    for items, _ in columns.values():
        for item in items:
            places.setdefault(item, len(places))
    table = np.zeros((len(columns), len(places)))
    for row, (items, values) in zip(table, columns.values(), strict=True):
        row[[places[item] for item in items]] = values
    errors = np.sqrt((table**2).sum(axis=1))
    scaled = table / np.where(errors > 0, errors, 1.0)[:, None]
    correlation = np.einsum("ik,jk->ij", scaled, scaled)
    correlation[errors == 0, errors == 0] = 1.0
    values, vectors = np.linalg.eigh(correlation)
    normal = np.random.default_rng([seed, 3]).standard_normal((resamples, len(columns)))
    drawn = np.einsum("dk,ik->di", normal * np.sqrt(np.maximum(values, 0.0)), vectors)
    return {key: (float(errors[place]), drawn[:, place]) for place, key in enumerate(columns)}


EnergySource = Literal["measured", "hli"]
MemorySource = Literal["needed", "peak"]
Formula = Callable[..., float | Floats]
Sources = tuple[EnergySource | None, MemorySource | None]
_ENERGY: dict[EnergySource, str] = {"measured": "energy_per_query_j", "hli": "energy_hli_per_query_j"}
_MEMORY: dict[MemorySource, str] = {"needed": "memory_needed_bytes", "peak": "memory_peak_bytes"}


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Joules per query of both sides, over the repeats and the items they share."""

    source: EnergySource
    target_j: Resampled
    reference_j: Resampled

    @property
    def saving(self) -> Resampled:
        """E_ref / E: above 1 the target needs less."""
        return derive(sustainability_linear, self.target_j, self.reference_j)


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """Ratios to the reference, above 1 where the target is better; None: not measured, or not comparable."""

    target: str
    t: Resampled | None = None
    scores: Mapping[str, float] = {}
    """Item -> share of correct answers; two targets are compared over the items of both."""
    eta: Resampled | None = None
    """Tokens/s over the reference's."""
    rho: Resampled | None = None
    """The reference's memory over the target's."""
    memory_source: MemorySource | None = None
    saving: Resampled | None = None
    """The reference's joules per query over the target's."""
    energy: Energy | None = None
    hli: Energy | None = None
    """The bound, also where energy was measured."""
    tokens: Resampled | None = None
    """Tokens per query over the reference's: neither better nor worse."""
    energy_refusal: str | None = None
    """Why joules per query are not compared, though they were measured."""
    e: Resampled | None = None
    """E_SI."""
    s: Resampled | None = None
    """S_SI, not clamped."""

    @property
    def sources(self) -> Sources:
        """Where energy and memory come from; None: not compared."""
        return self.energy.source if self.energy is not None else None, self.memory_source

    def index(self, formula: Formula, weights: tuple[float, float, float]) -> tuple[Resampled, Resampled] | None:
        """SI by `formula` with S, and with 1 in its place: with S clamped it is the smaller of the two. None where a
        pillar is missing."""
        t, e, s = self.t, self.e, self.s
        if not (t and e and s):
            return None
        raw = derive(lambda *pillars: formula(*pillars, weights), t, e, s)
        return raw, derive(lambda *pillars: formula(*pillars, 1.0, weights), t, e)


def reference_ratios(reference: str, scores: Mapping[str, float] | None = None) -> Ratios:
    """The reference compared with itself: 1 in everything, without any doubt."""
    one = Resampled(value=1.0, draws=np.ones(1))
    return Ratios(target=reference, scores=scores or {}, t=one, eta=one, rho=one, saving=one, tokens=one, e=one, s=one)


def ratios_of(
    target: OperatingPoint,
    reference: OperatingPoint,
    *,
    items: ItemFigures,
    noise: RepeatNoise | RepeatsKnown,
    settings: IndexSettings,
    sources: Sources | None = None,
) -> Ratios:
    """The ratios of two points at equal B (`batch_refusal`). Energy and memory are compared by `sources`, by default
    the best that both sides have: measured before HLI, memory needed before peak. Joules per query are joules per token
    times the mean length of the items that both completed."""

    def pair(
        figure: str, read: Callable[[OperatingPoint, str], dict[int, float]] = OperatingPoint.by_repeat
    ) -> tuple[Resampled, Resampled] | None:
        ours, theirs = read(target, figure), read(reference, figure)
        shared = sorted(ours.keys() & theirs.keys())
        if not shared:
            return None
        return noise.mean({at: ours[at] for at in shared}), noise.mean({at: theirs[at] for at in shared})

    def joules(figure: str) -> tuple[Resampled, Resampled] | None:
        if items.tokens is None:
            return None if items.refusal else pair(figure)
        sides = pair(figure, OperatingPoint.joules_per_token)
        if sides is None:
            return None
        ours, theirs = (derive(lambda j, length: j * length, *both) for both in zip(sides, items.tokens, strict=True))
        return ours, theirs

    def ratio(sides: tuple[Resampled, Resampled] | None) -> Resampled | None:
        return derive(lambda ours, theirs: ours / theirs, *sides) if sides else None

    energies = {
        source: Energy(source=source, target_j=sides[0], reference_j=sides[1])
        for source, figure in _ENERGY.items()
        if (sides := joules(figure))
    }
    memories = {source: found for source, figure in _MEMORY.items() if (found := ratio(pair(figure)))}
    if sources is None:
        sources = next(iter(energies), None), next(iter(memories), None)
    energy = energies.get(sources[0]) if sources[0] is not None else None
    memory = memories.get(sources[1]) if sources[1] is not None else None
    measured = any(target.by_repeat(figure) and reference.by_repeat(figure) for figure in _ENERGY.values())
    eta = ratio(pair("tokens_per_s"))
    rho = derive(lambda needed: 1 / needed, memory) if memory else None
    return Ratios(
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
        tokens=ratio(items.tokens) or (None if items.refusal else ratio(pair("tokens_per_query"))),
        energy_refusal=items.refusal if measured else None,
    )


def _efficiency(eta: Resampled | None, rho: Resampled | None, alpha: float) -> Resampled | None:
    if alpha in (0, 1):
        return eta if alpha else rho
    return derive(lambda speed, memory: efficiency(speed, memory, alpha), eta, rho) if eta and rho else None


def _sustainability(energy: Energy, settings: IndexSettings) -> Resampled:
    if settings.sustainability == "linear":
        return energy.saving
    sides = energy.target_j, energy.reference_j
    gamma = settings.carbon_kg_per_kwh
    if settings.sustainability == "log_kgco2e" and gamma is not None:
        sides = derive(lambda j: carbon_kg(j, gamma), sides[0]), derive(lambda j: carbon_kg(j, gamma), sides[1])
    return derive(sustainability_log, *sides)


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens/s of all slots together and of one, which the paper does not tell apart; None: not measured.

    Of one target at one concurrency: geometric means over its repeats."""

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
    """The speed of a point; figures per sequence need its running batch."""
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
