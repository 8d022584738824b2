"""The cost models as a table and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.report.stamp import STAMP, stamped

MODELS = ("target", "cost", "model", "ΔAICc", "weight", "scatter", "left out", "misfit p", "B* of the model",
          "B* measured", "parameters (95% CI)")  # fmt: skip
COSTS = {"energy_per_token_j": "J/token", "time_per_token_s": "ms/token"}
ASIDE = (
    "No headline: the measured curves cross where they cross, whatever a model says, and a model's intervals presume "
    "the model. scatter: of the cells around it; left out: its error at each B when fitted without it; misfit p: its "
    "residuals against the scatter of repeats, below 0.01 refuted."
)
"""What the columns mean."""


def model_rows(studies: Sequence[Mapping[str, Any]], *, simulated: bool) -> list[tuple[str, ...]]:
    """A row per target, cost and fitted model, in the order of the analysis; what is not known is an empty string."""
    return [
        (
            stamped(study["target"], simulated=simulated),
            COSTS[study["quantity"]],
            entry["model"],
            _number(entry["delta_aicc"], ".1f"),
            _number(entry["weight"], ".2f"),
            _number(entry["scatter"], ".1%"),
            _number(entry["cv_error"], ".1%"),
            _number(entry["lack_of_fit_p"], ".2g"),
            _crossing(entry["b_star"]),
            ", ".join(_crossing(crossing) for crossing in study["observed"]),
            "; ".join(_parameter(parameter) for parameter in entry["parameters"]),
        )
        for study in studies
        for entry in study["models"]
    ]


def model_sentences(studies: Sequence[Mapping[str, Any]], *, simulated: bool) -> dict[str, list[str]]:
    """Target -> a sentence per cost that was measured, each followed by its reading of the paper's equations."""
    stamp = f"{STAMP}, " if simulated else ""
    said: dict[str, list[str]] = {}
    for study in studies:
        sentences = [study["sentence"]] + ([study["reading"]] if study["reading"] else [])
        said.setdefault(study["target"], []).extend(stamp + sentence for sentence in sentences)
    return said


def model_notes(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the fits could not determine, each with its target and cost."""
    return [f"{s['target']}, {COSTS[s['quantity']]}: {note}" for s in studies for note in s["notes"]]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _crossing(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    side = "wins below" if found["direction"] == "wins_below" else "wins above"
    beyond = "" if found.get("measured", True) else ", beyond what was measured"
    if found["lo"] is not None:
        spread = f" ({found['lo']:.3g}–{found['hi']:.3g})"
    else:
        spread = f" (in {found['share']:.0%} of resamples)" if "share" in found else ""
    return f"{side} {found['b']:.3g}{spread}{beyond}"


def _parameter(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return f"{found['name']} not determined"
    factor, unit = (1e3, "m" + found["unit"]) if found["unit"].startswith("s/") else (1.0, found["unit"])
    value, lo, hi = (factor * found[key] for key in ("value", "lo", "hi"))
    return f"{found['name']} {value:.3g} {unit} ({lo:.3g}–{hi:.3g})"
