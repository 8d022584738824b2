"""What does B* cost, searched for and on a grid? Simulated studies with known truth, both beside each other.

    python -m bench.find                      # ten to thirteen minutes of one core; prints the tables of docs/find.md
    python -m bench.find --studies 3          # 3 instead of 10 studies of each curve and noise
    python -m bench.find --seed 41            # curves that had no part in the choice of the design

Curves are cost models of the simulator (loadgen/serving/simulated/cost.py) with random constants, in closed form. Every
study measures one with noise: a server's start has an error that all of its cells share, and each cell has its own.
The search is `loadgen.search.design.search`, called as a sweep calls it; a grid's B* is that of `crossover`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from bench.crossover_recovery import Truth, curve_of, hill, random_sides, true_crossings
from loadgen.analysis.crossover.crossing import Crossing
from loadgen.analysis.crossover.crossover import crossover
from loadgen.analysis.crossover.curve import Curve, CurvePoint
from loadgen.analysis.estimate import wilson_interval
from loadgen.search.answer import Answer, FoundCrossing
from loadgen.search.design import Reading, search
from loadgen.search.goal import MOST_REPEATS, Goal
from loadgen.search.root import ALPHA, BEND, FEWEST, SPACING, Noise, Point, root_of
from loadgen.serving.simulated.cost import load_presets

CURVES = 120
SEED = 29
"""Of the curves. The design was chosen on these, those of 21 and 480 of 101; nothing was changed after a look at those
of 41. Those of 37 were looked at with an earlier design."""
STUDIES = 10
NOISES = ((0.003, 0.003), (0.01, 0.005), (0.02, 0.01))
"""Of a start and of a cell: relative standard deviations of a side's figure."""
WITHIN = 0.1
METRIC = "tokens_per_s"
ALL = tuple(range(1, 257))
COARSE = tuple(sorted({round(b) for b in np.geomspace(1, 256, 33)}))
GRIDS = {
    "1, 16, 64, 128 × 3": ((1, 16, 64, 128), 3),
    "1, 2, 4, ..., 128 × 3": ((1, 2, 4, 8, 16, 32, 64, 128), 3),
    "1, 2, 4, ..., 128 × 10": ((1, 2, 4, 8, 16, 32, 64, 128), 10),
}
GRID_SHARE = 3
"""A grid is analysed in one of so many studies: it takes a hundred times as long to compute as a search's interval."""


class Outcome(msgspec.Struct, frozen=True):
    """One study."""

    cells: int
    starts: int
    minutes: float
    reported: bool = False
    """With an interval."""
    covered: bool = False
    narrow: bool = False
    """Its ends are no farther apart than +-`WITHIN` is: the upper one at most 1.21 times the lower one."""


def cost_curves(rng: np.random.Generator, count: int, kind: Callable[[list[float]], bool]) -> Iterator[Truth]:
    """Random cost models whose crossings from B = 1 to 256 are of that kind."""
    presets = load_presets()
    found = 0
    while found < count:
        drawn = random_sides(rng, presets)
        if kind([b for b, _ in true_crossings(curve_of(*drawn, COARSE))]):
            truth = curve_of(*drawn, ALL)
            if kind([b for b, _ in true_crossings(truth)]):
                found += 1
                yield truth


def one_inside(crossings: list[float]) -> bool:
    return len(crossings) == 1 and 4 <= crossings[0] <= 117


def none(crossings: list[float]) -> bool:
    return not crossings


class Lab:
    """Servers of known curves, measured with noise."""

    def __init__(self, rng: np.random.Generator, truth: Truth, start_sd: float, cell_sd: float) -> None:
        self.rng, self.truth, self.start_sd, self.cell_sd = rng, truth, start_sd, cell_sd

    def measured(self, target: bool, batches: Sequence[int]) -> list[float]:
        """The figures of one start of a side."""
        common = self.start_sd * self.rng.standard_normal()
        own = self.cell_sd * self.rng.standard_normal(len(batches))
        at = np.searchsorted(self.truth[0], batches)
        logs = common + own + (self.truth[2][at] if target else 0.0)
        return [float(value) for value in 100 * np.exp(logs)]

    def running(self, b: int) -> float:
        return float(self.truth[1][np.searchsorted(self.truth[0], b)])


def searched(lab: Lab, goal: Goal) -> tuple[Outcome, Answer]:
    """A search to its end; the outcome is that of its first crossing."""
    readings: list[Reading] = []
    while (done := search(goal, ("fp16", "awq"), readings)).next is not None:
        for start in done.next.starts:
            values = lab.measured(start.side == "awq", start.concurrency)
            readings += [
                Reading(
                    repeat=done.next.repeat,
                    side=start.side,
                    concurrency=b,
                    running=lab.running(b),
                    values={METRIC: value},
                )
                for b, value in zip(start.concurrency, values, strict=True)
            ]
    starts = [start for step in done.steps for start in step.starts]
    answer = done.answers[0]
    outcome = Outcome(len(readings), len(starts), goal.price_s(starts) / 60)
    if answer.status == "crosses" and len(answer.crossings) == 1:
        outcome = judged(outcome, lab.truth, answer.crossings[0])
    return outcome, answer


def on_grid(lab: Lab, grid: Sequence[int], repeats: int, goal: Goal) -> Outcome:
    """A study on a grid, with a start of each side in every repeat."""
    sides = [[lab.measured(target, grid) for _ in range(repeats)] for target in (True, False)]
    curves = [
        Curve(
            target=name,
            points=tuple(
                CurvePoint(concurrency=b, running=lab.running(b), values=tuple(repeat[i] for repeat in side))
                for i, b in enumerate(grid)
            ),
        )
        for name, side in zip(("awq", "fp16"), sides, strict=True)
    ]
    found = crossover(curves[0], curves[1], METRIC)
    cells, starts = 2 * repeats * len(grid), 2 * repeats
    outcome = Outcome(cells, starts, (cells * goal.cell_s + starts * goal.start_s) / 60)
    return judged(outcome, lab.truth, found.crossings[0]) if len(found.crossings) == 1 else outcome


def judged(outcome: Outcome, truth: Truth, crossing: Crossing | FoundCrossing) -> Outcome:
    """The same with what became of its interval."""
    if crossing.lo is None or crossing.hi is None:
        return outcome
    return msgspec.structs.replace(
        outcome,
        reported=True,
        covered=any(crossing.lo <= b <= crossing.hi for b, _ in true_crossings(truth)),
        narrow=crossing.hi / crossing.lo <= (1 + WITHIN) ** 2 + 1e-9,
    )


def row(name: str, outcomes: Sequence[Outcome]) -> str:
    """One design at one noise: means, and shares of studies."""
    count, reported = len(outcomes), [outcome for outcome in outcomes if outcome.reported]
    cells, starts, minutes = (
        float(np.mean([getattr(outcome, of) for outcome in outcomes])) for of in ("cells", "starts", "minutes")
    )
    narrow = sum(outcome.narrow for outcome in reported)
    right = sum(outcome.narrow and outcome.covered for outcome in reported)
    covered = sum(outcome.covered for outcome in reported)
    low, high = wilson_interval(covered, len(reported)) if reported else (math.nan, math.nan)
    share = f"{covered / len(reported):.1%} ({low:.1%} to {high:.1%})" if reported else ""
    return (
        f"| {name} | {cells:.0f} | {starts:.0f} | {minutes:.0f} | {narrow / count:.0%} | {right / count:.0%} "
        f"| {share} |"
    )


HEAD = (
    "| design | cells | starts | minutes | within ±10% | and right | B\\* covered, of all intervals (Wilson) |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def crossing_tables(curves: Sequence[Truth], studies: int, goal: Goal) -> Iterator[str]:
    """A table for each noise: the search, with the noise unknown and known, and the grids."""
    for place, (start_sd, cell_sd) in enumerate(NOISES):
        known = Noise(sd=math.sqrt(2 * (start_sd**2 + cell_sd**2)), degrees=8)
        designs: dict[str, Callable[[Lab], Outcome]] = {
            "`--find`": lambda lab: searched(lab, goal)[0],
            "`--find`, noise known (8 degrees)": lambda lab, known=known: searched(
                lab, msgspec.structs.replace(goal, noise={METRIC: known})
            )[0],
        }
        for name, (grid, repeats) in GRIDS.items():
            designs[name] = lambda lab, grid=grid, repeats=repeats: on_grid(lab, grid, repeats, goal)
        yield f"\nStarts differ by {start_sd:.1%}, cells by {cell_sd:.1%}\n\n{HEAD}"
        for number, (name, design) in enumerate(designs.items()):
            rng = np.random.default_rng([21, place, number])
            times = studies if number < 2 else max(1, studies // GRID_SHARE)
            yield row(name, [design(Lab(rng, truth, start_sd, cell_sd)) for truth in curves for _ in range(times)])


def verdict_table(name: str, curves: Sequence[Truth], studies: int, goal: Goal, seed: int) -> Iterator[str]:
    """Where there is no crossing or there are two: what is said, and how often it is false."""
    for start_sd, cell_sd in NOISES:
        rng = np.random.default_rng([22, seed, round(1000 * start_sd)])
        cells = right = wrong = total = 0
        minutes = 0.0
        for truth in curves:
            for _ in range(studies):
                outcome, answer = searched(Lab(rng, truth, start_sd, cell_sd), goal)
                total, cells, minutes = total + 1, cells + outcome.cells, minutes + outcome.minutes
                said = verdict(truth, answer)
                right, wrong = right + (said == "right"), wrong + (said == "wrong")
        yield (
            f"| {name} | {start_sd:.1%} / {cell_sd:.1%} | {cells / total:.0f} | {minutes / total:.0f} "
            f"| {right / total:.0%} | {wrong / total:.1%} |"
        )


def verdict(truth: Truth, answer: Answer) -> str:
    """`right`: every true crossing, and no other, has an interval, and all hold; or none, and the sign is right."""
    true = [b for b, _ in true_crossings(truth)]
    if answer.status in ("better", "worse"):
        return "right" if not true and (truth[2][0] > 0) == (answer.status == "better") and truth[2].any() else "wrong"
    if answer.status != "crosses":
        return "open"
    bounded = [(found.lo, found.hi) for found in answer.crossings if found.lo is not None and found.hi is not None]
    if not all(any(lo <= b <= hi for b in true) for lo, hi in bounded):
        return "wrong"
    return "right" if len(bounded) == len(true) else "open"


def looks(draws: int = 1000) -> Iterator[str]:
    """Coverage of the interval at which a search stops, with normal noise of every size: straight curves, and those
    whose slope changes as much as the margin for the bend allows."""
    half, rng = math.log(SPACING), np.random.default_rng(23)
    yield "\n| noise of a repeat / slope | straight | as bent as allowed | repeats |\n| --- | --- | --- | --- |"
    for noise in (0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.22, 0.3):
        shares, repeats = [], 0
        for change in (0.0, 2 * BEND):
            roots = []
            for _ in range(draws):
                zero, points = rng.uniform(-0.6, 0.6) * half, list[Point]()
                root = None
                while len(points) < MOST_REPEATS and (root is None or root.width > math.log1p(WITHIN)):
                    x = half if len(points) % 2 else -half
                    level = (zero - x) * (1 - change / 2 * (zero - x))
                    points.append(Point(x, level + noise * rng.standard_normal()))
                    root = root_of(points) if len(points) >= FEWEST else None
                repeats += len(points)
                if root is not None and root.lo is not None and root.hi is not None:
                    roots.append(root.lo <= zero <= root.hi)
            shares.append(f"{np.mean(roots):.1%}")
        yield f"| {noise:.2f} | {' | '.join(shares)} | {repeats / draws / 2:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=CURVES)
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--seed", type=int, default=SEED, help="of the curves")
    arguments = parser.parse_args()
    began, goal = time.monotonic(), Goal(metrics=(METRIC,), within=WITHIN)
    rng = np.random.default_rng(arguments.seed)
    curves = list(cost_curves(rng, arguments.curves, one_inside))
    stars = [true_crossings(truth)[0][0] for truth in curves]
    print(f"{len(curves)} curves, B* from {min(stars):.1f} to {max(stars):.1f}, {arguments.studies} studies of each")
    for line in crossing_tables(curves, arguments.studies, goal):
        print(line, flush=True)
    print("\n| curves | starts / cells | cells | minutes | right | false |\n| --- | --- | --- | --- | --- | --- |")
    level = (np.array(ALL, dtype=float), np.array(ALL, dtype=float), np.zeros(len(ALL)))
    others = {
        "no crossing": list(cost_curves(rng, arguments.curves, none)),
        "two crossings": [hill(rng) for _ in range(arguments.curves)],
        "A/A": [level] * arguments.curves,
    }
    for seed, (name, each) in enumerate(others.items()):
        for line in verdict_table(name, each, max(1, arguments.studies // 10), goal, seed):
            print(line, flush=True)
    for line in looks():
        print(line, flush=True)
    print(f"\nalpha {ALPHA}; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
