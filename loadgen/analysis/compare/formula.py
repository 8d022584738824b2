"""The paper's formula for N* (Theorem 4.6 of arXiv 2602.13595v2), shown as that and used for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def paper_n_star(
    models: Sequence[Mapping[str, Any]], target: str, concurrency: int, parameters: float | None
) -> float | None:
    """N* = phi B_W B / (alpha (pi - p)), in parameters, with phi and alpha of the run's own fit of Eq 19 (M1, joules
    per token); None without that fit, or where it gives no B*.

    Eq 19's alpha as fitted to a model of N parameters stands for the formula's alpha N / B_W, and
    B* = alpha (pi - p) / phi, so that N* = N B / B*: it grows with B.
    """
    for study in models:
        if (study["target"], study["quantity"]) != (target, "energy_per_token_j") or parameters is None:
            continue
        for fitted in study["models"]:
            if fitted["model"] == "M1" and fitted.get("b_star"):
                return parameters * concurrency / float(fitted["b_star"]["b"])
    return None
