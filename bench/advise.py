"""How often is advice wrong, and how far is it from what an open loop measures?

    python bench/advise.py             # about 4 minutes; prints the first table of docs/advise.md
    python bench/advise.py --verify bench/results/advise.json --runs FOLDER     # about 20 minutes; the second table

Wrong choices: made studies of two precisions whose curves and noise are known.
The truth is the simulator's closed form (SIMULATED): X(B) and P(B) of a GPU, a model and a precision, at every B. A
study measures a grid of B in three repeats; every start of a server multiplies all its rates, and all its powers, by a
lognormal factor (1%), every cell by another (0.5%). The demand is a rate that keeps 1 to 60 requests in flight.
A choice counts where the true joules a query differ by 3% or more; it is wrong if loadgen calls it decided and the
other is better.

Verification: four simulated servers at twice their speed (SIMULATED), closed loops at B = 1 to 32 in two repeats, then
`loadgen.advise(..., verify=True)` at six rates. Beside them is the advice of the closed form for the same requests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import loadgen
from loadgen.analysis.advise import Advice, Demand, choose
from loadgen.analysis.estimate import wilson_interval
from loadgen.analysis.indices.formulas import RepeatNoise
from loadgen.analysis.replica import RESAMPLES, Fleet, Measured, Replica, Share
from loadgen.serving.process import free_port
from loadgen.serving.simulated.cost import Cost, closed_loop, load_presets

GRIDS = {"1, 16, 64, 128": (1, 16, 64, 128), "1, 2, 4, ... 128": tuple(2**k for k in range(8))}
REPEATS, START_SD, CELL_SD = (1, 2, 3), 0.01, 0.005
PROMPT, ANSWER = 700.0, 150.0
MOST = 128
DIFFERENT = 0.03
GPUS, MODELS = ("a100", "h100", "h200"), ("mistral-7b", "falcon3-3b", "qwen2.5-14b")
SCALE, BATCHES = 2, (1, 2, 4, 8, 16, 32)
WINDOWS_S = {2.0: 75, 4.0: 45, 8.0: 30, 12.0: 25, 16.0: 20, 20.0: 20}
"""By requests a second, at twice the speed: at least 150 requests each."""
VERIFIED = ("fp16", "awq", "gptq", "bnb-nf4")
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


@contextlib.contextmanager
def servers() -> Iterator[dict[str, str]]:
    """The URL of a simulated server for each precision."""
    with contextlib.ExitStack() as stack:
        urls = {}
        for name in VERIFIED:
            port = free_port()
            argv = [sys.executable, "-m", "loadgen", "simulate", "--precision", name, "--port", str(port)]
            started = subprocess.Popen([*argv, "--time-scale", str(SCALE)], stdout=subprocess.DEVNULL)
            stack.callback(started.wait)
            stack.callback(started.terminate)
            urls[name] = f"http://127.0.0.1:{port}"
        yield urls


def closed_form_of(name: str, prompt: float, answer: float) -> Replica:
    """The truth, at the servers' speed: X and P times `SCALE`."""
    cost = load_presets().cost(name)
    states = [closed_loop(cost, b, prompt, answer) for b in range(1, BATCHES[-1] + 1)]
    return Replica(
        target=name, precision=name, gpus=1, fewest=1, slo_share=None, accuracy=None, drawn=False,
        rate_per_s=SCALE * np.array([[state.tokens_per_s / answer for state in states]]),
        power_w=SCALE * np.array([[state.power_w for state in states]]), rest_w=SCALE * np.array([cost.gpu.idle_w]),
    )  # fmt: skip


def verify(out: Path, runs: Path) -> None:
    """Measures what is not in `runs` yet, writes `out` and prints the table."""
    shared: dict[str, Any] = {"dataset": "sample", "metrics_port": None, "quiet": True}
    with servers() as urls:
        if not (runs / "closed").exists():
            loadgen.sweep(targets=urls, concurrency=BATCHES, duration=5, repeats=2, wait_ready=60,
                          out=runs / "closed", **shared)  # fmt: skip
        arms = []
        for rate, window_s in WINDOWS_S.items():
            advice = loadgen.advise(
                runs / "closed", rate=rate, verify=True, duration=window_s, out=runs / f"at-{rate:g}"
            )
            assert isinstance(advice, Advice)
            assert advice.verification is not None
            cells = loadgen.load_run(advice.verification.path).cells.set_index("target")
            requests = loadgen.load_run(advice.verification.path).requests
            prompts = requests.groupby("target")["prompt_tokens"].mean()
            for arm in advice.verification.arms:
                print(rate, arm, flush=True)
                assert arm.refusal is None, arm
                assert arm.rate_per_s is not None
                assert arm.tokens_per_answer is not None
                truth = closed_form_of(arm.target, float(prompts[arm.target]), arm.tokens_per_answer)
                load = truth.load(np.array([arm.rate_per_s]))
                power = truth.power(load)
                assert power is not None
                found = {one.figure: one for one in arm.figures}
                arms.append({
                    "target": arm.target, "rate_asked_per_s": rate, "rate_per_s": arm.rate_per_s,
                    "requests": int(cells["requests"][arm.target]), "window_s": arm.window_s,
                    "closed_form": {"energy_per_query_j": float(power[0]) / arm.rate_per_s,
                                    "in_flight": float(load.in_flight[0])},
                    **{name: {"predicted": one.predicted, "measured": one.measured.value, "lo": one.measured.lo,
                              "hi": one.measured.hi, "difference": one.difference} for name, one in found.items()},
                })  # fmt: skip
    out.write_text(json.dumps({"simulated": True, "time_scale": SCALE, "arms": arms}, indent=1) + "\n")
    show(arms)


def show(arms: Sequence[Mapping[str, Any]]) -> None:
    """The table of docs/advise.md."""
    each = "closed form | predicted | measured"
    print(
        f"| requests/s | precision | J/query: {each} | in flight: {each} | E2E off | W off |\n|---:|---|{'---:|' * 8}"
    )
    for arm in arms:
        figures = [arm["closed_form"][name] for name in ("energy_per_query_j", "in_flight")]
        pairs = [arm[name] for name in ("energy_per_query_j", "in_flight")]
        shown = [
            f"{form:.3g} | {pair['predicted']:.3g} | {pair['measured']:.3g}"
            for form, pair in zip(figures, pairs, strict=True)
        ]
        off = [f"{arm[name]['difference']:+.1%}" if name in arm else "" for name in ("e2e_s", "power_w")]
        print(f"| {arm['rate_per_s']:.3g} | {arm['target']} | {' | '.join([*shown, *off])} |")
    pairs = [
        arm[name] for arm in arms for name in ("energy_per_query_j", "in_flight", "e2e_s", "power_w") if name in arm
    ]
    inside = sum(pair["lo"] <= pair["predicted"] <= pair["hi"] for pair in pairs)
    print(f"largest difference {max(abs(pair['difference']) for pair in pairs):.1%}; {inside} of {len(pairs)} inside")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verify", type=Path, metavar="FILE", help="measure, and write the figures there")
    parser.add_argument("--runs", type=Path, default=Path("advise-runs"), help="where the runs are, or are made")
    args = parser.parse_args()
    if args.verify:
        verify(args.verify, args.runs)
        return
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
