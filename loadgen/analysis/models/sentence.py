"""A study of cost models in words, and as it stands in analysis.json."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from loadgen.analysis.models.modelfit import Estimate, ModelFit
from loadgen.analysis.models.study import MISFIT_P, ModelStudy, Quantity

COSTS: dict[Quantity, str] = {"energy_per_token_j": "energy per token", "time_per_token_s": "time per token"}


def entry_of(study: ModelStudy) -> dict[str, Any]:
    """The study's entry in analysis.json's `models`: its fields, its `sentence` and its `reading`."""
    entry: dict[str, Any] = msgspec.to_builtins(study)
    return entry | {"sentence": sentence(study), "reading": reading(study)}


def sentence(study: ModelStudy) -> str:
    """One line without a full stop, such as "energy per token of awq against fp16: M3 fits best (both shared by the
    batch, and a cost per token of each precision)"."""
    subject = f"{COSTS[study.quantity]} of {study.target} against {study.reference}"
    if study.refusal is not None or study.best is None:
        return f"{subject}: no model was fitted; {study.refusal}"
    best = next(entry for entry in study.models if entry.model == study.best)
    if study.verdict == "none fits":
        return f"{subject}: no model fits; {best.model} comes closest, {_misses(best)}{_than_repeats(study)}"
    if study.verdict == "cannot tell":
        others = ", ".join(
            f"{entry.model} (ΔAICc {entry.delta_aicc:.1f})" for entry in study.models if entry.model in study.rivals
        )
        return f"{subject}: cannot tell {best.model} from {others}"
    return f"{subject}: {best.model} fits best ({best.words})"


def reading(study: ModelStudy) -> str | None:
    """What the fits say of the paper's two equations, on one line without a full stop; None where nothing was fitted.

    By M3 the signs of the difference per token and per step decide between them, whichever model fits best; only where
    the roofline does, its overhead is named instead, because M3 takes the roof for a cost per token.
    """
    found = study.difference
    if found is None:
        return None
    if study.best == "M4":
        return _roofline_reading(study)
    m3 = next(entry for entry in study.models if entry.model == "M3")
    refuted = m3.lack_of_fit_p is not None and m3.lack_of_fit_p < MISFIT_P
    by = "M3, which only approximates these data" if refuted else "M3"
    return (
        f"{COSTS[study.quantity]} of {study.target} against {study.reference} by {by}: "
        f"{_more(found.per_token, 'per token', study.quantity)} and {_more(found.per_step, 'per step', study.quantity)}"
        f", {_MEANING[_sign(found.per_token), _sign(found.per_step)]}"
    )


def _roofline_reading(study: ModelStudy) -> str:
    m4 = next(entry for entry in study.models if entry.model == "M4")
    dequant = next(parameter for parameter in m4.parameters if parameter.name == "dequant")
    subject = f"{COSTS[study.quantity]} of {study.target} against {study.reference} by M4"
    if dequant.value is None or dequant.lo is None or dequant.hi is None:
        return f"{subject}: the overhead cannot be told from the weight reads at these batches"
    if dequant.lo == 0:
        return f"{subject}: no overhead is proven (95% CI 0–{1e3 * dequant.hi:.3g} ms per step)"
    return (
        f"{subject}: an overhead of {1e3 * dequant.value:.3g} ms per step (95% CI {1e3 * dequant.lo:.3g}–"
        f"{1e3 * dequant.hi:.3g}), which the batch shares as Eq 23 has it, and less time to read weights, which counts "
        "until both are bound by compute"
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
        return f"no proven difference {per} (95% CI {low:+.3g} to {high:+.3g} {unit})"
    ends = sorted((abs(low), abs(high)))
    word = "more" if found.value > 0 else "less"
    return f"{abs(factor * found.value):.3g} {unit} {word} {per} (95% CI {ends[0]:.3g}–{ends[1]:.3g})"


def _misses(entry: ModelFit) -> str:
    worst = max(entry.residuals, key=lambda residual: abs(residual.log_ratio))
    return f"but misses by up to {_percent(math.expm1(abs(worst.log_ratio)))} (B = {worst.concurrency})"


def _than_repeats(study: ModelStudy) -> str:
    return "" if study.repeat_scatter is None else f" where repeats scatter by {_percent(study.repeat_scatter)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"
