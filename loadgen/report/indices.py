"""The paper's indices, as rows: pillars and SI, who wins for which weights, who dominates whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.analysis.indices.spans import spanned
from loadgen.report.stamp import stamped
from loadgen.report.table import interval

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
            interval(entry["si"]["lo"], entry["si"]["hi"], 3) if entry["si"] else "",
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
    """A row per pair that dominates or may, with all the batches of which the same holds: at least as good in
    everything, and better in something."""
    measured: dict[tuple[str, str], list[int]] = {}
    alike: dict[tuple[str, ...], list[Entry]] = {}
    for pair in pairs:
        measured.setdefault((pair["target"], pair["other"]), []).append(pair["concurrency"])
        told = pair["verdict"], *(_named(pair[name]) for name in ("better", "worse", "unknown"))
        alike.setdefault((pair["target"], pair["other"], *told), []).append(pair)
    return [
        (
            _batches([pair["concurrency"] for pair in same], measured[target, other]),
            stamped(target, simulated=simulated),
            other,
            _dominates(same),
            *told,
        )
        for (target, other, verdict, *told), same in alike.items()
        if verdict != "does not"
    ]


def _batches(batches: Sequence[int], measured: Sequence[int]) -> str:
    """In a column that is headed B."""
    return spanned(batches, measured).removeprefix("B ").removeprefix("= ")


def _dominates(same: Sequence[Entry]) -> str:
    """The verdict with the margin of accuracy, where it is within one, and the items that it rests on."""
    verdict = str(same[0]["verdict"])
    if verdict == "dominates within margin":
        verdict = f"dominates, accuracy within {100 * same[0]['accuracy_margin']:g} pp"
    counts = sorted(pair["items"] for pair in same if pair["items"] is not None)
    if not counts:
        return verdict
    return f"{verdict} (n = {' to '.join(dict.fromkeys((str(counts[0]), str(counts[-1]))))})"


def _named(metrics: Sequence[str]) -> str:
    names = {"tokens_per_s": "tokens/s", "energy_per_query_j": "J/query", "memory_bytes": "memory"}
    return ", ".join(names.get(metric, metric) for metric in metrics)


def _value(estimate: Entry | None, form: str = ".3f") -> str:
    return "" if estimate is None or estimate["value"] is None else f"{estimate['value']:{form}}".replace("-", "−")
