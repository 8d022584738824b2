"""How often is advice wrong? Made studies of two precisions whose curves and noise are known.

    python bench/advise.py             # about 4 minutes; prints the table of docs/advise.md

The truth is the simulator's closed form (SIMULATED): X(B) and P(B) of a GPU, a model and a precision, at every B. A
study measures a grid of B in three repeats; every start of a server multiplies all its rates, and all its powers, by a
lognormal factor (1%), every cell by another (0.5%). The demand is a rate that keeps 1 to 60 requests in flight.
A choice counts where the true joules a query differ by 3% or more; it is wrong if loadgen calls it decided and the
other is better.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter

import numpy as np

from loadgen.analysis.advise import Demand, Fleet, Share, choose
from loadgen.analysis.estimate import wilson_interval
from loadgen.analysis.indices.formulas import RepeatNoise
from loadgen.analysis.replica import RESAMPLES, Measured, Replica
from loadgen.serving.simulated.cost import Cost, closed_loop, load_presets

GRIDS = {"1, 16, 64, 128": (1, 16, 64, 128), "1, 2, 4, ... 128": tuple(2**k for k in range(8))}
REPEATS, START_SD, CELL_SD = (1, 2, 3), 0.01, 0.005
PROMPT, ANSWER = 700.0, 150.0
MOST = 128
DIFFERENT = 0.03
GPUS, MODELS = ("a100", "h100", "h200"), ("mistral-7b", "falcon3-3b", "qwen2.5-14b")
PRECISIONS = ("fp16", "awq", "gptq", "bnb-nf4", "fp8", "int8")


def true_replica(cost: Cost, name: str) -> Replica:
    """Every B, without noise."""
    states = [closed_loop(cost, b, PROMPT, ANSWER) for b in range(1, MOST + 1)]
    return Replica(
        target=name, precision=name, gpus=1, fewest=1,
        rate_per_s=np.array([[state.tokens_per_s / ANSWER for state in states]]),
        power_w=np.array([[state.power_w for state in states]]), rest_w=np.array([cost.gpu.idle_w]),
        slo_share=None, accuracy=None, drawn=False,
    )  # fmt: skip


def measured(truth: Replica, grid: tuple[int, ...], noise: RepeatNoise, rng: random.Random) -> Replica:
    """What a study sees of it."""
    found = Measured(rate_per_s={b: {} for b in grid}, power_w={b: {} for b in grid}, rest_w={}, slo_share={})
    assert truth.power_w is not None
    assert truth.rest_w is not None
    for repeat in REPEATS:
        start = [math.exp(rng.gauss(0, START_SD)) for _ in range(3)]
        for b in grid:
            cell = [math.exp(rng.gauss(0, CELL_SD)) for _ in range(2)]
            found.rate_per_s[b][repeat] = float(truth.rate_per_s[0, b - 1]) * start[0] * cell[0]
            found.power_w[b][repeat] = float(truth.power_w[0, b - 1]) * start[1] * cell[1]
        found.rest_w[repeat] = float(truth.rest_w[0]) * start[2]
    return found.replica(truth.target, truth.precision, noise)


def true_joules(truth: Replica, rate_per_s: float) -> float | None:
    share = Fleet(truth, 0.99).for_rate(rate_per_s)
    if not isinstance(share, Share) or share.power_w is None:
        return None
    return float(share.power_w[0]) / rate_per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    presets, rng = load_presets(), random.Random(args.seed)
    truths = {
        (gpu, model, name): true_replica(presets.cost(name, gpu=gpu, model=model), name)
        for gpu in GPUS
        for model in MODELS
        for name in PRECISIONS
    }  # fmt: skip
    noise = RepeatNoise(set(REPEATS), resamples=RESAMPLES, seed=args.seed)
    print(f"SIMULATED; {args.studies} studies a grid, true difference {DIFFERENT:.0%} or more")
    print("| B | decided | wrong of all | 95% CI |\n|---|---:|---:|---:|")
    for label, grid in GRIDS.items():
        found: Counter[str] = Counter()
        while found["all"] < args.studies:
            gpu, model = rng.choice(sorted({key[:2] for key in truths}))
            names = rng.sample(sorted(key[2] for key in truths if key[:2] == (gpu, model)), 2)
            pair = [truths[gpu, model, name] for name in names]
            batch = math.exp(rng.uniform(0, math.log(60)))
            rate = float(np.interp(batch, np.arange(1, MOST + 1), pair[0].rate_per_s[0]))
            joules = [true_joules(truth, rate) for truth in pair]
            if None in joules or abs(math.log((joules[0] or 1) / (joules[1] or 1))) < math.log(1 + DIFFERENT):
                continue
            noise = RepeatNoise(set(REPEATS), resamples=RESAMPLES, seed=rng.randrange(2**31))
            advice = choose([measured(truth, grid, noise, rng) for truth in pair], Demand(rate_per_s=rate))
            best = names[0] if (joules[0] or 0) < (joules[1] or 0) else names[1]
            found["all"] += 1
            found["decided"] += advice.decided
            found["wrong"] += advice.decided and advice.choice != best
        low, high = wilson_interval(found["wrong"], found["all"])
        share = found["wrong"] / found["all"]
        print(
            f"| {label} | {found['decided'] / found['all']:.1%} | {share:.1%} | {low:.1%} to {high:.1%} |", flush=True
        )


if __name__ == "__main__":
    main()
