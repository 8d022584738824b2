"""ModelStudy: the cost models of one target against the reference, fitted and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Literal

import msgspec
import numpy as np

from loadgen.analysis.cells import CellSummary
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.estimate import Direction, Estimate
from loadgen.analysis.models.candidate import CANDIDATES, TIME_ONLY, Candidate, Pair, pair_of
from loadgen.analysis.models.fit import FittedModel, ModelFit, interval, model_fit, scatter
from loadgen.serving.recipe import load_recipes
from loadgen.words import interval as interval_text
from loadgen.words import number, percent

LEAST_BATCHES = 4
RIVAL_AICC = 2.0
"""Within this, a candidate has substantial support (Burnham and Anderson 2002, section 2.6)."""
MISFIT_P = 0.01

Quantity = Literal["energy_per_token_j", "time_per_token_s"]
COSTS: dict[Quantity, str] = {"energy_per_token_j": "energy per token", "time_per_token_s": "time per token"}


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """An established crossing of the measured curves: the headline, whatever the models say."""

    b: float
    lo: float | None
    hi: float | None
    direction: Direction


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """By M3, the target's cost per token less the reference's is per_token + per_step / B.

    Eq 19 has per_token above 0 and per_step below, Eq 23 has per_step above 0.
    """

    per_token: Estimate
    """J or s."""
    per_step: Estimate
    """J or s."""


class ModelStudy(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of analysis.json's `models`."""

    target: str
    reference: str
    quantity: Quantity
    concurrencies: tuple[int, ...]
    """Measured on both sides."""
    verdict: Literal["best", "cannot tell", "none fits", "refused"]
    """`best`: within `RIVAL_AICC` there are only models that contain it; `none fits`: the repeats refute every one."""
    best: str | None = None
    """The model of the lowest AICc."""
    rivals: tuple[str, ...] = ()
    """Those within `RIVAL_AICC` of it that do not contain it."""
    models: tuple[ModelFit, ...] = ()
    """In the order of `CANDIDATES`."""
    difference: Difference | None = None
    repeat_scatter: float | None = None
    """Relative standard deviation of a cell between repeats."""
    observed: tuple[Observed, ...] = ()
    refusal: str | None = None
    notes: tuple[str, ...] = ()
    simulated: bool = False
    sentence: str = ""
    """The result, one line without a full stop, such as "energy per token of awq against fp16: M3 fits best (both
    shared by the batch, and a cost per token of each precision)"."""
    brief: str = ""
    """The same where target, reference and cost are known: "M3 fits best"."""
    reading: str | None = None
    """What the fits say of the paper's two equations, one line; None where nothing was fitted."""


def cost_models(
    cells: Sequence[CellSummary], crossovers: Sequence[Crossover] = (), *, reference: str
) -> tuple[ModelStudy, ...]:
    """A study per target and quantity, of the cells in which that quantity is valid; none of one that is valid nowhere.

    Joules per token and seconds per token (1 / tokens_per_s, so a step takes B times that) over the measured running
    batch. `crossovers` of the same run are quoted with the models' B*. Bits per weight are those of the recipes.
    """
    recipes = load_recipes()
    known = {cell.target: recipes[cell.precision].bits for cell in cells if cell.precision in recipes}
    bits = {target: bits for target, bits in known.items() if bits is not None}
    studies = []
    for target in dict.fromkeys(cell.target for cell in cells if cell.target != reference):
        for quantity, (cost, metric) in _COSTS.items():
            if not any(cost(cell) for cell in cells):
                continue
            observed = tuple(
                Observed(b=crossing.b, lo=crossing.lo, hi=crossing.hi, direction=crossing.direction)
                for found in crossovers
                if (found.target, found.metric) == (target, metric)
                for crossing in found.crossings
            )
            pair = pair_of(cells, cost, target=target, reference=reference, bits=bits)
            study = model_study(pair, target=target, reference=reference, quantity=quantity)
            simulated = any(cell.simulated for cell in cells)
            studies.append(msgspec.structs.replace(study, observed=observed, simulated=simulated))
    return tuple(studies)


_COSTS: Mapping[Quantity, tuple[Callable[[CellSummary], float | None], str]] = {
    "energy_per_token_j": (lambda cell: cell.figure("energy_per_token_j") or None, "energy_per_token_j"),
    "time_per_token_s": (lambda cell: 1 / rate if (rate := cell.figure("tokens_per_s")) else None, "tokens_per_s"),
}
"""What a cell's cost is, None where it is not valid, and the metric of the crossover it goes with."""


def model_study(pair: Pair, *, target: str, reference: str, quantity: Quantity) -> ModelStudy:
    """Every candidate that the quantity and the known bits allow; refused with fewer than `LEAST_BATCHES` batches."""
    study = ModelStudy(
        target=target,
        reference=reference,
        quantity=quantity,
        concurrencies=tuple(pair.concurrencies),
        verdict="refused",
        refusal=_refusal(pair, target, reference),
    )
    if study.refusal is not None:
        return worded(study)
    chosen = [c for c in CANDIDATES.values() if quantity == "time_per_token_s" or c.name not in TIME_ONLY]
    fitted = [c for c in chosen if pair.bits is not None or not c.needs_bits]
    fits = [model_fit(candidate, pair, "J" if quantity == "energy_per_token_j" else "s") for candidate in fitted]
    entries = _weighed([each.entry for each in fits])
    ranked = sorted((e for e in entries if e.delta_aicc is not None), key=lambda e: e.delta_aicc or 0.0)
    best = ranked[0]
    rivals = tuple(
        e.model
        for e in ranked[1:]
        if e.delta_aicc is not None and e.delta_aicc < RIVAL_AICC and best.model not in CANDIDATES[e.model].contains
    )
    misfit = all(e.lack_of_fit_p is not None and e.lack_of_fit_p < MISFIT_P for e in entries)
    m3 = next(each for each in fits if each.entry.model == "M3")
    study = msgspec.structs.replace(
        study,
        verdict="none fits" if misfit else "cannot tell" if rivals else "best",
        best=best.model,
        rivals=rivals,
        models=entries,
        difference=Difference(per_token=_less(m3, 2, 0), per_step=_less(m3, 3, 1)),
        repeat_scatter=scatter(pair),
        notes=tuple(_notes(pair, fits, entries, best, [c for c in chosen if c not in fitted])),
    )
    return worded(study)


def _refusal(pair: Pair, target: str, reference: str) -> str | None:
    batches = len(pair.concurrencies)
    if batches < LEAST_BATCHES:
        there = f"{batches} is" if batches == 1 else f"{batches or 'none'} are"
        return f"cost models need {LEAST_BATCHES} concurrencies measured on both sides, {there} there"
    if pair.bits is not None and pair.bits[True] > pair.bits[False]:
        return (
            f"{reference} has {pair.bits[False]} bits and {target} {pair.bits[True]}: the models need a reference with "
            "more bits"
        )
    return None


def _weighed(entries: Sequence[ModelFit]) -> tuple[ModelFit, ...]:
    """With distance to the lowest AICc, and Akaike weights."""
    lowest = min(entry.aicc for entry in entries if entry.aicc is not None)
    deltas = [None if entry.aicc is None else entry.aicc - lowest for entry in entries]
    total = sum(math.exp(-delta / 2) for delta in deltas if delta is not None)
    return tuple(
        msgspec.structs.replace(entry, delta_aicc=delta, weight=None if delta is None else math.exp(-delta / 2) / total)
        for entry, delta in zip(entries, deltas, strict=True)
    )


def _less(m3: FittedModel, target: int, reference: int) -> Estimate:
    """The target's parameter less the reference's, by their places."""
    lo, hi = interval(m3.drawn[:, target] - m3.drawn[:, reference])
    return Estimate(value=float(m3.fitted.theta[target] - m3.fitted.theta[reference]), lo=lo, hi=hi)


def _notes(
    pair: Pair, fits: Sequence[FittedModel], entries: Sequence[ModelFit], best: ModelFit, left_out: Sequence[Candidate]
) -> list[str]:
    notes = [f"{c.name} is left out: the bits per weight of a side are unknown" for c in left_out]
    curves = {each.entry.model: each.fitted.log_cost(pair, pair.axis) for each in fits}
    notes += [
        f"{one} and {other} are the same curves at these batches"
        for one, other in combinations(curves, 2)
        if float(np.abs(curves[one] - curves[other]).max()) < 1e-5
    ]
    for entry in entries:
        if unknown := [parameter.name for parameter in entry.parameters if parameter.value is None]:
            notes.append(f"{entry.model}: these batches do not determine {', '.join(unknown)}")
    known = [entry for entry in entries if entry.cv_error is not None]
    least = min(known, key=lambda entry: entry.cv_error or 0.0, default=best)
    if least.model != best.model:
        notes.append(f"left-out batches are predicted best by {least.model}, not by {best.model}")
    return notes


def worded(study: ModelStudy) -> ModelStudy:
    """The same with its `sentence`, `brief` and `reading`."""
    subject = f"{COSTS[study.quantity]} of {study.target} against {study.reference}"
    by_name = {entry.model: entry for entry in study.models}
    best, repeats, more, reading = by_name.get(study.best or ""), study.repeat_scatter, "", None
    if best is None:
        brief = f"no model was fitted; {study.refusal}"
    elif study.verdict == "none fits":
        than = "" if repeats is None else f" where repeats scatter by {_percent(repeats)}"
        brief = f"no model fits; {best.model} comes closest, {_misses(best)}{than}"
    elif study.verdict == "cannot tell":
        others = ", ".join(f"{name} (ΔAICc {by_name[name].delta_aicc:.1f})" for name in by_name if name in study.rivals)
        brief = f"cannot tell {best.model} from {others}"
    else:
        brief, more = f"{best.model} fits best", f" ({best.words})"
    if study.difference is not None:
        reading = f"{subject} by {_reading(study, study.difference, by_name)}"
    return msgspec.structs.replace(study, sentence=f"{subject}: {brief}{more}", brief=brief, reading=reading)


def _reading(study: ModelStudy, found: Difference, by_name: Mapping[str, ModelFit]) -> str:
    """By M3 the signs of the difference per token and per step decide between the two equations, whichever model fits
    best; only where the roofline does, its overhead is named instead, because M3 takes the roof for a cost per token.
    """
    if study.best == "M4":
        return _roofline_reading(by_name["M4"])
    p = by_name["M3"].lack_of_fit_p
    return (
        f"{'M3, which only approximates these data' if p is not None and p < MISFIT_P else 'M3'}: "
        f"{_more(found.per_token, 'per token', study.quantity)} and {_more(found.per_step, 'per step', study.quantity)}"
        f", {_MEANING[_sign(found.per_token), _sign(found.per_step)]}"
    )


def _roofline_reading(m4: ModelFit) -> str:
    dequant = next(parameter for parameter in m4.parameters if parameter.name == "dequant")
    if dequant.value is None or dequant.lo is None or dequant.hi is None:
        return "M4: the overhead cannot be told from the weight reads at these batches"
    if dequant.lo == 0:
        return f"M4: no overhead is proven (95% CI {interval_text(0, 1e3 * dequant.hi)} ms per step)"
    return (
        f"M4: an overhead of {number(1e3 * dequant.value)} ms per step (95% CI "
        f"{interval_text(1e3 * dequant.lo, 1e3 * dequant.hi)}), which the batch shares as Eq 23 has it, and less time "
        "to read weights, which counts until both are bound by compute"
    )


_MEANING = {
    (1, -1): "an overhead that the batch does not share and a saving that it does, as Eq 19 has it",
    (1, 0): "an overhead that the batch does not share, as Eq 19 has it, and no saving that shows",
    (1, 1): "overheads of both kinds, that of Eq 19 and that of Eq 23",
    (0, 1): "an overhead that the batch shares, as Eq 23 has it",
    (-1, 1): "an overhead that the batch shares, as Eq 23 has it, and a saving that it does not",
    (0, -1): "only a saving that the batch shares; the overhead of neither equation shows",
    (-1, -1): "savings of both kinds; the overhead of neither equation shows",
    (-1, 0): "a saving that the batch does not share; the overhead of neither equation shows",
    (0, 0): "neither equation shows",
}
"""By the proven signs of the target's cost less the reference's, per token and per step."""


def _sign(found: Estimate) -> int:
    if found.lo is None or found.hi is None or found.lo <= 0 <= found.hi:
        return 0
    return 1 if found.lo > 0 else -1


def _more(found: Estimate, per: str, quantity: Quantity) -> str:
    factor, unit = (1.0, "J") if quantity == "energy_per_token_j" else (1e3, "ms")
    assert found.lo is not None and found.hi is not None
    low, high = factor * found.lo, factor * found.hi
    if _sign(found) == 0:
        return f"no proven difference {per} (95% CI {interval_text(low, high, sign=True)} {unit})"
    least, most = sorted((abs(low), abs(high)))
    word = "more" if found.value > 0 else "less"
    return f"{number(abs(factor * found.value))} {unit} {word} {per} (95% CI {interval_text(least, most)})"


def _misses(entry: ModelFit) -> str:
    worst = max(entry.residuals, key=lambda residual: abs(residual.log_ratio))
    return f"but misses by up to {_percent(math.expm1(abs(worst.log_ratio)))} (B = {worst.concurrency})"


def _percent(share: float) -> str:
    return percent(share, 0) if share >= 0.1 else f"{100 * share:.2g}%"
