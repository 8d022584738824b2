"""ParetoPoint: what a target at one B gives a single user and a GPU, and whether another point gives both more.

The speed of a user is 1 / the median TPOT, as in InferenceX ("interactivity") and AIPerf (output token throughput per
user); `vllm bench sweep plot_pareto` takes tokens/s / B, which also counts the wait for the first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.cells import CellSummary
from loadgen.analysis.estimate import Estimate, rate_interval

Status = Literal["frontier", "undecided", "worse"]
"""`frontier`: by the means no other point is at least as good in both and better in one. `worse`: another point
is better in both, and the intervals do not overlap. `undecided`: worse by the means alone."""


class ParetoRank(msgspec.Struct, frozen=True, kw_only=True):
    """A point among all others by two figures."""

    status: Status
    better: str | None = None
    """A point that is at least as good in both, as "awq at B = 16"."""


class ParetoPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A target at one B of a closed loop: means over the repeats in which each figure is valid."""

    target: str
    concurrency: int
    tokens_per_s_per_user: Estimate
    """1 / the median TPOT."""
    tokens_per_s_per_gpu: Estimate
    """Output tokens; per server where `gpus` is None."""
    energy_per_token_j: Estimate | None = None
    gpus: int | None = None
    """That share the model; None: not known of any target."""
    throughput: ParetoRank
    """By the speed of a user and tokens/s per GPU."""
    energy: ParetoRank | None = None
    """By the speed of a user and joules per output token."""


def pareto_points(cells: Sequence[CellSummary]) -> tuple[ParetoPoint, ...]:
    """By target and B, where both speeds are valid; `cells`: of a closed loop, else none. Where the GPUs of some
    targets are known and those of others are not, the others are left out."""
    groups: dict[tuple[str, int], list[CellSummary]] = {}
    for cell in cells:
        if cell.traffic.arrival is None:
            groups.setdefault((cell.target, cell.concurrency), []).append(cell)
    counted = any(cell.gpus for cell in cells)
    found: dict[tuple[str, int], tuple[Estimate, Estimate, Estimate | None, int | None]] = {}
    for key, repeats in groups.items():
        waits_ms = [wait for cell in repeats if (wait := cell.figure("tpot_ms_p50"))]
        per_user = _mean([1000 / wait for wait in waits_ms])
        per_gpu = _mean(_known(repeats, "tokens_per_s_per_gpu" if counted else "tokens_per_s"))
        if per_user is not None and per_gpu is not None:
            gpus = max((cell.gpus for cell in repeats if cell.gpus), default=None)
            found[key] = per_user, per_gpu, _mean(_known(repeats, "energy_per_token_j")), gpus
    throughput = ranks({key: (user, gpu) for key, (user, gpu, _, _) in found.items()})
    energy = ranks({key: (user, joules.falling(_less)) for key, (user, _, joules, _) in found.items() if joules})
    return tuple(
        ParetoPoint(
            target=key[0], concurrency=key[1], tokens_per_s_per_user=user, tokens_per_s_per_gpu=gpu,
            energy_per_token_j=joules, gpus=gpus, throughput=throughput[key], energy=energy.get(key),
        )
        for key, (user, gpu, joules, gpus) in found.items()
    )  # fmt: skip


def ranks(points: dict[tuple[str, int], tuple[Estimate, Estimate]]) -> dict[tuple[str, int], ParetoRank]:
    """Each point among the others by two figures of which more is better. Equal points do not beat each other."""
    found = {}
    for key, mine in points.items():
        better = {other: its for other, its in points.items() if _beats(its, mine)}
        proven = [other for other, its in better.items() if all(_above(a, b) for a, b in zip(its, mine, strict=True))]
        if not better:
            found[key] = ParetoRank(status="frontier")
            continue
        first = min(proven or better, key=lambda other: -points[other][1].value)
        status: Status = "worse" if proven else "undecided"
        found[key] = ParetoRank(status=status, better=f"{first[0]} at B = {first[1]}")
    return found


def _beats(ours: tuple[Estimate, Estimate], theirs: tuple[Estimate, Estimate]) -> bool:
    pairs = [(one.value, other.value) for one, other in zip(ours, theirs, strict=True)]
    return all(one >= other for one, other in pairs) and any(one > other for one, other in pairs)


def _above(one: Estimate, other: Estimate) -> bool:
    """Proven: the intervals do not overlap."""
    return one.lo is not None and other.hi is not None and one.lo > other.hi


def _less(value: float) -> float:
    return -value


def _known(cells: Sequence[CellSummary], figure: str) -> list[float]:
    return [value for cell in cells if (value := cell.figure(figure))]


def _mean(rates: Sequence[float]) -> Estimate | None:
    """With Student's interval over the repeats; None without any."""
    if not rates:
        return None
    lo, hi = rate_interval(rates)
    return Estimate(value=float(np.mean(rates)), lo=lo, hi=hi)
