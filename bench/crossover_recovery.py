"""Are crossovers found where they are, and not where there are none? Simulated studies with known truth.

    python bench/crossover_recovery.py     # about ten minutes of one core; prints tables of results/coverage.md, and
                                           # writes bench/results/crossover_recovery.json

Every study draws a true curve of the log-advantage over the batch, measures it at the batches of a grid in `REPEATS`
noisy repeats, and goes through the package's own `crossover`. Beside it, on the same studies: linear interpolation with
a bootstrap that draws repeats. Besides B*, every proven sign at a measured batch is held against the truth.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from loadgen.analysis.celldata import Floats
from loadgen.analysis.crossover.crossing import Crossing, shared_sizes
from loadgen.analysis.crossover.crossover import Crossover, crossover
from loadgen.analysis.crossover.curve import Curve, CurvePoint
from loadgen.analysis.estimate import wilson_interval
from loadgen.serving.simulated.cost import Cost, Presets, closed_loop, load_presets

STUDIES = 300
LEVEL_STUDIES = 1000
"""Without any difference: a crossing is allowed in one of a thousand."""
REPEATS = 3
NOISE = (0.01, 0.03)
"""Relative standard deviation of a value between repeats, drawn per study."""
GRIDS = {
    "fine": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "coarse": (1, 16, 64, 128),
    "high": (8, 24, 48, 80, 128),
    "two": (1, 64),
}
BATCHES = tuple(sorted({round(b) for b in np.geomspace(1, 256, 65)} | {b for grid in GRIDS.values() for b in grid}))
"""Where a smooth true curve is computed."""
WHOLE = np.arange(1, 257, dtype=float)
"""Where one with steps is."""

GRAPH_SIZES = shared_sizes((1, 2, 4, 8, 16, 32, 64, 128, 256), (1, 2, 4, *range(8, 257, 8)))
"""What a log tells of both servers of `padding`; given to the analysis in `padding_logged`."""
ITEM_ERROR = 0.02


Noise = Literal["independent", "one_percent", "shared", "uneven", "items", "one_noisy", "falling", "starts"]
NOISES: tuple[Noise, ...] = get_args(Noise)


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the result."""

    truth: str
    grid: str
    noise: Noise
    """`independent` in every cell; `one_percent`: the same, always 1%; `shared`: half of its variance is common to the
    cells of a side's repeat (one start of its server); `uneven`: every point has its own standard deviation; `items`:
    besides, an error of `ITEM_ERROR` that all cells share; `one_noisy`: 4% at one batch and 0.4% at the others;
    `falling`: 5% at B = 1, less by the root of B; `starts`: 0.5%, and 1 to 3% that all cells of a repeat share."""
    repeats: int = REPEATS


Truth = tuple[Floats, Floats, Floats]
"""Batches asked for, ascending; the running batches and the true log-advantage there."""
ASKED = np.array(BATCHES, dtype=float)


def cost_model(rng: np.random.Generator) -> Truth:
    """Tokens/s or joules per token of a random quantized cost model against FP16 in closed form, drawn until they
    cross (a third does)."""
    presets = load_presets()
    while True:
        truth = random_costs(rng, presets)
        if true_crossings(truth):
            return truth


def random_costs(rng: np.random.Generator, presets: Presets) -> Truth:
    return curve_of(*random_sides(rng, presets), BATCHES)


def random_sides(rng: np.random.Generator, presets: Presets) -> tuple[list[Cost], float, float, bool]:
    """A quantized cost model and FP16, the tokens of a prompt and an answer, and whether energy is compared."""
    gpu = presets.gpu[rng.choice(sorted(presets.gpu))]
    model = presets.model[rng.choice(["qwen3-0.6b", "falcon3-3b", "mistral-7b", "qwen2.5-14b"])]
    precision = presets.precision[rng.choice(["awq", "gptq", "bnb-nf4", "bnb-int8", "fp8", "int8"])]
    gpu = varied(rng, gpu, "bandwidth_bytes_s", "compute_flops", "launch_s", "sequence_s")
    precision = varied(
        rng, precision, "compute_factor", "extra_s_per_layer", "buffer_bytes_per_weight", "dequant_flops_per_weight"
    )
    prompt, answer = rng.integers(20, 500), rng.integers(50, 1000)
    energy = bool(rng.random() < 0.5)
    sides = [Cost(gpu=gpu, model=model, precision=p) for p in (precision, presets.precision["fp16"])]
    return sides, float(prompt), float(answer), energy


def curve_of(sides: Sequence[Cost], prompt: float, answer: float, energy: bool, batches: Sequence[int]) -> Truth:
    running, logs = [], []
    for b in batches:
        ours, theirs = (closed_loop(side, b, prompt, answer) for side in sides)
        running.append(ours.running)
        logs.append(
            math.log(theirs.energy_per_token_j / ours.energy_per_token_j)
            if energy
            else math.log(ours.tokens_per_s / theirs.tokens_per_s)
        )
    return np.array(batches, dtype=float), np.array(running), np.array(logs)


def varied(rng: np.random.Generator, entry: Any, *fields: str) -> Any:
    """The entry with these fields multiplied by lognormal factors of 50%."""
    return msgspec.structs.replace(
        entry, **{f: getattr(entry, f) * math.exp(0.5 * rng.standard_normal()) for f in fields}
    )


def monotone(rng: np.random.Generator) -> Truth:
    """A smooth fall or rise between two levels, centred anywhere, as narrow as an octave or as wide as the grid."""
    batch = ASKED
    u = np.log2(batch)
    step = np.tanh((u - rng.uniform(0, 8)) / rng.uniform(1, 6))
    return batch, batch, rng.choice([-1.0, 1.0]) * (rng.uniform(0.1, 0.6) * step + rng.uniform(-0.2, 0.2))


def hill(rng: np.random.Generator) -> Truth:
    """Two crossings, 2 to 5 octaves apart: above 0 between them and below elsewhere, or reversed."""
    batch = ASKED
    u = np.log2(batch)
    centre, half = rng.uniform(3, 5), rng.uniform(1, 2.5)
    height = rng.uniform(0.15, 0.6)
    width = half / math.sqrt(2 * math.log(2))
    bump = 2 * np.exp(-((u - centre) ** 2) / (2 * width**2)) - 1
    return batch, batch, rng.choice([-1.0, 1.0]) * height * bump


def log_linear(rng: np.random.Generator) -> Truth:
    """A straight line on log B, 2 to 20% per octave, that crosses anywhere."""
    slope = rng.choice([-1.0, 1.0]) * rng.uniform(0.02, 0.2)
    return ASKED, ASKED, slope * (np.log2(ASKED) - rng.uniform(0.3, 7.7))


def amortised(rng: np.random.Generator) -> Truth:
    """Time per token c0 + c1 / B on both sides: the target reads fewer weights and computes more, or reversed."""
    while True:
        ours, theirs = 10 ** rng.uniform(-2.5, -0.5, size=2)
        zero = 2 ** rng.uniform(0.3, 7.7)
        logs = np.log((theirs + 1 / ASKED) / (theirs + 1 / zero)) - np.log((ours + 1 / ASKED) / (ours + 1 / zero))
        if np.ptp(logs) > 0.1:
            return ASKED, ASKED, logs


def roofline(rng: np.random.Generator) -> Truth:
    """Step time the larger of a constant and a term that grows with B, with a sharp edge, on both sides; they are equal
    between the edges, which lie half an octave to four octaves apart."""
    first = rng.uniform(0.2, 6.5)
    edges = math.log(2) * np.array([first, first + rng.uniform(0.5, 4)])
    zero = rng.uniform(edges[0], min(edges[1], math.log(250)))
    steep, flat = (np.maximum(0.0, np.log(ASKED) - edge) - max(0.0, zero - edge) for edge in edges)
    return ASKED, ASKED, rng.choice([-1.0, 1.0]) * (steep - flat)


def plateau(rng: np.random.Generator) -> Truth:
    """A constant 2 to 30% up to some batch, and from there on a fall of 5 to 30% per octave."""
    fall = np.maximum(0.0, np.log2(ASKED) - rng.uniform(0.5, 6)) * rng.uniform(0.05, 0.3)
    return ASKED, ASKED, rng.choice([-1.0, 1.0]) * (rng.uniform(0.02, 0.3) - fall)


def padding(rng: np.random.Generator) -> Truth:
    """CUDA graphs: the reference's batches are padded to multiples of 8, the target's to powers of 2."""
    theirs = np.where(WHOLE <= 4, 2 ** np.ceil(np.log2(WHOLE)), 8 * np.ceil(WHOLE / 8))
    ours = 2 ** np.ceil(np.log2(WHOLE))
    edge, fixed = rng.uniform(10, 80), rng.uniform(1.2, 3)
    gain = rng.uniform(1.2, 2.5)
    logs = np.log((fixed + theirs / edge) / (fixed / gain + ours / edge * rng.uniform(1.1, 2)))
    return WHOLE, WHOLE, logs


def jump(rng: np.random.Generator) -> Truth:
    """A line with a step of 10 to 40% where a kernel switches."""
    line = -rng.uniform(0, 0.04) * (np.log2(WHOLE) - 4)
    step = rng.uniform(0.1, 0.4)
    above = step * (rng.uniform(1.5, 200) < WHOLE)
    return WHOLE, WHOLE, rng.choice([-1.0, 1.0]) * (line + above - step * rng.uniform(0.2, 0.8))


def level(rng: np.random.Generator) -> Truth:
    """A/A: no difference at any batch."""
    return ASKED, ASKED, np.zeros(len(BATCHES))


TRUTHS: dict[str, Callable[[np.random.Generator], Truth]] = {
    "log_linear": log_linear, "amortised": amortised, "roofline": roofline, "cost_model": cost_model,
    "monotone": monotone, "hill": hill, "plateau": plateau, "padding": padding, "padding_logged": padding,
    "jump": jump, "a_a": level,
}  # fmt: skip

STEPS = ("padding", "padding_logged", "jump")


def true_crossings(truth: Truth) -> list[tuple[float, str]]:
    """Batch and direction of every sign change, interpolated on log B between neighbouring batches."""
    x, y = np.log(truth[1]), truth[2]
    found = []
    for i in np.flatnonzero((y[:-1] > 0) != (y[1:] > 0)):
        place = x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1])
        found.append((math.exp(place), "wins_below" if y[i] > 0 else "wins_above"))
    return found


def measured(rng: np.random.Generator, truth: Truth, setting: Setting) -> tuple[Floats, Floats]:
    """Batches and log-advantages (points, repeats)."""
    at = places(truth, setting.grid)
    sigma = deviations(rng, setting)
    noise = rng.standard_normal((2, len(at), setting.repeats))
    if setting.noise == "shared":
        noise = math.sqrt(0.5) * (noise + rng.standard_normal((2, 1, setting.repeats)))
    common = ITEM_ERROR * rng.standard_normal() if setting.noise == "items" else 0.0
    if setting.noise == "starts":
        common = rng.uniform(0.01, 0.03) * math.sqrt(2) * rng.standard_normal(setting.repeats)
    return truth[1][at], truth[2][at][:, None] + (sigma * noise)[0] - (sigma * noise)[1] + common


def places(truth: Truth, grid: str) -> list[int]:
    return np.searchsorted(truth[0], GRIDS[grid]).tolist()


def deviations(rng: np.random.Generator, setting: Setting) -> Any:
    """Standard deviation of a side's value, by point."""
    grid = np.array(GRIDS[setting.grid], dtype=float)[:, None]
    if setting.noise == "uneven":
        return rng.uniform(*NOISE, size=grid.shape)
    if setting.noise == "one_noisy":
        return np.where(np.arange(len(grid)) == rng.integers(len(grid)), 0.04, 0.004)[:, None]
    if setting.noise == "falling":
        return 0.05 / np.sqrt(grid)
    if setting.noise == "one_percent":
        return 0.01
    return 0.005 if setting.noise == "starts" else rng.uniform(*NOISE)


def analysed(setting: Setting, batch: Floats, logs: Floats) -> Crossover:
    grid = GRIDS[setting.grid]

    def curve(name: str, values: Floats) -> Curve:
        return Curve(
            target=name,
            points=tuple(
                CurvePoint(concurrency=b, running=float(x), values=tuple(row))
                for b, x, row in zip(grid, batch, values.tolist(), strict=True)
            ),
        )

    return crossover(
        curve("target", np.exp(logs)),
        curve("reference", np.ones_like(logs)),
        "tokens_per_s",
        graph_sizes=GRAPH_SIZES if setting.truth == "padding_logged" else None,
        item_errors=dict.fromkeys(grid, ITEM_ERROR) if setting.noise == "items" else None,
    )


def bootstrap_interval(batch: Floats, logs: Floats, crossing: Crossing, grid: tuple[int, ...]) -> tuple[float, float]:
    """The plain way: whole repeats drawn with replacement (all draws of three), chords, percentiles of the zero."""
    x = np.log(batch)
    repeats = logs.shape[1]
    roots = []
    left, right = (grid.index(b) for b in crossing.bracket)
    for drawn in product(range(repeats), repeat=repeats):
        y = logs[:, list(drawn)].mean(axis=1)
        for i in range(left, right):
            if (y[i] > 0) != (y[i + 1] > 0):
                roots.append(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1]))
                break
    if not roots:
        return math.nan, math.nan
    low, high = np.exp(np.quantile(roots, [0.025, 0.975]))
    return float(low), float(high)


def study_shares(truths: Iterable[Truth], rng: np.random.Generator, setting: Setting) -> dict[str, Any]:
    """What became of the true crossings within the grid, and of the reported ones."""
    grid = GRIDS[setting.grid]
    studies = present = reported = covered = boot_covered = wrong = found = false_studies = false_verdicts = 0
    bracketed = undecided = false_signs = 0
    multiple = multiple_found = 0
    widths, errors = [], []
    for truth in truths:
        studies += 1
        batch, logs = measured(rng, truth, setting)
        result = analysed(setting, batch, logs)
        true = [(b, d) for b, d in true_crossings(truth) if batch[0] < b < batch[-1]]
        present += len(true)
        misplaced = 0
        for crossing in result.crossings:
            assert crossing.lo is not None and crossing.hi is not None
            low, high = (batch[grid.index(b)] for b in crossing.bracket)
            bracketed += any(low <= b <= high for b, _ in true)
            inside = [b for b, direction in true if direction == crossing.direction and low <= b <= high]
            reported += 1
            wrong += not inside
            misplaced += not inside
            covered += any(crossing.lo <= b <= crossing.hi for b in inside)
            if setting.repeats == REPEATS:
                plain = bootstrap_interval(batch, logs, crossing, grid)
                boot_covered += any(plain[0] <= b <= plain[1] for b in inside)
            widths.append(math.log2(crossing.hi / crossing.lo))
            errors += [abs(math.log2(crossing.b / b)) for b in inside]
        found += len(result.crossings) - misplaced
        false_studies += misplaced > 0
        there = truth[2][places(truth, setting.grid)]
        signs = {y > 0 for y in there}
        false_signs += any(point.proven * y <= 0 for point, y in zip(result.points, there, strict=True) if point.proven)
        undecided += result.status == "unresolved"
        honest = (signs == {True}) if result.status == "better" else (signs == {False})
        false_verdicts += result.status in ("better", "worse") and (not honest or not truth[2].any())
        multiple += len(true) > 1
        multiple_found += len(true) > 1 and len(result.crossings) == len(true) and not misplaced
    return {
        "studies": studies,
        "true_crossings": present,
        "reported": reported,
        "covered": covered / reported if reported else None,
        "covered_at_least": wilson_interval(covered, reported)[0] if reported else None,
        "bracketed": bracketed / reported if reported else None,
        "bootstrap_covered": boot_covered / reported if reported and setting.repeats == REPEATS else None,
        "direction_errors": wrong,
        "found": found / present if present else None,
        "false_crossover_studies": false_studies / studies,
        "false_sign_studies": false_signs / studies,
        "undecided": undecided / studies,
        "false_verdicts": false_verdicts / studies,
        "several": multiple,
        "several_found": multiple_found / multiple if multiple else None,
        "median_width_octaves": float(np.median(widths)) if widths else None,
        "median_error_octaves": float(np.median(errors)) if errors else None,
    }


def settings_of(name: str) -> list[Setting]:
    """A/A: every noise, one to five repeats, four grids. Curves that step: three repeats."""
    if name == "a_a":
        uneven: tuple[Noise, ...] = ("one_noisy", "falling")
        cases: list[tuple[str, Noise, int]] = list(product(("fine", "coarse"), NOISES, (REPEATS,)))
        cases += list(product(("fine", "coarse"), (*uneven, "starts"), (2, 5)))
        cases += list(product(("high", "two"), uneven, (3, 5)))
        cases += [("fine", "starts", 1), ("fine", "starts", 4), ("coarse", "one_noisy", 4)]
    else:
        kinds: tuple[Noise, ...] = ("independent", "one_percent", "one_noisy", "falling", "starts")
        kinds = NOISES if name == "cost_model" else kinds
        cases = [("fine", noise, REPEATS) for noise in kinds]
        cases += [("coarse", noise, REPEATS) for noise in ("independent", "one_percent", "falling")]
        if name not in STEPS:
            cases += [("fine", "starts", 1), ("fine", "one_noisy", 2), ("fine", "one_noisy", 5)]
            cases += [("fine", "starts", 2), ("fine", "starts", 5)]
    return [Setting(truth=name, grid=grid, noise=noise, repeats=repeats) for grid, noise, repeats in cases]


NAMES = {
    "log_linear": "straight on log B", "amortised": "c0 + c1 / B", "roofline": "roofline with hard edges",
    "cost_model": "cost models that cross", "monotone": "smooth step", "hill": "two crossings",
    "plateau": "plateau, then a fall", "padding": "CUDA graph padding", "padding_logged": "the same, sizes in the log",
    "jump": "one jump",
}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The tables of results/coverage.md: of three repeats by true curve, then of A/A by repeats."""
    columns: tuple[str, ...] = (
        "true curve", "covered (Wilson)", "lowest setting", "bracket", "octaves", "not decided", "1% noise",
        "false sign",
    )  # fmt: skip
    text = _row(columns) + _row(["---"] * len(columns))
    for name, words in NAMES.items():
        ours = [row for row in rows if row["truth"] == name and row["repeats"] == REPEATS]
        fine = [row for row in ours if row["grid"] == "fine"]
        if not ours:
            continue
        covered = sum(row["covered"] * row["reported"] for row in ours if row["reported"])
        reported = sum(row["reported"] for row in ours)
        lowest = min((row for row in ours if row["reported"]), key=lambda row: row["covered"])
        widths = [row["median_width_octaves"] for row in fine if row["median_width_octaves"]]
        text += (
            f"| {words} | {covered / reported:.1%} ({wilson_interval(round(covered), reported)[0]:.1%}) "
            f"| {lowest['covered']:.1%} of {lowest['reported']} ({lowest['covered_at_least']:.1%}) "
            f"| {_span([row['bracketed'] for row in ours if row['reported']])} | {min(widths):.2f}–{max(widths):.2f} "
            f"| {_span([row['undecided'] for row in fine])} "
            f"| {_span([row['undecided'] for row in ours if row['noise'] == 'one_percent'])} "
            f"| {max(row['false_sign_studies'] for row in ours):.1%} |\n"
        )
    equal = [row for row in rows if row["truth"] == "a_a"]
    columns = "A/A, repeats", "settings", "any false sign", "better or worse at every B", "a crossing"
    text += "\n" + _row(columns) + _row(["---"] * len(columns))
    for repeats in sorted({row["repeats"] for row in equal}):
        ours = [row for row in equal if row["repeats"] == repeats]
        crossings = sum(round(row["false_crossover_studies"] * row["studies"]) for row in ours)
        text += (
            f"| {repeats} | {len(ours)} | {_span([row['false_sign_studies'] for row in ours])} "
            f"| {_span([row['false_verdicts'] for row in ours])} | {crossings} of {sum(r['studies'] for r in ours)} |\n"
        )
    return text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _span(shares: list[float]) -> str:
    low, high = (f"{100 * share:.1f}" for share in (min(shares), max(shares)))
    return f"{low}%" if low == high else f"{low}–{high}%"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=STUDIES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "crossover_recovery.json")
    parser.add_argument("--truths", help="Only these, with commas between.")
    arguments = parser.parse_args()
    began = time.monotonic()
    rows = []
    for number, (name, draw) in enumerate(TRUTHS.items()):
        if arguments.truths and name not in arguments.truths.split(","):
            continue
        rng = np.random.default_rng([5, number])
        truths = [draw(rng) for _ in range(arguments.studies if name != "a_a" else LEVEL_STUDIES)]
        for place, setting in enumerate(settings_of(name)):
            noise = np.random.default_rng([5, number, place])
            rows.append(msgspec.structs.asdict(setting) | study_shares(truths, noise, setting))
            shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()}
            print(shown, flush=True)
    content = {"noise": NOISE, "item_error": ITEM_ERROR, "grids": GRIDS, "settings": rows}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(rows))
    print(f"{time.monotonic() - began:.0f} s; {arguments.out}")


if __name__ == "__main__":
    main()
