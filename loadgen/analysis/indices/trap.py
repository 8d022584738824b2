"""The trap verdict: is a precision worth less than the reference (SI < 1)?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from loadgen.analysis.indices.drawn import Estimate
from loadgen.analysis.indices.spans import Said, by_span

Trap = Literal["trap", "no trap", "cannot tell"]
_WORDS: dict[Trap, str] = {"trap": "yes", "no trap": "no", "cannot tell": "cannot tell"}


class TrapPoint(msgspec.Struct, frozen=True, kw_only=True):
    """SI at one concurrency, with S clamped and not; None where a pillar is missing."""

    concurrency: int
    si: Estimate | None
    si_raw: Estimate | None
    missing: str = ""
    """Why there is no SI."""


class TrapAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The verdicts of one target over its batch sizes, in words."""

    target: str
    reference: str
    sentence: str


def trap_verdict(si: Estimate | None) -> Trap:
    """Trap if the whole interval of SI lies below 1 (the reference's SI), no trap if above, else cannot tell."""
    if si is not None and si.below(1):
        return "trap"
    return "no trap" if si is not None and si.above(1) else "cannot tell"


def trap_answer(target: str, reference: str, points: Sequence[TrapPoint]) -> TrapAnswer:
    """In words; where the clamp of S decides the verdict, the verdict without it stands beside."""
    sentence = "quantization trap: " + by_span([_said(p, p.si) for p in points], "SI")
    turned = [p for p in points if trap_verdict(p.si) != trap_verdict(p.si_raw)]
    if turned:
        sentence += "; with S not clamped at 1: " + by_span([_said(p, p.si_raw) for p in turned], "SI")
    return TrapAnswer(target=target, reference=reference, sentence=sentence)


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
