"""The answer in words, target by target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
