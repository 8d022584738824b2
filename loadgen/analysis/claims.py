"""The claims of "The Quantization Trap" (arXiv 2602.13595), each held against the run's data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Literal

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.answer import Answer
from loadgen.analysis.cells import CellSummary
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.indices.drawn import Estimate
from loadgen.analysis.trust.holm import holm
from loadgen.analysis.trust.study import TrustStudy
from loadgen.serving.recipe import load_recipes

ALPHA = 0.05
Verdict = Literal["supported", "contradicted", "cannot tell"]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One claim about one or two targets."""

    claim: str
    source: str
    """Where in the paper."""
    targets: tuple[str, ...]
    verdict: Verdict
    evidence: str


def claims_of(
    cells: Sequence[CellSummary], answer: Answer, trust: TrustStudy, *, reference: str
) -> tuple[Claim, ...]:
    """What a run can say of each claim; one that needs what was not measured is `cannot tell`, or left out whole."""
    precisions = {cell.target: cell.precision for cell in cells}
    recipes = load_recipes()
    bits = {target: recipes[name].bits for target, name in precisions.items() if name in recipes}
    backends = {target: recipes[name].backend for target, name in precisions.items() if name in recipes}
    fewer = [target for target in bits if target != reference and bits[target] < bits.get(reference, 0)]
    return (
        *(_energy_trap(found) for found in _by(answer, "energy_per_query_j") if found.target in fewer),
        *_si_falls_with_bits(answer, fewer, bits, reference),
        *_energy_falls_with_batch(cells),
        *_accuracy_is_the_same_at_every_batch(trust),
        *_loss_grows_with_depth(trust),
        *_backend_decides(answer, fewer, bits, backends),
    )


def _by(answer: Answer, metric: str) -> list[Crossover]:
    return [found for found in answer.crossovers if found.metric == metric and found.refusal is None]


def _energy_trap(found: Crossover) -> Claim:
    """Theorem 4.3 by its words (its algebra says the reverse): fewer bits cost more energy below some B*."""
    batches = [point.concurrency for point in found.points]
    verdict: Verdict = "cannot tell"
    if found.status == "crosses":
        first = found.crossings[0]
        verdict = "supported" if first.direction == "wins_above" else "contradicted"
        side = "loses below and wins above" if first.direction == "wins_above" else "wins below and loses above"
        evidence = f"{found.target} {side} B* = {first.b:.3g}"
    elif found.status == "better" and batches[0] == 1:
        verdict, evidence = "contradicted", f"{found.target} needs less energy at every B measured, from B = 1 on"
    elif found.status == "worse":
        evidence = f"{found.target} needs more energy at every B measured; a B* may lie above {batches[-1]}"
    else:
        evidence = "no crossing is established, and not every B is decided"
    return Claim(
        claim="below B* fewer bits cost more energy per query, above it less",
        source="Theorem 4.3",
        targets=(found.target,),
        verdict=verdict,
        evidence=evidence,
    )


def _si_falls_with_bits(
    answer: Answer, fewer: Sequence[str], bits: Mapping[str, int], reference: str
) -> Iterator[Claim]:
    """The SI difference of each pair of neighbours in bits, and of each target to the reference."""
    si: dict[tuple[str, int], Estimate] = {}
    batches: dict[int, None] = {}
    for entry in answer.indices.indices:
        if entry.si is not None:
            si[entry.target, entry.concurrency] = entry.si
            si[reference, entry.concurrency] = Estimate(value=1.0, lo=1.0, hi=1.0)
            batches[entry.concurrency] = None
    pairs = [(reference, target) for target in fewer]
    levels = sorted({bits[target] for target in fewer}, reverse=True)
    pairs += [
        (more, less)
        for upper, lower in pairwise(levels)
        for more in fewer
        for less in fewer
        if bits[more] == upper and bits[less] == lower
    ]
    for more, less in pairs:
        falls, rises = [], []
        for b in batches:
            high, low = si.get((more, b)), si.get((less, b))
            if high is None or low is None or None in (high.lo, high.hi, low.lo, low.hi):
                continue
            assert high.lo is not None and high.hi is not None and low.lo is not None and low.hi is not None
            falls += [b] if low.hi < high.lo else []
            rises += [b] if low.lo > high.hi else []
        if not batches:
            continue
        verdict: Verdict = "contradicted" if rises else "supported" if falls else "cannot tell"
        parts = [f"lower SI at B = {_list(falls)}"] if falls else []
        parts += [f"higher SI at B = {_list(rises)}"] if rises else []
        yield Claim(
            claim=f"from {bits[more]} to {bits[less]} bits SI falls",
            source="Proposition 3.2, Theorem 4.4",
            targets=(more, less),
            verdict=verdict,
            evidence=f"{less} against {more}: {', '.join(parts) or 'intervals overlap at every B'}",
        )


def _energy_falls_with_batch(cells: Sequence[CellSummary]) -> Iterator[Claim]:
    """Welch's test on the logarithms of neighbouring batches' joules per query, Holm over the steps."""
    for target in dict.fromkeys(cell.target for cell in cells):
        by_b: dict[int, list[float]] = {}
        for cell in cells:
            joules = cell.figure("energy_per_query_j")
            if cell.target == target and joules:
                by_b.setdefault(cell.concurrency, []).append(float(np.log(joules)))
        steps = [(a, b) for a, b in pairwise(sorted(by_b)) if len(by_b[a]) > 1 and len(by_b[b]) > 1]
        if not steps:
            continue
        tests = [welch(by_b[b], by_b[a]) for a, b in steps]
        p_values = holm([p for _, p in tests])
        proven = [(step, t) for step, (t, _), p in zip(steps, tests, p_values, strict=True) if p <= ALPHA]
        rises = [step for step, t in proven if t > 0]
        verdict: Verdict = "contradicted" if rises else "supported" if len(proven) == len(steps) else "cannot tell"
        shown = f"{len(proven) - len(rises)} of {len(steps)} steps from B = {steps[0][0]} to {steps[-1][1]} fall"
        rise = f"; it rises from B = {', '.join(f'{a} to {b}' for a, b in rises)}" if rises else ""
        yield Claim(
            claim="energy per query falls with the batch",
            source="Theorem 4.5 (1)",
            targets=(target,),
            verdict=verdict,
            evidence=f"{shown} by proof{rise}",
        )


def welch(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Welch's t of the difference of two means, ours less theirs, and its two-sided p; p 1 where neither varies and
    they are the same. `scipy.stats` would take a second to import."""
    squares = [float(np.var(side, ddof=1)) / len(side) for side in (ours, theirs)]
    difference, square = float(np.mean(ours) - np.mean(theirs)), sum(squares)
    if square == 0:
        return (float(np.copysign(np.inf, difference)), 0.0) if difference else (0.0, 1.0)
    t = difference / float(np.sqrt(square))
    degrees = square**2 / sum(s**2 / (len(side) - 1) for s, side in zip(squares, (ours, theirs), strict=True))
    return t, float(2 * special.stdtr(degrees, -abs(t)))


def _accuracy_is_the_same_at_every_batch(trust: TrustStudy) -> Iterator[Claim]:
    verdicts: dict[str, Verdict] = {
        "equivalent": "supported", "different": "contradicted", "inconclusive": "cannot tell",
    }  # fmt: skip
    for test in trust.trust_invariance:
        seen = test.invariance
        yield Claim(
            claim="accuracy does not depend on the batch",
            source="Theorem 4.5 (2)",
            targets=(test.target,),
            verdict=verdicts[seen.verdict],
            evidence=(
                f"{seen.items} items at every B: accuracies within {100 * seen.accuracy_range:.1f} pp of each other, "
                f"Cochran's Q p = {seen.p:.3f}, equivalence margin {100 * seen.margin:g} pp"
            ),
        )


def _loss_grows_with_depth(trust: TrustStudy) -> Iterator[Claim]:
    """Figure 7 (v2), by the interaction test on the relative loss."""
    for test in trust.depth:
        trend = test.curve.relative
        if test.measure != "steps" or trend is None:
            continue
        proven = trend.p <= ALPHA
        verdict: Verdict = "cannot tell" if not proven else "supported" if trend.z < 0 else "contradicted"
        yield Claim(
            claim="the relative loss grows with the number of reasoning steps",
            source="Figure 7 of v2",
            targets=(test.target,),
            verdict=verdict,
            evidence=f"precision × depth interaction: z = {trend.z:+.2f}, p = {trend.p:.3f}",
        )


def _backend_decides(
    answer: Answer, fewer: Sequence[str], bits: Mapping[str, int], backends: Mapping[str, str]
) -> Iterator[Claim]:
    """Section 4.5.1: equal bits, opposite verdicts on speed."""
    speeds = {found.target: found for found in _by(answer, "tokens_per_s")}
    for one, other in combinations([target for target in fewer if target in speeds], 2):
        if bits[one] != bits[other] or backends[one] == backends[other]:
            continue
        ours, theirs = _proven(speeds[one]), _proven(speeds[other])
        shared = [b for b in ours if b in theirs]
        opposite = [b for b in shared if ours[b] != theirs[b]]
        verdict: Verdict = "supported" if opposite else "contradicted" if shared else "cannot tell"
        where = f"one faster, the other slower than the reference at B = {_list(opposite)}"
        same = f"on the same side of the reference at B = {_list(shared)}" if shared else "both proven at no B"
        yield Claim(
            claim=f"at {bits[one]} bits the kernel decides whether it pays off",
            source="Section 4.5.1 of v2",
            targets=(one, other),
            verdict=verdict,
            evidence=where if opposite else same,
        )


def _proven(found: Crossover) -> dict[int, int]:
    return {point.concurrency: point.proven for point in found.points if point.proven}


def _list(batches: Iterable[int]) -> str:
    return ", ".join(map(str, batches))
