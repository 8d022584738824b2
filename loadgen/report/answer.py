"""The answer in words, target by target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.report.stamp import stamped

CLAIMS = ("targets", "claim", "where", "verdict", "evidence")


def terms(analysis: Mapping[str, Any]) -> str:
    """What the words of the answer mean, for those that are used."""
    said = {
        "B*: the batch at which the better side changes.": _crossed(analysis),
        "COR: tokens/s of the reference over the target's, less 1; below 0 the target is faster.": bool(
            analysis["cor_curves"]
        ),
        "SI: accuracy, efficiency (speed and memory) and energy against the reference, weighed into one figure; the "
        "reference has 1. Trap: SI is below 1.": _indexed(analysis),
    }
    return " ".join(text for text, used in said.items() if used)


def terms_briefly(analysis: Mapping[str, Any]) -> str:
    """The same in a line of a terminal."""
    index = f"SI: accuracy, speed, energy in one, {analysis['reference']} = 1. Trap: SI < 1."
    said = {"B*: break-even B.": _crossed(analysis), index: _indexed(analysis)}
    return " ".join(text for text, used in said.items() if used)


def _crossed(analysis: Mapping[str, Any]) -> bool:
    return any(found["crossings"] or found["beyond"] for found in analysis["crossovers"])


def _indexed(analysis: Mapping[str, Any]) -> bool:
    return any(entry["si"] for entry in analysis["indices"])


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
