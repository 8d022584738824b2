"""Is the right cost model found, and are its parameters inside their intervals? Simulated studies with known truth.

    python bench/model_recovery.py     # some ten minutes; writes bench/results/model_recovery.json
    python bench/model_recovery.py --truth M1 --grid fine     # one row; the file keeps the others

Every study draws the parameters of one candidate of loadgen.analysis.models, or a cost model of the simulator (decoding
alone), measures both sides at the batches of a grid in `REPEATS` noisy repeats, and goes through the package's own
`model_study`, all candidates competing.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.models.candidate import CANDIDATES, Axis, Candidate, Pair
from loadgen.analysis.models.study import ModelStudy, model_study
from loadgen.serving.simulated.cost import Cost, load_presets

STUDIES = 250
"""Per candidate and grid; a share is known to 1.4 pp (one standard error at 95%)."""
SIMULATED_STUDIES = 60
"""Per precision of the simulator and grid."""
REPEATS = 3
NOISE = (0.01, 0.03)
"""Relative standard deviation of a cell, drawn per study."""
SHARED = (0.0, 0.5)
"""Share of its variance that the cells of one start of a server have in common, drawn per study."""
CONTEXT = 300
"""Tokens in the cache per sequence of a simulated server."""
GRIDS = {"fine": (1, 2, 4, 8, 16, 32, 64, 128), "coarse": (1, 16, 64, 128)}

Rng = np.random.Generator


def log_uniform(rng: Rng, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def eq19(rng: Rng) -> list[float]:
    return [1.0, log_uniform(rng, 5, 200) / 16, log_uniform(rng, 0.05, 2)]


def eq23(rng: Rng) -> list[float]:
    return [1.0, log_uniform(rng, 0.5, 2), log_uniform(rng, 0.5, 50)]


def amortized(rng: Rng) -> list[float]:
    step = log_uniform(rng, 5, 200)
    return [1.0, step, log_uniform(rng, 0.5, 2), step * log_uniform(rng, 0.3, 3)]


def one_floor(rng: Rng) -> list[float]:
    step = log_uniform(rng, 5, 200)
    return [1.0, step, step * log_uniform(rng, 0.3, 3)]


def roofline(rng: Rng) -> list[float]:
    compute = 1 / log_uniform(rng, 8, 100)
    return [log_uniform(rng, 0.05, 1), 1.0, compute, compute * log_uniform(rng, 0.1, 1), log_uniform(rng, 0.02, 1)]


TRUTHS: dict[str, Callable[[Rng], list[float]]] = {
    "M1": eq19, "M2": eq23, "M3": amortized, "M3c": one_floor, "M4": roofline,
}  # fmt: skip
"""Parameters in the order of the candidate's terms; the unit of cost does not matter."""


def measured(rng: Rng, grid: str, bits: int, cost: Callable[[Axis], Floats]) -> Pair:
    """What both sides of a study show, one cell per side, batch and repeat."""
    of_target, batch, repeat = (
        part.ravel() for part in np.meshgrid([False, True], GRIDS[grid], range(REPEATS), indexing="ij")
    )
    sigma, shared = rng.uniform(*NOISE), rng.uniform(*SHARED)
    own = rng.standard_normal(len(batch))
    starts = rng.standard_normal((2, REPEATS))[of_target.astype(int), repeat]
    places = Axis(batch=batch.astype(float), of_target=of_target)
    return Pair(
        log_cost=np.log(cost(places)) + sigma * (math.sqrt(1 - shared) * own + math.sqrt(shared) * starts),
        batch=places.batch,
        of_target=of_target,
        concurrency=batch,
        repeat=repeat,
        bits={False: 16, True: bits},
    )


def studied(pair: Pair) -> ModelStudy:
    return model_study(pair, target="target", reference="reference", quantity="time_per_token_s")


def family_study(rng: Rng, candidate: Candidate, grid: str) -> tuple[Floats, Pair]:
    """True parameters, and what was measured."""
    theta = np.array(TRUTHS[candidate.name](rng))
    bits = int(rng.choice([4, 8]))
    roof = float(theta[1] / theta[2]) if candidate.has_roof else math.inf
    pair = measured(rng, grid, bits, lambda at: candidate.design(at, {False: 16, True: bits}, roof) @ theta)
    return theta, pair


def family_row(family: str, grid: str, studies: int) -> dict[str, Any]:
    """What became of studies whose truth is a candidate."""
    candidate = CANDIDATES[family]
    rng = np.random.default_rng([7, list(TRUTHS).index(family), list(GRIDS).index(grid)])
    counts: Counter[str] = Counter()
    inside = dict.fromkeys(candidate.terms, 0)
    crossings = crossings_inside = 0
    for _ in range(studies):
        theta, pair = family_study(rng, candidate, grid)
        found = studied(pair)
        counts.update(outcomes(found, family))
        entry = next(entry for entry in found.models if entry.model == family)
        for true, parameter in zip(theta.tolist(), entry.parameters, strict=True):
            # what the batches do not determine has no interval, and counts as covered
            inside[parameter.name] += parameter.lo is None or parameter.hi is None or (
                parameter.lo <= true <= parameter.hi
            )  # fmt: skip
        crossing = candidate.b_star(theta, pair.bits)
        if crossing and entry.b_star and entry.b_star.lo is not None and entry.b_star.hi is not None:
            crossings += 1
            crossings_inside += bool(entry.b_star.lo <= crossing[0] <= entry.b_star.hi)
    return {
        "truth": family,
        "grid": grid,
        "studies": studies,
        **{name: counts[name] / studies for name in OUTCOMES},
        "covered": {name: count / studies for name, count in inside.items()},
        "b_star_intervals": crossings,
        "b_star_covered": crossings_inside / crossings if crossings else None,
    }


OUTCOMES = ("lowest_aicc", "named", "named_wrong", "undecided", "undecided_with_truth", "none_fits")


def outcomes(found: ModelStudy, family: str) -> list[str]:
    """Those of `OUTCOMES` that hold; a model that contains the truth is not wrong, only larger than needed."""
    assert found.best is not None
    right = found.best == family
    undecided = found.verdict == "cannot tell"
    held = {
        "lowest_aicc": right,
        "named": right and found.verdict == "best",
        "named_wrong": not right and found.verdict == "best" and family not in CANDIDATES[found.best].contains,
        "undecided": undecided,
        "undecided_with_truth": undecided and family in (found.best, *found.rivals),
        "none_fits": found.verdict == "none fits",
    }
    return [name for name, holds in held.items() if holds]


def simulator_row(precision: str, grid: str, studies: int) -> dict[str, Any]:
    """Which model comes out for random GPUs of the simulator."""
    presets = load_presets()
    rng = np.random.default_rng([8, SIMULATED.index(precision), list(GRIDS).index(grid)])
    best: Counter[str] = Counter()
    refuted = 0
    for _ in range(studies):
        gpu = varied(
            rng, presets.gpu[rng.choice(sorted(presets.gpu))], "bandwidth_bytes_s", "compute_flops", "launch_s"
        )
        sides = {
            of_target: Cost(gpu=gpu, model=presets.model["mistral-7b"], precision=presets.precision[name])
            for of_target, name in ((False, "fp16"), (True, precision))
        }

        def cost(at: Axis, sides: dict[bool, Cost] = sides) -> Floats:
            return np.array([
                sides[bool(of_target)].step(batch=b, context_tokens=CONTEXT * b, prefill_tokens=0).duration_s / b
                for b, of_target in zip(at.batch.tolist(), at.of_target.tolist(), strict=True)
            ])  # fmt: skip

        found = studied(measured(rng, grid, round(presets.precision[precision].bits), cost))
        best[found.best or ""] += 1
        refuted += found.verdict == "none fits"
    return {
        "truth": precision,
        "grid": grid,
        "studies": studies,
        "lowest_aicc_of": {name: best[name] / studies for name in CANDIDATES},
        "none_fits": refuted / studies,
    }


def varied(rng: Rng, entry: Any, *fields: str) -> Any:
    """The entry with these fields multiplied by lognormal factors of 50%."""
    return msgspec.structs.replace(
        entry, **{f: getattr(entry, f) * math.exp(0.5 * rng.standard_normal()) for f in fields}
    )


SIMULATED = ("awq", "bnb-nf4", "bnb-int8", "fp8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int)
    parser.add_argument("--truth", choices=[*TRUTHS, *SIMULATED])
    parser.add_argument("--grid", choices=list(GRIDS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "model_recovery.json")
    arguments = parser.parse_args()
    began = time.monotonic()
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if arguments.out.is_file():
        rows = {(row["truth"], row["grid"]): row for row in json.loads(arguments.out.read_text())["settings"]}
    for truth in [arguments.truth] if arguments.truth else [*TRUTHS, *SIMULATED]:
        for grid in [arguments.grid] if arguments.grid else GRIDS:
            of, studies = (family_row, STUDIES) if truth in TRUTHS else (simulator_row, SIMULATED_STUDIES)
            rows[truth, grid] = row = of(truth, grid, arguments.studies or studies)
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    content = {
        "noise": NOISE, "shared": SHARED, "repeats": REPEATS, "grids": GRIDS,
        "settings": [rows[key] for key in sorted(rows)],
    }  # fmt: skip
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{time.monotonic() - began:.0f} s; {arguments.out}")


if __name__ == "__main__":
    main()
