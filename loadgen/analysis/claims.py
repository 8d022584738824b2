"""The claims of "The Quantization Trap" (arXiv 2602.13595), each compared with the run's data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from scipy import special

from loadgen.analysis.cells import CellSummary
from loadgen.analysis.crossover.crossover import Crossover, place
from loadgen.analysis.runresult import RunResult
from loadgen.analysis.trust.answers import Lengths, PairedLengths, pair_lengths
from loadgen.analysis.trust.significance import holm
from loadgen.analysis.trust.study import TrustStudy
from loadgen.serving.recipe import load_recipes
from loadgen.words import spanned

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
    cells: Sequence[CellSummary],
    result: RunResult,
    trust: TrustStudy,
    *,
    reference: str,
    lengths: Mapping[tuple[str, float], Lengths] | None = None,
) -> tuple[Claim, ...]:
    """What a run can say of each claim; one that needs what was not measured is `cannot tell`, or left out whole.

    `lengths`: output tokens by item, by target and concurrency: joules per query are compared over shared items.
    """
    precisions = {cell.target: cell.precision for cell in cells}
    recipes = load_recipes()
    bits = {t: bits for t, name in precisions.items() if name in recipes and (bits := recipes[name].bits) is not None}
    backends = {target: recipes[name].backend for target, name in precisions.items() if name in recipes}
    fewer = [target for target in bits if target != reference and bits[target] < bits.get(reference, 0)]
    return (
        *(_energy_trap(found) for found in _by(result, "energy_per_query_j") if found.target in fewer),
        *_si_falls_with_bits(result, fewer, bits, reference),
        *_energy_falls_with_batch([cell for cell in cells if cell.traffic.arrival is None], lengths or {}),
        *_accuracy_is_the_same_at_every_batch(trust),
        *_loss_grows_with_depth(trust),
        *_backend_decides(result, fewer, bits, backends),
    )


def _by(result: RunResult, metric: str) -> list[Crossover]:
    return [found for found in result.crossovers if found.metric == metric and found.refusal is None]


def _energy_trap(found: Crossover) -> Claim:
    """Theorem 4.3 by its words (its algebra says the reverse): fewer bits cost more energy below some B*. A crossing in
    the other direction contradicts it, wherever it is; one in that direction supports it if every B outside of its
    bracket is proven: where one is open, the target may lose again."""
    batches = [point.concurrency for point in found.points]
    verdict: Verdict = "cannot tell"
    if found.status == "crosses":
        wins = found.crossings[0].direction == "wins_below"
        sides = [f"{found.target} {'wins' if wins else 'loses'} below {place(found.crossings[0])}"]
        for crossing, above in zip(found.crossings, [*found.crossings[1:], None], strict=True):
            won = crossing.direction == "wins_above"
            end = "above it" if above is None else f"from there to {place(above)}"
            sides.append(f"{'wins' if won else 'loses'} {end}")
        against = any(crossing.direction == "wins_below" for crossing in found.crossings)
        verdict = "contradicted" if against else "cannot tell" if found.away else "supported"
        evidence = ", ".join(sides)
        if found.away:
            measured = {*batches, *found.left_out}
            evidence += f"; not decided at {spanned([point.concurrency for point in found.away], measured)}"
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
    result: RunResult, fewer: Sequence[str], bits: Mapping[str, int], reference: str
) -> Iterator[Claim]:
    """The SI difference of each pair of neighbours in bits, and of each target to the reference; Holm over B."""
    pairs = [(reference, target) for target in fewer]
    levels = sorted({bits[target] for target in fewer}, reverse=True)
    pairs += [
        (more, less)
        for upper, lower in pairwise(levels)
        for more in fewer
        for less in fewer
        if bits[more] == upper and bits[less] == lower
    ]
    if all(entry.si is None for entry in result.indices.indices):
        return
    for more, less in pairs:
        tests = [test for test in result.indices.si_differences if {test.target, test.other} == {more, less}]
        p_values = holm([test.p for test in tests])
        proven = [test for test, p in zip(tests, p_values, strict=True) if p <= ALPHA]
        rises = [test.concurrency for test in proven if test.higher == (test.target == less)]
        falls = [test.concurrency for test in proven if test.concurrency not in rises]
        verdict: Verdict = "contradicted" if rises else "supported" if falls else "cannot tell"
        asked = [test.concurrency for test in tests]
        parts = [f"{word} SI at {spanned(at, asked)}" for word, at in (("lower", falls), ("higher", rises)) if at]
        nothing = "no difference is proven at any B" if tests else "no B has an interval of SI on both sides"
        corrected = f" (5% over {len(tests)} batch sizes, Holm)" if len(tests) > 1 else ""
        yield Claim(
            claim=f"from {bits[more]} to {bits[less]} bits SI falls",
            source="Proposition 3.2, Theorem 4.4",
            targets=(more, less),
            verdict=verdict,
            evidence=f"{less} against {more}: {', '.join(parts) or nothing}{corrected}",
        )


class _Steps(NamedTuple):
    """From batch to batch of one target: those that can be tested, and why others cannot."""

    tested: dict[tuple[int, int], tuple[float, float]]
    """The mean difference of log joules per query, and its p."""
    left_out: list[str]


def _energy_falls_with_batch(
    cells: Sequence[CellSummary], lengths: Mapping[tuple[str, float], Lengths]
) -> Iterator[Claim]:
    """A paired test of neighbouring batches' joules per query, Holm over the steps."""
    for target in dict.fromkeys(cell.target for cell in cells):
        found = _steps([cell for cell in cells if cell.target == target], {
            b: ours for (name, b), ours in lengths.items() if name == target
        })  # fmt: skip
        if not found.tested and not found.left_out:
            continue
        p_values = holm([p for _, p in found.tested.values()])
        proven = [
            (step, rise) for (step, (rise, _)), p in zip(found.tested.items(), p_values, strict=True) if p <= ALPHA
        ]
        rises = [step for step, rise in proven if rise > 0]
        steps = list(found.tested)
        verdict: Verdict = "cannot tell"
        shown = "no step from one B to the next can be tested"
        if steps:
            verdict = "contradicted" if rises else "supported" if len(proven) == len(steps) else "cannot tell"
            shown = f"{len(proven) - len(rises)} of {len(steps)} steps from B = {steps[0][0]} to {steps[-1][1]} fall"
            shown += " by proof"
        rise = f"; it rises from B = {', '.join(f'{a} to {b}' for a, b in rises)}" if rises else ""
        yield Claim(
            claim="energy per query falls with the batch",
            source="Theorem 4.5 (1)",
            targets=(target,),
            verdict=verdict,
            evidence=f"{shown}{rise}" + "".join(f"; {why}" for why in found.left_out),
        )


def _steps(cells: Sequence[CellSummary], lengths: Mapping[float, Lengths]) -> _Steps:
    """From each batch with two valid repeats to the next one. A repeat's cells share the start of a server: they are
    compared with each other. Joules per query are those of the items that both batches completed."""
    joules: dict[int, dict[int, CellSummary]] = {}
    for cell in cells:
        if cell.figure("energy_per_query_j"):
            joules.setdefault(cell.concurrency, {})[cell.repeat] = cell
    tested: dict[tuple[int, int], tuple[float, float]] = {}
    single = [b for b in joules if len(joules[b]) < 2]
    left_out = [f"left out: {spanned(single, joules)} (one valid repeat)"] if single else []
    last: int | None = None
    for b in sorted(joules):
        if len(joules[b]) < 2:
            continue
        a, last = last, b
        if a is None:
            continue
        shared = sorted(joules[a].keys() & joules[b].keys())
        pairs = pair_lengths(lengths.get(b, {}), lengths.get(a, {}))
        if len(shared) < 2:
            left_out.append(f"left out: B = {a} to {b} (fewer than two repeats are valid at both)")
        elif pairs is not None and pairs.refusal is not None:
            left_out.append(f"left out: B = {a} to {b} ({pairs.refusal})")
        else:
            rises = [_log_joules(joules[b][k], pairs) - _log_joules(joules[a][k], pairs) for k in shared]
            longer, error = (pairs.log_ratio, pairs.error) if pairs is not None else (0.0, 0.0)
            tested[a, b] = float(np.mean(rises)) + longer, paired_p(rises, shift=longer, error=error)
    return _Steps(tested, left_out)


def _log_joules(cell: CellSummary, lengths: PairedLengths | None) -> float:
    """Per token, where the lengths are known apart from it; else per query."""
    joules, tokens = cell.figure("energy_per_query_j"), cell.output_tokens_mean
    assert joules is not None
    return math.log(joules / tokens if lengths is not None and tokens else joules)


def paired_p(differences: Sequence[float], *, shift: float = 0.0, error: float = 0.0) -> float:
    """Two-sided p that the mean of paired differences plus `shift` is 0: Student's test over the pairs, and in
    quadrature `error`, the standard error of `shift` (normal)."""
    n, mean = len(differences), float(np.mean(differences)) + shift
    scatter = float(np.std(differences, ddof=1)) / math.sqrt(n)
    low, high = math.log(1e-16), 0.0
    for _ in range(40):
        middle = (low + high) / 2
        tail = math.exp(middle) / 2
        half = math.hypot(scatter * float(special.stdtrit(n - 1, tail)), error * float(special.ndtri(tail)))
        low, high = (middle, high) if abs(mean) <= half else (low, middle)
    return 1.0 if mean == 0 else math.exp(high)


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
    result: RunResult, fewer: Sequence[str], bits: Mapping[str, int], backends: Mapping[str, str]
) -> Iterator[Claim]:
    """Section 4.5.1: equal bits, opposite verdicts on speed. One B shows that it holds; that it does not, only all B
    that were measured, and more than one of them."""
    speeds = {found.target: found for found in _by(result, "tokens_per_s")}
    for one, other in combinations([target for target in fewer if target in speeds], 2):
        if bits[one] != bits[other] or backends[one] == backends[other]:
            continue
        ours, theirs = _proven(speeds[one]), _proven(speeds[other])
        shared = [b for b in ours if b in theirs]
        measured = [{point.concurrency for point in speeds[name].points} for name in (one, other)]
        open_at = sorted((measured[0] | measured[1]) - set(shared))
        opposite = [b for b in shared if ours[b] != theirs[b]]
        same_everywhere = len(shared) > 1 and not open_at and not opposite
        verdict: Verdict = "supported" if opposite else "contradicted" if same_everywhere else "cannot tell"
        asked = measured[0] | measured[1]
        where = f"one faster, the other slower than the reference at {spanned(opposite, asked)}"
        same = f"on the same side of the reference at {spanned(shared, asked)}" if shared else "both proven at no B"
        if shared and open_at:
            same += f"; not proven for both at {spanned(open_at, asked)}"
        yield Claim(
            claim=f"at {bits[one]} bits the kernel decides whether it pays off",
            source="Section 4.5.1 of v2",
            targets=(one, other),
            verdict=verdict,
            evidence=where if opposite else same,
        )


def _proven(found: Crossover) -> dict[int, int]:
    return {point.concurrency: point.proven for point in found.points if point.proven}
