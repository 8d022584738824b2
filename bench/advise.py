"""How often is advice wrong, and how far is it from what an open loop measures?

    python bench/advise.py             # about 4 minutes; prints the first table of docs/advise.md
    python bench/advise.py --engine bench/results/advise.json     # about half a minute; the table of its verification
    python bench/advise.py --verify bench/results/advise-verified.json --runs FOLDER   # 23 minutes, quiet: over sockets

Wrong choices: made studies of two precisions whose curves and noise are known.
The truth is the simulator's closed form (SIMULATED): X(B) and P(B) of a GPU, a model and a precision, at every B. A
study measures a grid of B in three repeats; every start of a server multiplies all its rates, and all its powers, by a
lognormal factor (1%), every cell by another (0.5%). The demand is a rate that keeps 1 to 60 requests in flight.
A choice counts where the true joules a query differ by 3% or more; it is wrong if loadgen calls it decided and the
other is better.

Engine: the simulator's steps one by one, in virtual time, under Poisson arrivals, beside the advice of the closed form
at the same batches: 6 rates x 4 precisions, 3,000 requests each. This tells the model's own error.

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
from statistics import fmean
from typing import Any

import msgspec
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


RATES_PER_S, REQUESTS, WARM_UP_S, SHORT_PROMPT = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0), 3000, 20.0, 135


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What came and what happened after the warm-up."""

    rate_per_s: float
    tokens: float
    """Mean length of an answer."""
    power_w: float
    in_flight: float
    e2e_s: float


def stepped(cost: Cost, rate_per_s: float, rng: random.Random) -> Seen:
    """The engine in virtual time: a step decodes a token of each sequence and processes the prompts that came during
    the step before; between steps it idles if there is nothing to do."""
    now, end = 0.0, WARM_UP_S + REQUESTS / rate_per_s
    due, waiting, active = rng.expovariate(rate_per_s), list[list[float]](), list[list[float]]()
    joules, held, ended = 0.0, 0.0, list[float]()
    lengths: list[float] = []

    def come(until: float) -> None:
        nonlocal due, held
        while due <= until:
            tokens = max(1, round(rng.lognormvariate(math.log(64) - 0.08, 0.4)))
            waiting.append([due, tokens, 0.0])
            if due > WARM_UP_S:
                lengths.append(tokens)
                held += until - due
            due += rng.expovariate(rate_per_s)

    while now < end:
        new, before = waiting, now
        waiting = []
        if not new and not active:
            watts, now = cost.gpu.idle_w, due
        else:
            context = sum(SHORT_PROMPT + done for _, _, done in active)
            step = cost.step(batch=len(active), context_tokens=context, prefill_tokens=len(new) * SHORT_PROMPT)
            watts, now = step.power_w, now + step.duration_s
        active += new
        if now > WARM_UP_S:
            joules += watts * (now - before)
            held += len(active) * (now - before)
        for one in active:
            one[2] += 1
        ended += [now - came for came, tokens, done in active if done >= tokens and came > WARM_UP_S]
        active = [one for one in active if one[2] < one[1]]
        come(now)
    window_s = now - WARM_UP_S
    return Seen(rate_per_s=len(lengths) / window_s, tokens=fmean(lengths), power_w=joules / window_s,
                in_flight=held / window_s, e2e_s=fmean(ended))  # fmt: skip


def check_engine(out: Path) -> None:
    """Writes `out` and prints the table."""
    arms = []
    for rate in RATES_PER_S:
        for name in VERIFIED:
            cost = load_presets().cost(name)
            seen = stepped(cost, rate, random.Random(rate))
            states = {b: closed_loop(cost, b, SHORT_PROMPT, seen.tokens) for b in BATCHES}
            found = Measured(rate_per_s={b: {1: state.tokens_per_s / seen.tokens} for b, state in states.items()},
                             power_w={b: {1: state.power_w} for b, state in states.items()},
                             rest_w={1: cost.gpu.idle_w})  # fmt: skip
            replica = found.replica(name, name, RepeatNoise({1}, resamples=RESAMPLES, seed=1))
            load = replica.load(np.full(len(replica.rate_per_s), seen.rate_per_s))
            power = replica.power(load)
            assert power is not None
            predicted = {"energy_per_query_j": float(power[0]) / seen.rate_per_s, "in_flight": float(load.in_flight[0]),
                         "e2e_s": float(load.in_flight[0]) / seen.rate_per_s, "power_w": float(power[0])}  # fmt: skip
            happened = {"energy_per_query_j": seen.power_w / seen.rate_per_s, "in_flight": seen.in_flight,
                        "e2e_s": seen.e2e_s, "power_w": seen.power_w}  # fmt: skip
            arms.append({"target": name, "rate_asked_per_s": rate, "rate_per_s": seen.rate_per_s, **{
                figure: {"predicted": value, "measured": happened[figure], "difference": happened[figure] / value - 1}
                for figure, value in predicted.items()
            }})  # fmt: skip
    out.write_text(json.dumps({"simulated": True, "virtual_time": True, "arms": arms}, indent=1) + "\n")
    show(arms)


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
                if arm.refusal is not None or arm.rate_per_s is None or arm.tokens_per_answer is None:
                    print(f"{arm.target} at {rate:g}/s is not compared: {arm.refusal}", flush=True)
                    continue
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
    """The table of docs/advise.md: the largest differences of each rate, and the worst of all."""
    shown = {"energy_per_query_j": "J/query", "in_flight": "in flight", "e2e_s": "E2E"}
    print(f"| requests/s asked | {' | '.join(shown.values())} |\n|---:|" + "---:|" * len(shown))
    for rate in dict.fromkeys(arm["rate_asked_per_s"] for arm in arms):
        alike = [arm for arm in arms if arm["rate_asked_per_s"] == rate]
        worst = [
            max((arm[name]["difference"] for arm in alike if name in arm), key=abs, default=None) for name in shown
        ]
        print(f"| {rate:g} | {' | '.join('' if off is None else f'{off:+.1%}' for off in worst)} |")
    pairs = [arm[name] for arm in arms for name in shown if name in arm]
    most = max(abs(pair["difference"]) for pair in pairs)
    print(f"{len(arms)} cells, largest difference {most:.1%}")
    if known := [pair for pair in pairs if "lo" in pair]:
        inside = sum(pair["lo"] <= pair["predicted"] <= pair["hi"] for pair in known)
        print(f"{inside} of {len(known)} predictions inside the interval")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verify", type=Path, metavar="FILE", help="measure, and write the figures there")
    parser.add_argument("--runs", type=Path, default=Path("advise-runs"), help="where the runs are, or are made")
    parser.add_argument("--engine", type=Path, metavar="FILE", help="step the engine, and write the figures there")
    args = parser.parse_args()
    if args.engine:
        check_engine(args.engine)
        return
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
