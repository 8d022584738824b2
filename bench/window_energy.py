"""Does the interval of energy per token inside one window cover? Power that is correlated over known times.

    python bench/window_energy.py      # about 2 minutes; prints a table of results/coverage.md, writes bench/results

Power is AR(1), mean 300 W, sd 5%: its autocorrelation falls exponentially. Tokens come in steps of 16, 25 ms apart on
average with 5% of scatter. The truth is the long-run joules per token. "Old" is the rule of earlier versions: a
circular bootstrap over parts of 1 s in blocks as long as an answer.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import signal

from loadgen.analysis.celldata import Floats, Ints
from loadgen.analysis.energy import interval_of_window, tokens_by_part
from loadgen.analysis.estimate import NORMAL_95, wilson_interval
from loadgen.power.trace import PowerTrace

WINDOWS = 1000
OLD_WINDOWS = 300
"""Those that the old rule is tried on: its bootstrap is slow."""
ANSWERS_S = (0.5, 4.0)
"""Which only the old rule looks at."""
MEAN_W, SD = 300.0, 0.05
STEP_S, STEP_TOKENS, STEP_SD = 0.025, 16, 0.05
MARGIN_S = 1.0
"""Samples and tokens beyond the window's edges."""
FEWEST_GIVEN = 50
"""Intervals of which a coverage is told."""


class Case(NamedTuple):
    """Windows of one kind."""

    name: str
    window_s: float
    tau_s: float
    """In which the autocorrelation of power falls to 1/e."""
    rate_hz: float
    white: float = 0.0
    """Sd of what every reading has of its own, relative to the mean."""
    mean_s: float = 0.0
    """Over which the sensor averages."""
    step_tau_s: float = 0.0
    """Correlation time of the steps' length; 0: they are independent."""


def cases() -> Iterator[Case]:
    """The grid, and what differs from it in one thing."""
    for window_s in (20.0, 60.0, 120.0):
        for tau_s in (0.1, 0.3, 1.0, 3.0):
            for rate_hz in (10.0, 100.0):
                yield Case("AR(1)", window_s, tau_s, rate_hz)
    yield Case("AR(1), window of 1 s", 1.0, 0.1, 100.0)
    yield Case("with white noise of 10% at each reading", 60.0, 1.0, 50.0, white=0.1)
    yield Case("sensor that averages 1 s", 60.0, 0.3, 50.0, mean_s=1.0)
    yield Case("steps that sway too", 60.0, 0.3, 50.0, step_tau_s=1.0)


def swaying(rng: np.random.Generator, shape: tuple[int, int], steps_in_tau: float) -> Floats:
    """Unit variance, autocorrelation exp(-lag / steps_in_tau) along the second axis."""
    kept = math.exp(-1 / steps_in_tau)
    drawn = rng.standard_normal(shape)
    drawn[:, 1:] *= math.sqrt(1 - kept**2)
    swayed: Floats = signal.lfilter([1.0], [1.0, -kept], drawn, axis=1)
    return swayed


class Window(NamedTuple):
    """One made window, from MARGIN_S on."""

    t_ns: Ints
    watts: Floats
    token_t_ns: Ints
    span: tuple[int, int]


def windows(rng: np.random.Generator, case: Case, count: int) -> Iterator[Window]:
    """Made windows of a case, each on its own."""
    ahead_s = MARGIN_S + case.mean_s
    readings = round((case.window_s + ahead_s + MARGIN_S) * case.rate_hz)
    power = swaying(rng, (count, readings), case.tau_s * case.rate_hz)
    power += case.white / SD * rng.standard_normal(power.shape)
    if case.mean_s:
        width = round(case.mean_s * case.rate_hz)
        power = signal.lfilter(np.full(width, 1 / width), [1.0], power, axis=1)
    t_ns = np.round(np.arange(readings) / case.rate_hz * 1e9).astype(np.int64)
    steps = round((case.window_s + ahead_s + MARGIN_S) / STEP_S * 1.1)
    pace = swaying(rng, (count, steps), case.step_tau_s / STEP_S if case.step_tau_s else 1e-3)
    ends_ns = np.cumsum(STEP_S * (1 + STEP_SD * pace), axis=1) * 1e9
    span = round(ahead_s * 1e9), round((ahead_s + case.window_s) * 1e9)
    for swayed, ended in zip(power, ends_ns, strict=True):
        yield Window(t_ns, MEAN_W * (1 + SD * swayed), ended.astype(np.int64), span)


def per_token_j(window: Window) -> float:
    """The figure: trapezoid of power over the window / the tokens in it."""
    first, last = window.span
    inside = (window.t_ns >= first) & (window.t_ns <= last)
    steps = np.count_nonzero((window.token_t_ns > first) & (window.token_t_ns <= last))
    return float(np.trapezoid(window.watts[inside], window.t_ns[inside] / 1e9) / (steps * STEP_TOKENS))


def new_half_width(window: Window) -> float | None:
    """What the package says."""
    missing = np.full(len(window.t_ns), np.nan)
    names = [name for name in PowerTrace.__struct_fields__ if name not in ("gpu", "t_ns", "processes", "errors")]
    columns = dict.fromkeys(names, missing) | {"power_instant_w": window.watts}
    trace = PowerTrace(gpu="GPU", t_ns=window.t_ns, processes=[], errors=[], **columns)
    counts = np.full(len(window.token_t_ns), STEP_TOKENS, dtype=np.int32)
    return interval_of_window(window.token_t_ns, counts, [trace], window.span)[0]


def old_interval(answer_s: float) -> Callable[[Window], float | None]:
    """The old rule's half-width on logarithms, for answers of that length."""

    def half_width(window: Window) -> float | None:
        seconds = (window.span[1] - window.span[0]) / 1e9
        parts = max(12, round(seconds))
        edges = np.linspace(*window.span, parts + 1)
        course = np.concatenate([[0.0], np.cumsum((window.watts[1:] + window.watts[:-1]) / 2 * np.diff(window.t_ns))])
        joules = np.diff(np.interp(edges, window.t_ns, course)) / 1e9
        counts = np.full(len(window.token_t_ns), STEP_TOKENS, dtype=np.int32)
        tokens, _ = tokens_by_part(window.token_t_ns, counts, window.span, parts)
        block = min(max(round(answer_s / (seconds / parts)), 1), parts // 3)
        starts = np.random.default_rng(0).integers(0, parts, size=(1000, -(-parts // block)))
        drawn = ((starts[:, :, None] + np.arange(block)) % parts).reshape(1000, -1)[:, :parts]
        low, high = np.quantile(joules[drawn].sum(axis=1) / tokens[drawn].sum(axis=1), [0.025, 0.975])
        return float(math.log(high / low) / 2)

    return half_width


def judged(figures: Floats, halves: list[float | None], truth: float, spread: float) -> dict[str, Any]:
    """Share of windows with an interval, its coverage, and its median half-width over the right one."""
    given = np.array([half is not None for half in halves])
    found: dict[str, Any] = {"given": float(given.mean())}
    if given.sum() < FEWEST_GIVEN:
        return found
    widths = np.array([half for half in halves if half is not None])
    covers = np.abs(np.log(figures[: len(halves)][given] / truth)) <= widths
    lower, upper = wilson_interval(float(covers.sum()), len(covers))
    width = float(np.median(widths)) / (NORMAL_95 * spread)
    return found | {"covered": float(covers.mean()), "lower": lower, "upper": upper, "width": width}


def study(case: Case, seed: int, count: int) -> dict[str, Any]:
    """One case: the rule as it is, and the old one for each length of answers."""
    made = list(windows(np.random.default_rng([seed, 2611]), case, count))
    figures = np.array([per_token_j(window) for window in made])
    spread = float(np.log(figures).std(ddof=1))
    truth = MEAN_W * STEP_S / STEP_TOKENS
    rules = {"new": judged(figures, [new_half_width(window) for window in made], truth, spread)}
    for answer_s in ANSWERS_S:
        old = [old_interval(answer_s)(window) for window in made[:OLD_WINDOWS]]
        rules[f"old, answers {answer_s:g} s"] = judged(figures, old, truth, spread)
    return case._asdict() | {"times": case.window_s / case.tau_s, "spread": spread, "rules": rules}


def shown(rule: dict[str, Any]) -> str:
    """A cell of the table."""
    if "covered" not in rule:
        return "–"
    return f"{rule['covered']:.1%} ({rule['lower']:.1%}), {rule['width']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "window_energy.json")
    options = parser.parse_args()
    results = []
    for place, case in enumerate(cases()):
        found = study(case, options.seed + place, options.windows)
        results.append(found)
        rules = found["rules"]
        print(
            f"| {case.name} | {case.window_s:g} s | {case.tau_s:g} s | {case.rate_hz:g} Hz | {found['times']:.0f} | "
            f"{rules['new']['given']:.1%} | " + " | ".join(shown(rule) for rule in rules.values()) + " |",
            flush=True,
        )
    options.out.write_text(json.dumps({"windows": options.windows, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
