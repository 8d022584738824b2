"""The answer in words, target by target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.report.stamp import stamped

CLAIMS = ("targets", "claim", "where", "verdict", "evidence")


def claim_rows(claims: Sequence[Mapping[str, Any]], *, simulated: bool) -> list[tuple[str, ...]]:
    """A row per claim and target, in the order of the analysis."""
    return [
        (stamped(" and ".join(c["targets"]), simulated=simulated), c["claim"], c["source"], c["verdict"], c["evidence"])
        for c in claims
    ]


def answer_sentences(analysis: Mapping[str, Any]) -> dict[str, list[str]]:
    """Target -> its sentences: every crossover that could be asked for, then the trap verdict.

    Of a metric that was not measured there is none.
    """
    said: dict[str, list[str]] = {}
    for found in analysis["crossovers"]:
        if found["refusal"] is None:
            said.setdefault(found["target"], []).append(found["sentence"])
    for trap in analysis.get("traps", []):
        if trap["target"] in said:
            said[trap["target"]].append(trap["sentence"])
    return said
