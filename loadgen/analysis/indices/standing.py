"""Standing: where a target stands against the reference at one B, as figures with joint draws."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.indices.drawn import Drawn, RepeatNoise, derive
from loadgen.analysis.indices.formulas import (
    carbon_kg,
    clamped,
    efficiency,
    sustainability_linear,
    sustainability_log,
)
from loadgen.analysis.indices.point import OperatingPoint
from loadgen.analysis.indices.settings import IndexSettings

EnergySource = Literal["measured", "hli"]
MemorySource = Literal["needed", "peak"]
_ENERGY: tuple[tuple[EnergySource, str], ...] = (
    ("measured", "energy_per_query_j"), ("hli", "energy_hli_per_query_j"),
)  # fmt: skip
_MEMORY: tuple[tuple[MemorySource, str], ...] = (("needed", "memory_needed_bytes"), ("peak", "memory_peak_bytes"))


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Joules per query of both sides, over the repeats they share."""

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
    e: Drawn | None = None
    """E_SI."""
    s: Drawn | None = None
    """S_SI, not clamped."""

    @property
    def s_clamped(self) -> Drawn | None:
        return derive(clamped, self.s) if self.s is not None else None


def reference_standing(reference: str) -> Standing:
    """The reference beside itself: 1 in everything, without any doubt."""
    one = Drawn(value=1.0, draws=np.ones(1))
    return Standing(target=reference, t=one, eta=one, rho=one, saving=one, tokens=one, e=one, s=one)


def stand(
    target: OperatingPoint,
    reference: OperatingPoint,
    *,
    t: Drawn | None,
    noise: RepeatNoise,
    settings: IndexSettings,
) -> Standing:
    """Of two points at equal B (`batch_refusal`). `t`: the accuracy ratio; energy and memory are compared by the best
    source that both sides have: measured before HLI, memory needed before peak."""

    def pair(figure: str) -> tuple[Drawn, Drawn] | None:
        ours, theirs = target.by_repeat(figure), reference.by_repeat(figure)
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
        if (sides := pair(figure))
    }
    energy = next(iter(energies.values()), None)
    eta = ratio("tokens_per_s")
    memories = ((source, found) for source, figure in _MEMORY if (found := ratio(figure)))
    memory_source, memory = next(memories, (None, None))
    rho = derive(lambda needed: 1 / needed, memory) if memory else None
    return Standing(
        target=target.target,
        t=t,
        eta=eta,
        rho=rho,
        memory_source=memory_source,
        saving=energy.saving if energy else None,
        e=_efficiency(eta, rho, settings.alpha),
        s=_sustainability(energy, settings) if energy else None,
        energy=energy,
        hli=energies.get("hli"),
        tokens=ratio("tokens_per_query"),
    )


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
