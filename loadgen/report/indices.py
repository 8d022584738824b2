"""The paper's indices, as rows: pillars and SI, who wins for which weights, who dominates whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.report.stamp import stamped

INDICES = (
    "target", "B", "T_SI", "E_SI", "S_SI", "SI", "95% CI", "SI geometric", "SI, S unclamped", "deficit", "COR", "class",
    "trap",
)  # fmt: skip
SHARES = ("B", "target", "wins for", "95% CI", "proven for", "with S unclamped")
DOMINANCE = ("B", "target", "against", "verdict", "better in", "worse in", "not known")

Row = tuple[str, ...]
Entry = Mapping[str, Any]


def index_rows(indices: Sequence[Entry], *, simulated: bool) -> list[Row]:
    """A row per target x concurrency; a refused comparison has its sentence for a class."""
    return [
        (
            stamped(entry["target"], simulated=simulated),
            str(entry["concurrency"]),
            _value(entry["t_si"]),
            _value(entry["e_si"] and entry["e_si"]["value"]),
            _value(entry["s_si"]),
            _value(entry["si"]),
            _interval(entry["si"]),
            _value(entry["si_geometric"]),
            _value(entry["si_raw"]),
            _value(entry["deficit"], "+.3f"),
            _value(entry["cor_tps"], "+.2f"),
            entry["refusal"] or entry["cor_class"] or "",
            entry["trap"] or "",
        )
        for entry in indices
    ]


def share_rows(spaces: Sequence[Entry], *, simulated: bool) -> list[Row]:
    """A row per concurrency x target: its share of all weights of T, E and S."""
    rows: list[Row] = []
    for space in spaces:
        raw = {entry["target"]: entry for entry in space["raw"]}
        rows += [
            (
                str(space["concurrency"]),
                stamped(entry["target"], simulated=simulated),
                f"{entry['share']:.0%}",
                "" if entry["lo"] is None else f"{entry['lo']:.0%}–{entry['hi']:.0%}",
                "" if entry["established"] is None else f"{entry['established']:.0%}",
                f"{raw[entry['target']]['share']:.0%}",
            )
            for entry in space["clamped"]
        ]
    return rows


def dominance_rows(pairs: Sequence[Entry], *, simulated: bool) -> list[Row]:
    """A row per pair that dominates or may: at least as good in everything, and better in something."""
    return [
        (
            str(pair["concurrency"]),
            stamped(pair["target"], simulated=simulated),
            pair["other"],
            pair["verdict"],
            _named(pair["better"]),
            _named(pair["worse"]),
            _named(pair["unknown"]),
        )
        for pair in pairs
        if pair["verdict"] != "does not"
    ]


def _named(metrics: Sequence[str]) -> str:
    names = {"tokens_per_s": "tokens/s", "energy_per_query_j": "J/query", "memory_bytes": "memory"}
    return ", ".join(names.get(metric, metric) for metric in metrics)


def _value(estimate: Entry | None, form: str = ".3f") -> str:
    return "" if estimate is None or estimate["value"] is None else f"{estimate['value']:{form}}".replace("-", "−")


def _interval(estimate: Entry | None) -> str:
    if estimate is None or estimate["lo"] is None or estimate["hi"] is None:
        return ""
    return f"{estimate['lo']:.3f}–{estimate['hi']:.3f}"
