"""Answer: for each model and format, below or above which batch it pays off, in one table at the head of a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench.gpu.markdown import number
from loadgen.analysis.run import Run

METRICS = {
    "tokens_per_s": "faster",
    "energy_per_token_j": "less energy per token",
    "energy_hli_per_query_j": "less energy by the HLI bound",
}
HEAD = ("model", "format", *METRICS.values())


def rows(runs: Iterable[tuple[str, Run]]) -> list[list[str]]:
    """A row per model and format that was compared; `runs` are pairs of a model's name and its run."""
    found = []
    for model, run in runs:
        by_target: dict[str, dict[str, Mapping[str, Any]]] = {}
        for finding in run.analysis["crossovers"]:
            by_target.setdefault(finding["target"], {})[finding["metric"]] = finding
        for target, findings in by_target.items():
            ours = run.summary[run.summary["target"] == target]
            known = [metric for metric in METRICS if metric in findings and ours[metric].notna().any()]
            found.append([model, target, *(words(findings[m]) if m in known else "" for m in METRICS)])
    return found


def words(finding: Mapping[str, Any]) -> str:
    """Where a format wins, in a few words, of a figure that was measured."""
    if not finding["points"]:
        return "too few valid B"
    if finding["status"] == "crosses":
        return ", ".join(_crossing(crossing) for crossing in finding["crossings"])
    suspected = [f"the means cross at {number(crossing['b'], '.3g')}" for crossing in finding["suspected"]]
    known = {"better": "at every B measured", "worse": "at no B measured"}
    return known.get(finding["status"]) or ", ".join(["not decided", *suspected])


def _crossing(crossing: Mapping[str, Any]) -> str:
    side = "below" if crossing["direction"] == "wins_below" else "above"
    low, high = crossing["lo"], crossing["hi"]
    interval = "" if low is None or high is None else f" ({number(low, '.3g')}–{number(high, '.3g')})"
    return f"{side} B* = {number(crossing['b'], '.3g')}{interval}"
