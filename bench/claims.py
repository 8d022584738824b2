"""How often are the paper's claims called right or wrong where they are not? Simulated studies with known truth.

    python -m bench.claims     # about 4 minutes of one core; writes bench/results/claims.json

Each setting is simulated `STUDIES` times and put through the functions that analysis calls.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bench.trust_coverage import cell
from loadgen.analysis.celldata import Floats
from loadgen.analysis.claims import claims_of
from loadgen.analysis.crossover.crossover import Crossover, crossover
from loadgen.analysis.crossover.curve import Curve, CurvePoint
from loadgen.analysis.indices.dominance import si_differences
from loadgen.analysis.indices.formulas import IndexSettings, RepeatNoise
from loadgen.analysis.indices.point import OperatingPoint, Ratios, Repeat, item_figures, ratios_of, reference_ratios
from loadgen.analysis.indices.study import IndexStudy, target_indices
from loadgen.analysis.runresult import RunResult
from loadgen.analysis.trust.study import TrustStudy

STUDIES = 300
RESAMPLES = 1000
ITEMS = 300
FLIPS = 0.05
"""Share of the items that each batch answers anew."""
START, CELL = 0.02, 0.01
"""Relative standard deviation between starts of a server, and between cells of one start."""
GRIDS = {4: (1, 16, 64, 128), 9: (1, 2, 4, 8, 16, 32, 64, 128, 256)}

Verdicts = Counter[str]


def noise(rng: np.random.Generator, batches: int, repeats: int) -> Floats:
    """The noise of one side's logarithms; shape (batches, repeats)."""
    return START * rng.standard_normal(repeats) + CELL * rng.standard_normal((batches, repeats))


def equal_si(rng: np.random.Generator, batches: int, repeats: int) -> Verdicts:
    """fp16 against awq with equal speed, energy, memory and accuracy."""
    right = rng.random(ITEMS) < 0.5
    grid = GRIDS[batches]
    points: dict[tuple[str, int], OperatingPoint] = {}
    for target in ("fp16", "awq"):
        speed, joules = np.exp(noise(rng, batches, repeats)), np.exp(noise(rng, batches, repeats))
        for place, b in enumerate(grid):
            scores = np.where(rng.random(ITEMS) < FLIPS, rng.random(ITEMS) < 0.5, right)
            points[target, b] = OperatingPoint(
                target=target,
                concurrency=b,
                repeats=tuple(
                    Repeat(
                        repeat=k, running_mean=float(b), tokens_per_s=float(100 * speed[place, k]),
                        energy_per_query_j=float(50 * joules[place, k]), tokens_per_query=100.0,
                        memory_needed_bytes=1e9,
                    )
                    for k in range(repeats)
                ),
                scores={str(item): float(score) for item, score in enumerate(scores)},
                lengths={str(item): 100.0 for item in range(ITEMS)},
            )  # fmt: skip
    settings = IndexSettings()
    entries, differences = [], []
    for b in grid:
        ours, theirs = points["awq", b], points["fp16", b]
        items = item_figures([ours], theirs, resamples=RESAMPLES, seed=0)["awq"]
        means = RepeatNoise(set(range(repeats)), resamples=RESAMPLES, seed=0)
        ratios: Ratios = ratios_of(ours, theirs, items=items, noise=means, settings=settings)
        entries.append(target_indices(ratios, reference="fp16", concurrency=b, settings=settings, t_si=None))
        both = [reference_ratios("fp16", theirs.scores), ratios]
        differences += si_differences(b, both, settings.weights)
    study = IndexStudy(indices=tuple(entries), si_differences=tuple(differences))
    return said(RunResult(indices=study), "Proposition 3.2, Theorem 4.4")


def energy_trap(rng: np.random.Generator, batches: int, repeats: int, truth: Callable[[Floats], Floats]) -> Verdicts:
    """`truth`: log of fp16's joules per query over awq's, by log2 of the batch."""
    found = compared(rng, batches, repeats, "awq", "energy_per_query_j", truth)
    return said(RunResult(crossovers=(found,)), "Theorem 4.3")


def kernel(rng: np.random.Generator, batches: int, repeats: int, truth: Callable[[Floats], Floats]) -> Verdicts:
    """awq and bnb-nf4, both with this log-advantage in tokens/s over fp16."""
    found = tuple(compared(rng, batches, repeats, target, "tokens_per_s", truth) for target in ("awq", "bnb-nf4"))
    return said(RunResult(crossovers=found), "Section 4.5.1 of v2")


def compared(
    rng: np.random.Generator, batches: int, repeats: int, target: str, metric: str, truth: Callable[[Floats], Floats]
) -> Crossover:
    grid = GRIDS[batches]
    advantage = truth(np.log2(np.array(grid, dtype=float)))[:, None]
    sign = 1 if metric == "tokens_per_s" else -1
    ours, theirs = (np.exp(noise(rng, batches, repeats)) for _ in range(2))
    sides = (target, ours * np.exp(sign * advantage)), ("fp16", theirs)
    curves = [
        Curve(
            target=name,
            points=tuple(
                CurvePoint(concurrency=b, running=float(b), values=tuple(row))
                for b, row in zip(grid, values.tolist(), strict=True)
            ),
        )
        for name, values in sides
    ]
    return crossover(*curves, metric)


def falling(rng: np.random.Generator, batches: int, repeats: int, per_octave: float, *, lost: bool = False) -> Verdicts:
    """fp16's joules per query fall by this share with every doubling of B; `lost`: the second B has one valid repeat,
    and `named` counts the studies whose evidence says so."""
    grid = GRIDS[batches]
    logs = np.log1p(-per_octave) * np.log2(np.array(grid, dtype=float))[:, None] + noise(rng, batches, repeats)
    cells = [
        cell("fp16", b, k + 1, 100.0, float(np.exp(logs[place, k])), 100.0)
        for place, b in enumerate(grid)
        for k in range(repeats)
        if not (lost and place == 1 and k)
    ]
    claims = claims_of(cells, RunResult(), TrustStudy(), reference="fp16")
    found: Verdicts = Counter()
    for claim in claims:
        found[claim.verdict] += 1
        found["named"] += f"left out: B = {grid[1]} (one valid repeat)" in claim.evidence
    return found


def said(answer: RunResult, source: str) -> Verdicts:
    """Verdicts of the claims about fp16 and awq, or about awq and bnb-nf4."""
    cells = [cell(target, 1, 1, 100.0, 1.0, None) for target in ("fp16", "awq", "bnb-nf4")]
    claims = claims_of(cells, answer, TrustStudy(), reference="fp16")
    return Counter(claim.verdict for claim in claims if claim.source == source and "awq" in claim.targets)


def level(octaves: Floats) -> Floats:
    return np.zeros_like(octaves)


def loses_wins_loses(octaves: Floats) -> Floats:
    """By 20% below B = 3 and above B = 75, and wins by 20% at B = 16."""
    return 0.2 * (2 * np.exp(-(((octaves - 4) / 2.8) ** 2)) - 1)


def wins_at_one(octaves: Floats) -> Floats:
    """By 30% at B = 1, and nowhere else."""
    return np.where(octaves == 0, 0.3, 0.0)


def settings() -> Iterator[tuple[str, int, int, Callable[[np.random.Generator, int, int], Verdicts]]]:
    """Claim and truth, batches, repeats, and how a study is drawn."""
    for batches, repeats in product(GRIDS, (1, 2, 3, 4, 5)):
        yield "SI falls with the bits: equal", batches, repeats, equal_si
    for batches, repeats in product(GRIDS, (2, 3, 5)):
        yield "energy trap: equal", batches, repeats, lambda *study: energy_trap(*study, level)
        yield "energy falls with B: level", batches, repeats, lambda *study: falling(*study, 0.0)
        yield "the kernel decides: equal", batches, repeats, lambda *study: kernel(*study, level)
    for batches in GRIDS:
        yield "energy trap: loses, wins, loses", batches, 3, lambda *study: energy_trap(*study, loses_wins_loses)
        yield "energy falls with B: 5% per octave", batches, 3, lambda *study: falling(*study, 0.05)
        yield "energy falls with B: one B lost", batches, 3, lambda *study: falling(*study, 0.05, lost=True)
        yield "the kernel decides: both win at B = 1 alone", batches, 3, lambda *study: kernel(*study, wins_at_one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=STUDIES)
    studies = parser.parse_args().studies
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    for number, (name, batches, repeats, draw) in enumerate(settings()):
        rng = np.random.default_rng([17, number])
        found: Verdicts = Counter()
        for _ in range(studies):
            found += draw(rng, batches, repeats)
        rows.append({"case": name, "batches": batches, "repeats": repeats, "studies": studies, **found})
        print(rows[-1], flush=True)
    path = Path(__file__).parent / "results" / "claims.json"
    path.write_text(json.dumps({"start_sd": START, "cell_sd": CELL, "settings": rows}, indent=1) + "\n")
    print(f"{time.monotonic() - began:.0f} s; {path}")


if __name__ == "__main__":
    main()
