"""Do the intervals cover and the tests hold their size? Simulated studies with known truth.

    python bench/trust_coverage.py     # about 10 minutes; prints each setting, writes bench/results/trust_coverage.json

Each setting is simulated `STUDIES` times and put through the package's own functions. A share of 1000 studies is known
to 0.7 pp (one standard error at 5% and 95%).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loadgen.analysis.celldata import Floats, Goodput, Traffic
from loadgen.analysis.celldata import Ints as IntArray
from loadgen.analysis.cells import CellSummary
from loadgen.analysis.claims import claims_of
from loadgen.analysis.energy import CellEnergy
from loadgen.analysis.estimate import wilson_interval
from loadgen.analysis.indices.dominance import dominance
from loadgen.analysis.indices.formulas import IndexSettings, Resampled
from loadgen.analysis.indices.point import Ratios, reference_ratios
from loadgen.analysis.runresult import run_result
from loadgen.analysis.trust.accuracy import MARGIN, correct_energy
from loadgen.analysis.trust.answers import GradedAnswer, ItemRequest, PairedItems, item_lengths, pair_items
from loadgen.analysis.trust.significance import (
    changes,
    cochran_q,
    difference_interval,
    equivalence_p,
    holm,
    mcnemar_p,
    trust_ratio,
)
from loadgen.analysis.trust.study import TargetAnswers, TrustStudy, TrustTest
from loadgen.analysis.trust.trends import absolute_trend, relative_trend, step_survival
from loadgen.analysis.validity import Validity

STUDIES = 1000
ITEM_STUDIES = 300
"""Studies of the cases with whole runs, which take longer."""
RESAMPLES = 2000
"""Draws of a bootstrap or randomisation, fewer than a report's: their noise is part of what is measured here."""
ALPHA = 0.05
GSM8K_STEPS = {2: 326, 3: 371, 4: 297, 5: 175, 6: 87, 7: 40, 8: 20, 9: 2, 11: 1}
"""Items of GSM8K's test split by solution lines."""
FALL_PER_STEP = 0.8
"""Reference accuracy at k steps: 0.8^(k - 1), so 80% at 2 and 26% at 7."""

Shares = dict[str, float]


def paired(reference: Floats, target: Floats) -> PairedItems:
    return PairedItems(item_ids=tuple(map(str, range(len(reference)))), reference=reference, target=target)


def table_study(rng: np.random.Generator, n: int, p: float, delta: float, psi: float) -> PairedItems:
    """n items: reference accuracy p, target p + delta, share psi changed."""
    lost, won = (psi - delta) / 2, (psi + delta) / 2
    cell = rng.choice(4, size=n, p=[p - lost, lost, won, 1 - p - won])
    return paired((cell < 2).astype(float), (cell % 2 == 0).astype(float))


def repeated_study(rng: np.random.Generator, n: int, p: float, delta: float, answers: int) -> PairedItems:
    """Items of differing difficulty (Beta with mean p, or p + delta), `answers` independent answers of each side."""
    ease = rng.beta(2 * p, 2 * (1 - p), size=n)
    harder = ease * (1 + delta / p)
    return paired(rng.binomial(answers, ease) / answers, rng.binomial(answers, harder) / answers)


def comparison_shares(studies: Iterator[PairedItems], p: float, delta: float) -> Shares:
    """Coverage of the intervals (truth: p, p + delta) and how often the tests reject."""
    truth = 1 + delta / p
    counts = dict.fromkeys(("accuracy", "difference", "t_si", "t_si_delta", "correct_energy"), 0)
    verdicts = dict.fromkeys(("worse", "better", "equivalent"), 0)
    total = bounded = 0
    rng = np.random.default_rng(1)
    for pairs in studies:
        total += 1
        low, high = wilson_interval(float(pairs.target.sum()), pairs.n)
        counts["accuracy"] += low <= p + delta <= high
        seen = changes(pairs)
        lo, hi = difference_interval(seen)
        counts["difference"] += lo <= delta <= hi
        ratio = trust_ratio(pairs, resamples=RESAMPLES, seed=total)
        if ratio.lo is not None and ratio.hi is not None and ratio.delta_lo is not None and ratio.delta_hi is not None:
            bounded += 1
            counts["t_si"] += ratio.lo <= truth <= ratio.hi
            counts["t_si_delta"] += ratio.delta_lo <= truth <= ratio.delta_hi
        logs = np.log(100) + 0.02 * rng.standard_normal(5)
        energy = correct_energy(
            float(np.exp(logs.mean())), pairs.target, relative_error=float(logs.std(ddof=1)) / 5**0.5, degrees=4,
            resamples=RESAMPLES, seed=total,
        )  # fmt: skip
        if energy is not None and energy.lo is not None and energy.hi is not None:
            counts["correct_energy"] += energy.lo <= 100 / (p + delta) <= energy.hi
        if mcnemar_p(pairs, draws=RESAMPLES, seed=total) <= ALPHA:
            verdicts["worse" if pairs.difference.sum() < 0 else "better"] += 1
        verdicts["equivalent"] += equivalence_p(seen, MARGIN) <= ALPHA
    of = {"t_si": bounded, "t_si_delta": bounded}
    return {f"{name}_covered": count / of.get(name, total) for name, count in counts.items()} | {
        name: count / total for name, count in verdicts.items()
    }


def family_false_alarms(rng: np.random.Generator, n: int, targets: int, psi: float, studies: int) -> float:
    """How often any of `targets` A/A comparisons with one reference is called worse or better, after Holm."""
    alarms = 0
    for _ in range(studies):
        reference = rng.random(n) < 0.43
        p_values = []
        for _ in range(targets):
            redrawn = rng.random(n) < psi / (2 * 0.43 * 0.57)
            target = np.where(redrawn, rng.random(n) < 0.43, reference)
            p_values.append(mcnemar_p(paired(reference.astype(float), target.astype(float))))
        alarms += min(holm(p_values)) <= ALPHA
    return alarms / studies


def cochran_size(rng: np.random.Generator, n: int, conditions: int, flipping: float, studies: int) -> float:
    """How often Q rejects where every condition answers equally well: a share `flipping` of the items is undecided."""
    rejected = 0
    for study in range(studies):
        ease = np.where(rng.random(n) < flipping, 0.5, rng.random(n) < 0.5)
        scores = (rng.random((n, conditions)) < ease[:, None]).astype(float)
        rejected += cochran_q(scores, seed=study).p <= ALPHA
    return rejected / studies


def depth_shares(rng: np.random.Generator, truth: str, studies: int) -> Shares:
    """Rejections of both interaction tests and coverage of q on GSM8K's depths; 12% of the right answers are redrawn.

    `truth`: `none` (no loss), `ratio` (T_SI 0.9 at any depth), `difference` (-4 pp at any depth), `survival` (0.95^k).
    """
    steps = np.repeat(list(GSM8K_STEPS), list(GSM8K_STEPS.values())).astype(float)
    p = FALL_PER_STEP ** (steps - 1)
    kept = {"none": np.ones_like(p), "ratio": np.full_like(p, 0.9), "difference": 1 - 0.04 / p, "survival": 0.95**steps}
    absolute = relative = covered = 0
    for _ in range(studies):
        reference = rng.random(len(p)) < p
        same = rng.random(len(p)) < 0.88
        again = np.where(same, reference, rng.random(len(p)) < p)
        target = again & (rng.random(len(p)) < kept[truth])
        pairs = paired(reference.astype(float), target.astype(float))
        over, under = absolute_trend(pairs, steps), relative_trend(pairs, steps)
        absolute += over is not None and over.p <= ALPHA
        relative += under is not None and under.p <= ALPHA
        fit = step_survival(pairs, steps)
        covered += fit is not None and fit.lo <= (0.95 if truth == "survival" else 1.0) <= fit.hi
    shares = {"absolute_rejected": absolute / studies, "relative_rejected": relative / studies}
    return shares | ({"q_covered": covered / studies} if truth in ("none", "survival") else {})


def few_changes(rng: np.random.Generator, n: int, p: float, delta: float, psi: float, studies: int) -> Shares:
    """T_SI and dominance where few answers change; the target is better for sure in speed, energy and memory."""
    covered = unbounded = dominates = within = 0
    sure = Resampled(value=2.0, draws=np.full(1, 2.0))
    for _ in range(studies):
        pairs = table_study(rng, n, p, delta, psi)
        ratio = trust_ratio(pairs)
        if ratio.lo is None or ratio.hi is None:
            unbounded += 1
        else:
            covered += ratio.lo <= 1 + delta / p <= ratio.hi
        sides = [dict(zip(pairs.item_ids, side.tolist(), strict=True)) for side in (pairs.target, pairs.reference)]
        target = Ratios(target="awq", t=sure, scores=sides[0], eta=sure, rho=sure, saving=sure)
        verdict = dominance(1, target, reference_ratios("fp16", sides[1])).verdict
        dominates += verdict == "dominates"
        within += verdict == "dominates within margin"
    return {
        "t_si_covered": covered / max(studies - unbounded, 1),
        "no_interval": unbounded / studies,
        "dominates": dominates / studies,
        "dominates_within_margin": within / studies,
    }


def few_changes_settings() -> list[tuple[int, float, float, float]]:
    """n, reference accuracy, true difference, discordance."""
    grid = [(n, p, 0.0, psi) for n, p, psi in product((20, 64, 300, 1319), (0.43, 0.7), (0.01, 0.05, 0.2))]
    return [*grid, (20, 0.7, -0.02, 0.02), (64, 0.7, -0.01, 0.01), (300, 0.7, -0.003, 0.003), (300, 0.7, -0.03, 0.03)]


class Windows(NamedTuple):
    """A case of `other_items`."""

    window_s: float
    speedup: float
    """The target's at B = 1; it halves with every eightfold B."""
    noise: float
    """Relative standard deviation of joules and rates between cells; half of the variance belongs to the repeat."""


WINDOWS = (
    Windows(10, 2.4, 0.002),
    Windows(60, 2.4, 0.002),
    Windows(10, 2.4, 0.01),
    Windows(60, 2.4, 0.01),
    Windows(60, 1.0, 0.01),
)
GRID, ITEMS, LENGTH, LENGTH_CV = (1, 4, 16, 64, 128), 1319, 150.0, 0.45
OWN = "own items"
"""Beside the package's: the same studies as if each side's own items were compared."""


def completed(lengths: Floats, tokens_per_s: float, b: int, window_s: float) -> tuple[IntArray, IntArray]:
    """Items that a closed loop of b slots completes in its window, and those that it took up in it (the rest ends in
    the drain)."""
    free = np.zeros(b)
    ended = []
    for tokens in lengths:
        slot = int(free.argmin())
        if free[slot] >= window_s:
            break
        free[slot] += tokens / (tokens_per_s / b)
        ended.append(free[slot])
    taken = np.arange(len(ended))
    return taken[np.array(ended) <= window_s], taken


def other_items(rng: np.random.Generator, case: Windows, studies: int) -> dict[str, Shares]:
    """How often identical answers and joules per token get a verdict: any sign at any B, an S_SI that is not 1 (share
    of the B), a verdict on whether energy falls with the batch. The studies with each side's own items are a fifth."""
    false: dict[str, dict[str, float]] = {"package": defaultdict(float), OWN: defaultdict(float)}
    for study in range(studies):
        sigma = np.sqrt(np.log1p(LENGTH_CV**2))
        lengths = np.maximum(1, np.round(LENGTH * np.exp(sigma * rng.standard_normal(ITEMS) - sigma**2 / 2)))
        right = rng.random(ITEMS) < np.clip(0.7 - 0.3 * (lengths / LENGTH - 1), 0.05, 0.95)
        cells, answers = [], {}
        for target in ("fp16", "awq"):
            starts = case.noise * np.sqrt(0.5) * rng.standard_normal((2, 3))
            for b in GRID:
                speed = 40.0 * b**0.85 * (case.speedup * b ** (-1 / 3) if target == "awq" and case.speedup > 1 else 1.0)
                taken: set[int] = set()
                for repeat in range(3):
                    rate, joules = np.exp(starts[:, repeat] + case.noise * np.sqrt(0.5) * rng.standard_normal(2))
                    inside, all_taken = completed(lengths, speed * rate, b, case.window_s)
                    taken |= set(all_taken.tolist())
                    mean = float(lengths[inside].mean()) if len(inside) else None
                    cells.append(cell(target, b, repeat + 1, float(speed * rate), float(0.5 * joules), mean))
                answers[target, b] = {
                    str(k): [
                        GradedAnswer(repeat=1, outcome="correct", correct=bool(right[k]), output_tokens=int(lengths[k]))
                    ]
                    for k in sorted(taken)
                }
        asked = {str(k): ItemRequest(prompt_sha="0", max_tokens=1024, sampling={}) for k in range(ITEMS)}
        sides = [TargetAnswers(target=t, concurrency=b, answers=a, asked=asked) for (t, b), a in answers.items()]
        trust = accuracy_tests(sides)
        for name, known in (("package", None), (OWN, {}))[: 1 if study % 5 else 2]:
            answer = run_result(cells, answers, trust, reference="fp16", settings=IndexSettings(), lengths=known)
            for found in answer.crossovers:
                false[name][found.metric] += any(point.proven for point in found.points)
                false[name][f"{found.metric}_refused"] += found.refusal is not None
            known_s = [entry.s_si_raw for entry in answer.indices.indices if entry.s_si_raw is not None]
            false[name]["s_si"] += sum(s.below(1) or s.above(1) for s in known_s) / max(len(known_s), 1)
            used = {key: item_lengths(a) for key, a in answers.items()} if known is None else known
            claims = claims_of(cells, answer, trust, reference="fp16", lengths=used)
            ours = [claim for claim in claims if claim.source == "Theorem 4.5 (1)" and claim.targets == ("fp16",)]
            false[name]["energy_falls"] += any(claim.verdict != "cannot tell" for claim in ours)
    metrics = ("energy_per_token_j", "energy_per_query_j", "energy_per_correct_j", "s_si", "energy_falls")
    refused = ("energy_per_query_j_refused", "energy_per_correct_j_refused")
    return {
        name: {m: false[name][m] / count for m in (*metrics, *refused)}
        for name, count in (("package", studies), (OWN, -(-studies // 5)))
    }


def accuracy_tests(sides: list[TargetAnswers]) -> TrustStudy:
    """The study of the accuracies alone: what else a study tests takes most of its time and is not asked for."""
    by_key = {(side.target, side.concurrency): side for side in sides}
    tests = []
    for (target, b), ours in by_key.items():
        if target == "fp16":
            continue
        ratio = trust_ratio(pair_items(ours.answers, by_key["fp16", b].answers))
        tests.append(
            TrustTest(
                target=target, reference="fp16", concurrency=b, verdict="inconclusive", sentence="",
                t_si=ratio.value, t_si_lo=ratio.lo, t_si_hi=ratio.hi,
            )
        )  # fmt: skip
    return TrustStudy(trust=tuple(tests))


def cell(
    target: str, b: int, repeat: int, tokens_per_s: float, joules_per_token: float, mean: float | None
) -> CellSummary:
    """What a cell with these figures has; nothing else is known of it."""
    known: dict[str, Any] = {
        "target": target, "precision": target, "concurrency": b, "repeat": repeat, "session": 1,
        "validity": Validity(energy=()), "running_mean": float(b), "tokens_per_s": tokens_per_s,
        "output_tokens_mean": mean, "simulated": True, "traffic": Traffic(),
        "goodput": Goodput(),
        "energy": CellEnergy(
            energy_per_token_j=joules_per_token, energy_per_query_j=joules_per_token * mean if mean else None
        ),
    }  # fmt: skip
    return CellSummary(**{**dict.fromkeys(CellSummary.__struct_fields__), **known})


def settings() -> list[tuple[int, float, float, float]]:
    """n, reference accuracy, true difference, discordance: null, the paper's T_SI, a tenth lost, the margin itself."""
    grid = product((200, 1319), (0.2, 0.4314), (0.0, -0.0372, -0.1, -MARGIN), (0.04, 0.12, 0.2))
    return [
        (n, p, d, psi) for n, p, d, psi in grid if abs(d) <= psi and p - (psi - d) / 2 > 0 and (p + (psi + d) / 2) < 1
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=STUDIES)
    studies = parser.parse_args().studies
    began = time.monotonic()
    rows = []
    for number, (n, p, delta, psi) in enumerate(settings()):
        rng = np.random.default_rng([7, number])
        shares = comparison_shares((table_study(rng, n, p, delta, psi) for _ in range(studies)), p, delta)
        rows.append({"items": n, "reference_accuracy": p, "difference": delta, "discordance": psi, **shares})
        print(rows[-1])
    repeated = []
    for number, (n, delta) in enumerate([(200, 0.0), (1319, -0.04)]):
        rng = np.random.default_rng([8, number])
        shares = comparison_shares((repeated_study(rng, n, 0.43, delta, 3) for _ in range(studies)), 0.43, delta)
        repeated.append({"items": n, "answers": 3, "reference_accuracy": 0.43, "difference": delta, **shares})
        print(repeated[-1])
    families = []
    for number, (n, psi) in enumerate(product((200, 1319), (0.04, 0.12))):
        alarms = family_false_alarms(np.random.default_rng([11, number]), n, 4, psi, studies)
        families.append({"items": n, "targets": 4, "discordance": psi, "false_alarms": alarms})
        print(families[-1])
    cochran = []
    for number, (n, k, flipping) in enumerate(product((200, 1319), (4, 6), (0.01, 0.05, 0.2))):
        size = cochran_size(np.random.default_rng([9, number]), n, k, flipping, studies)
        cochran.append({"items": n, "conditions": k, "undecided": flipping, "rejected": size})
        print(cochran[-1])
    depth = []
    for number, truth in enumerate(("none", "ratio", "difference", "survival")):
        depth.append({"truth": truth, **depth_shares(np.random.default_rng([10, number]), truth, studies)})
        print(depth[-1])
    few = []
    for number, (n, p, delta, psi) in enumerate(few_changes_settings()):
        shares = few_changes(np.random.default_rng([12, number]), n, p, delta, psi, studies)
        few.append({"items": n, "reference_accuracy": p, "difference": delta, "discordance": psi, **shares})
        print(few[-1])
    items = []
    for number, case in enumerate(WINDOWS):
        found = other_items(np.random.default_rng([13, number]), case, min(studies, ITEM_STUDIES))
        items += [{**case._asdict(), "compared": name, **shares} for name, shares in found.items()]
        print(*items[-2:], sep="\n")
    content = {
        "studies": studies, "alpha": ALPHA, "margin": MARGIN,
        "comparisons": rows, "repeated": repeated, "families": families, "cochran": cochran, "depth": depth,
        "few_changes": few, "item_studies": min(studies, ITEM_STUDIES), "other_items": items,
    }  # fmt: skip
    path = Path(__file__).parent / "results" / "trust_coverage.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{time.monotonic() - began:.0f} s; {path}")


if __name__ == "__main__":
    main()
