"""The paper's indices, as rows: pillars and SI, who wins for which weights, who dominates whom.

The cost models as a table and in words.

What the client did to the figures, as rows: per figure the cell that came closest to its limit.

What an open loop offered and what came of it, and goodput, as rows and sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from loadgen.analysis.estimate import spanned
from loadgen.analysis.run import Run
from loadgen.reports.grid import cell_valid, figure, interval, number, repeats_valid
from loadgen.reports.words import STAMP, stamped

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


CLIENT = ("figure", "at its worst", "limit there", "target", "B", "repeat", "")
NOTE = (
    "Of all cells, the one closest to each limit; above it the client is what was measured, and the cell is invalid. "
    "Every cell's figures are in cells.csv."
)


def _share(value: float) -> str:
    return f"{100 * value:.0f}%"


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


_FIGURES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "client_cpu_share": ("CPU of the busiest client process, of a core", _share),
    "loop_lag_ms_p50": ("event loop late, median", _ms),
    "refill_gap_ms_mean": ("gap between two requests of a slot, mean", _ms),
    "ttft_excess_ms": ("TTFT above the server's own histogram, mean", _ms),
}


def client_rows(checks: Sequence[Mapping[str, Any]], *, simulated: bool) -> list[tuple[str, ...]]:
    """A row per entry of analysis.json's `client`."""
    rows: list[tuple[str, ...]] = []
    for check in checks:
        words, shown = _FIGURES[check["figure"]]
        rows.append(
            (
                words,
                shown(check["value"]),
                shown(check["limit"]),
                stamped(check["target"], simulated=simulated),
                str(check["concurrency"]),
                str(check["repeat"]),
                "client-bound" if check["failed"] else "",
            )
        )
    return rows


TRAFFIC = (
    "target", "repeat", "arrivals", "asked /s", "sent /s", "answered /s", "late", "late p99 ms", "dropped",
    "in flight", "TTFT ms", "TTFT p99", "E2E ms", "E2E p99", "valid",
)  # fmt: skip
GOODPUT = ("B", "target", "good /s", "95% CI", "good %", "J/good query", "valid")


def traffic_rows(run: Run) -> list[Row]:
    """A row per cell of an open loop; none of a closed one."""
    if run.arrival is None:
        return []
    return [
        (
            stamped(str(cell["target"]), simulated=cell["simulated"]),
            str(cell["repeat"]),
            number(cell["arrivals"], 0),
            f"{cell['rate_asked_per_s']:.4g}",
            number(cell["rate_per_s"], 2),
            number(cell["completed_per_s"], 2),
            number(cell["late"], 0),
            number(cell["late_ms_p99"], 2),
            number(cell["dropped"], 0),
            number(cell["inflight_mean"], 1),
            number(cell["ttft_ms_p50"], 1),
            number(cell["ttft_ms_p99"], 1),
            number(cell["e2e_ms_p50"], 0),
            number(cell["e2e_ms_p99"], 0),
            cell_valid(cell),
        )
        for cell in run.cells.to_dict("records")
    ]


def goodput_rows(run: Run) -> list[Row]:
    """A row per target x concurrency; none without service level objectives."""
    rows = run.summary.sort_values("concurrency", kind="stable") if run.analysis_json["slo"] else run.summary[:0]
    return [
        (
            str(row["concurrency"]),
            stamped(str(row["target"]), simulated=row["simulated"]),
            number(row["goodput_per_s"], 2),
            interval(row["goodput_per_s_lo"], row["goodput_per_s_hi"], 2),
            number(100 * row["goodput_share"], 1),
            figure(row["energy_per_good_query_j"]),
            repeats_valid(row),
        )
        for row in rows.to_dict("records")
    ]


def traffic_sentences(run: Run) -> dict[str, str]:
    """Target -> what became of an open loop's requests, without a full stop; none of a closed loop."""
    if run.arrival is None:
        return {}
    rows = run.summary.to_dict("records")
    return {str(row["target"]): _sentence(row, run.analysis_json["slo"]) for row in rows}


def _sentence(row: Mapping[Any, Any], slo: str | None) -> str:
    if pd.isna(row["rate_per_s"]):
        return "nothing was measured"
    parts = [f"{row['rate_per_s']:.4g} requests a second sent, {row['completed_per_s']:.4g} answered"]
    if row["dropped"]:
        parts.append(f"{row['dropped']:.0f} dropped")
    if row["latency_valid"]:
        parts.append(f"TTFT {_pair(row, 'ttft')} ms and E2E {_pair(row, 'e2e')} ms (p50 / p99) from when they were due")
        if slo is not None and pd.notna(row["goodput_share"]):
            parts.append(f"{100 * row['goodput_share']:.1f}% within {slo}: {row['goodput_per_s']:.4g} a second")
    elif row["valid"]:
        parts.append("no repeat has valid latencies")
    else:
        parts.append("no repeat is valid")
    if pd.notna(row["energy_per_query_j"]):
        parts.append(f"{figure(row['energy_per_query_j'])} J a query")
    return "; ".join(parts)


def _pair(row: Mapping[Any, Any], latency: str) -> str:
    shown: Sequence[str] = [number(row[f"{latency}_ms_{name}"], 0) for name in ("p50", "p99")]
    return " / ".join(shown)
