"""CorCurve: the slowdown in tokens/s over batch size, and its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from loadgen.analysis.indices.drawn import Estimate
from loadgen.analysis.indices.spans import Said, by_span

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
    return CorCurve(target=target, reference=reference, points=ordered, sentence=by_span(said, "COR"))
