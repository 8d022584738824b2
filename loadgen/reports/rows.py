"""Tables: a column, a table, and the columns of the report's: results, traffic, client, indices, claims and models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import msgspec
import pandas as pd

from loadgen.analysis.claims import Claim
from loadgen.analysis.client import NearestCheck
from loadgen.analysis.estimate import Estimate
from loadgen.analysis.indices.dominance import Dominance, WeightShare, WeightSpace
from loadgen.analysis.indices.study import TargetIndices
from loadgen.analysis.models.fit import BStar, ModelFit, Parameter
from loadgen.analysis.models.study import ModelStudy, Observed
from loadgen.analysis.run import Run, held_in
from loadgen.analysis.tokenenergy import TokenEnergy, unknown
from loadgen.analysis.validity import COLUMNS
from loadgen.record.cell import held_of
from loadgen.words import NOT_KNOWN, batch, count, interval, known, number, percent, percents, span, spanned

Kind = Literal["figure", "interval", "name", "short", "text"]
"""Figures are aligned to the right; `interval` belongs to the column before it; `name` heads its row; `short` is text
that stays on one line."""
INTERVAL: Kind = "interval"
NAME: Kind = "name"
SHORT: Kind = "short"
TEXT: Kind = "text"
Row = tuple[str, ...]
Entry = TypeVar("Entry")


class Column(msgspec.Struct, Generic[Entry], frozen=True):
    """`show`: the entry's text in this column, empty for what was not measured."""

    heading: str
    show: Callable[[Entry], str]
    kind: Kind = "figure"


class Table(msgspec.Struct, frozen=True):
    """A heading and a kind per column; rows of as many texts."""

    headings: tuple[str, ...]
    kinds: tuple[Kind, ...]
    rows: list[Row]

    @property
    def filled(self) -> Table:
        """The table without the columns that are empty in all rows."""
        return self.without(place for place in range(len(self.headings)) if not any(row[place] for row in self.rows))

    def without(self, places: Iterable[int]) -> Table:
        """The table without the columns at these places."""
        kept = sorted({*range(len(self.headings))} - {*places})
        rows = [tuple(row[place] for place in kept) for row in self.rows]
        return Table(tuple(self.headings[place] for place in kept), tuple(self.kinds[place] for place in kept), rows)


def table_of(columns: Sequence[Column[Entry]], entries: Iterable[Entry]) -> Table:
    """A row per entry."""
    return Table(
        tuple(column.heading for column in columns),
        tuple(column.kind for column in columns),
        [tuple(column.show(entry) for column in columns) for entry in entries],
    )


CsvRow = Mapping[Any, Any]
"""A row of summary.csv, cells.csv or compare.csv."""
FEW_QUESTIONS = 30
"""An accuracy of fewer is shown as a count: one answer more or less would move a percentage by over 3 points."""


def cells_valid(cells: pd.DataFrame, of: int | None = None) -> str:
    """ "48 of 48 cells valid, energy valid in 46": valid loads, and each quantity's count that differs from it.

    `cells`: as `Run.cells`; `of`: out of so many cells instead of all that were measured.
    """
    measured = {quantity: cells[column].dropna() for quantity, column in COLUMNS.items()}
    counts = {quantity: int(valid.sum()) for quantity, valid in measured.items() if len(valid)}
    load = counts.pop("load", 0)
    others = [f"{quantity} valid in {count}" for quantity, count in counts.items() if count != load]
    return ", ".join([f"{load} of {len(cells) if of is None else of} cells valid", *others])


def repeats_valid(row: CsvRow) -> str:
    """ "3/3, energy 2/3": the repeats with a valid load, and those of each quantity that differ from it."""
    load, repeats = int(row["valid"]), int(row["repeats"])
    counts = {quantity: row[column] for quantity, column in COLUMNS.items()}
    others = [f"{quantity} {n:.0f}/{repeats}" for quantity, n in counts.items() if not pd.isna(n) and n != load]
    return ", ".join([f"{load}/{repeats}", *others])


def invalid_of(cell: CsvRow) -> list[str]:
    """The quantities that are not valid in a row of cells.csv; an invalid load is named alone."""
    if not cell["valid"]:
        return ["load"]
    return [quantity for quantity, column in COLUMNS.items() if cell[column] == False]  # noqa: E712


def right(accuracy: float | None, questions: float | None) -> str:
    """Percent of the questions, or, of fewer than `FEW_QUESTIONS`, as 2/3; empty for what was not measured."""
    if known(accuracy) and known(questions) and questions < FEW_QUESTIONS:
        return f"{count(accuracy * questions)}/{questions:.0f}"
    return percent(accuracy, 1, unit="")


def _of(name: str, digits: int | None = None) -> Callable[[CsvRow], str]:
    return lambda row: number(row[name], digits)


def _share(name: str) -> Callable[[CsvRow], str]:
    return lambda row: percent(row[name], 1, unit="")


def _ends(name: str, digits: int | None = None, floor: float = 0.0) -> Callable[[CsvRow], str]:
    return lambda row: interval(row[f"{name}_lo"], row[f"{name}_hi"], digits, floor=floor)


def _text(name: str) -> Callable[[CsvRow], str]:
    return lambda row: str(row[name])


B = "B"
RATE = "requests/s"
"""What an open loop holds instead."""


def shown_held(held: float) -> str:
    """B, or a rate to four digits."""
    return f"{held:.0f}" if held == round(held) else f"{held:.4g}"


RESULT: Sequence[Column[CsvRow]] = (
    Column(B, lambda row: shown_held(held_in(row))),
    Column("target", _text("target"), NAME),
    Column("running", lambda row: number(row["running_mean"], 2) or ("not verified" if row["valid"] else "")),
    Column("tok/s", _of("tokens_per_s")),
    Column("95% CI", _ends("tokens_per_s"), INTERVAL),
    Column("× ref", lambda row: number(1 / (1 + row["cor"]), 2)),
    Column("TTFT ms", _of("ttft_ms_p50", 1)),
    Column("TTFT p99", _of("ttft_ms_p99", 1)),
    Column("TPOT ms", _of("tpot_ms_p50", 2)),
    Column("E2E ms", _of("e2e_ms_p50", 0)),
    Column("W", _of("power_w_mean", 0)),
    Column("J/token", _of("energy_per_token_j")),
    Column("J/query", _of("energy_per_query_j")),
    Column("95% CI", _ends("energy_per_query_j"), INTERVAL),
    Column("right %", lambda row: right(row["accuracy"], row["questions"])),
    Column("95% CI", lambda row: percents(row["accuracy_lo"], row["accuracy_hi"], unit=""), INTERVAL),
    Column("n", _of("questions", 0)),
    Column("cut off %", _share("truncated_rate")),
    Column("unparsed %", _share("unparsed_rate")),
    Column("guessed %", _share("guessed_rate")),
    Column("stopped %", _share("stopped_rate")),
    Column("valid", repeats_valid, SHORT),
)
"""Columns of summary.csv. `× ref`, tokens/s over the reference's, is 1 / (1 + COR), over both's repeats at equal B."""
PER_GPU = Column[CsvRow]("tok/s/GPU", _of("tokens_per_s_per_gpu"))
TRAFFIC: Sequence[Column[CsvRow]] = (
    Column("target", _text("target"), NAME),
    Column("repeat", _text("repeat")),
    Column("arrivals", _of("arrivals", 0)),
    Column("asked /s", _of("rate_asked_per_s")),
    Column("sent /s", _of("rate_per_s", 2)),
    Column("answered /s", _of("completed_per_s", 2)),
    Column("late", _of("late", 0)),
    Column("late p99 ms", _of("late_ms_p99", 2)),
    Column("dropped", _of("dropped", 0)),
    Column("in flight", _of("inflight_mean", 1)),
    Column("TTFT ms", _of("ttft_ms_p50", 1)),
    Column("TTFT p99", _of("ttft_ms_p99", 1)),
    Column("E2E ms", _of("e2e_ms_p50", 0)),
    Column("E2E p99", _of("e2e_ms_p99", 0)),
    Column("valid", lambda cell: _cell_valid(cell), SHORT),
)
"""Columns of cells.csv, in an open loop."""
GOODPUT: Sequence[Column[CsvRow]] = (
    Column(B, lambda row: shown_held(held_in(row))),
    Column("target", _text("target"), NAME),
    Column("good /s", _of("goodput_per_s", 2)),
    Column("95% CI", _ends("goodput_per_s", 2), INTERVAL),
    Column("good %", _share("goodput_share")),
    Column("J/good query", _of("energy_per_good_query_j")),
    Column("valid", repeats_valid, SHORT),
)
"""Columns of summary.csv, with service level objectives."""


def _cell_valid(cell: CsvRow) -> str:
    bad = invalid_of(cell)
    return "no" if not cell["valid"] else f"except {', '.join(bad)}" if bad else "yes"


def result_columns(run: Run) -> Sequence[Column[CsvRow]]:
    """Those of RESULT, with the throughput per GPU behind the whole one where a model is shared by several."""
    if not (run.summary["gpus"] > 1).any():
        return RESULT
    place = [column.heading for column in RESULT].index("tok/s") + 2
    return [*RESULT[:place], PER_GPU, *RESULT[place:]]


def summary_rows(run: Run) -> list[dict[Any, Any]]:
    """summary.csv by ascending concurrency, or rate."""
    rows: list[dict[Any, Any]] = run.summary.to_dict("records")
    return sorted(rows, key=held_in)


def traffic_sentences(run: Run) -> dict[str, dict[float, str]]:
    """Target -> rate -> what became of an open loop's requests, without a full stop; none of a closed loop."""
    if run.arrival is None:
        return {}
    told: dict[str, dict[float, str]] = {}
    for row in summary_rows(run):
        told.setdefault(str(row["target"]), {})[held_in(row)] = _traffic(row, run.analysis.slo)
    return told


def _traffic(row: CsvRow, slo: str | None) -> str:
    if pd.isna(row["rate_per_s"]):
        return "nothing was measured"
    parts = [f"{number(row['rate_per_s'])} requests a second sent, {number(row['completed_per_s'])} answered"]
    if row["dropped"]:
        parts.append(f"{number(row['dropped'], 0)} dropped")
    if row["latency_valid"]:
        ttft, e2e = (
            " / ".join(number(row[f"{name}_ms_{quantile}"], 0) for quantile in ("p50", "p99"))
            for name in ("ttft", "e2e")
        )
        parts.append(f"TTFT {ttft} ms and E2E {e2e} ms (p50 / p99) from when they were due")
        if slo is not None and pd.notna(row["goodput_share"]):
            parts.append(f"{percent(row['goodput_share'], 1)} within {slo}: {number(row['goodput_per_s'])} a second")
    else:
        parts.append("no repeat has valid latencies" if row["valid"] else "no repeat is valid")
    if pd.notna(row["energy_per_query_j"]):
        parts.append(f"{number(row['energy_per_query_j'])} J a query")
    return "; ".join(parts)


def value(estimate: Estimate | None, digits: int | None = 3, *, sign: bool = False) -> str:
    """The figure without its interval; empty where it was not measured."""
    return "" if estimate is None else number(estimate.value, digits, sign=sign)


def ends(estimate: Estimate | None, digits: int = 3) -> str:
    """The interval over repeats of a figure above 0."""
    return "" if estimate is None else interval(estimate.lo, estimate.hi, digits, floor=0.0)


INDICES = (
    Column[TargetIndices]("target", lambda entry: entry.target, NAME),
    Column[TargetIndices](B, lambda entry: str(entry.concurrency)),
    Column[TargetIndices]("T_SI", lambda entry: value(entry.t_si)),
    Column[TargetIndices]("E_SI", lambda entry: value(entry.e_si.value)),
    Column[TargetIndices]("S_SI", lambda entry: value(entry.s_si)),
    Column[TargetIndices]("SI", lambda entry: value(entry.si)),
    Column[TargetIndices]("95% CI", lambda entry: ends(entry.si), INTERVAL),
    Column[TargetIndices]("SI geometric", lambda entry: value(entry.si_geometric)),
    Column[TargetIndices]("SI, S unclamped", lambda entry: value(entry.si_raw)),
    Column[TargetIndices]("deficit", lambda entry: value(entry.deficit, sign=True)),
    Column[TargetIndices]("COR", lambda entry: value(entry.cor_tps, 2, sign=True)),
    Column[TargetIndices]("class", lambda entry: entry.refusal or entry.cor_class or "", SHORT),
    Column[TargetIndices]("trap", lambda entry: entry.trap, SHORT),
)
"""A refused comparison has its sentence as its class."""
Share = tuple[int, WeightShare, WeightShare]
SHARES = (
    Column[Share](B, lambda share: str(share[0])),
    Column[Share]("target", lambda share: share[1].target, NAME),
    Column[Share]("wins for", lambda share: percent(share[1].share, 0)),
    Column[Share]("95% CI", lambda share: percents(share[1].lo, share[1].hi, 0), INTERVAL),
    Column[Share]("proven for", lambda share: percent(share[1].established, 0)),
    Column[Share]("with S unclamped", lambda share: percent(share[2].share, 0)),
)
"""The share of all weights of T, E and S, by B and target: B, the share with S clamped and the share without."""


def shares(spaces: Sequence[WeightSpace]) -> list[Share]:
    """The entries of `SHARES`."""
    raw = {(space.concurrency, entry.target): entry for space in spaces for entry in space.raw}
    return [
        (space.concurrency, entry, raw[space.concurrency, entry.target]) for space in spaces for entry in space.clamped
    ]


_DOMINANCE = {"tokens_per_s": "tokens/s", "energy_per_query_j": "J/query", "memory_bytes": "memory"}


def dominance(pairs: Sequence[Dominance]) -> Table:
    """A row per pair of targets that dominates or may, with all batches that have the same verdict: at least as good in
    everything, and better in something."""
    measured: dict[tuple[str, str], list[int]] = {}
    alike: dict[tuple[Any, ...], list[Dominance]] = {}
    for pair in pairs:
        of = pair.target, pair.other
        measured.setdefault(of, []).append(pair.concurrency)
        if pair.verdict != "does not":
            key = (*of, pair.verdict, pair.better, pair.worse, pair.unknown)
            alike.setdefault(key, []).append(pair)

    def metrics(names: Sequence[str]) -> str:
        return ", ".join(_DOMINANCE.get(metric, metric) for metric in names)

    def batches(same: list[Dominance]) -> str:
        return spanned([pair.concurrency for pair in same], measured[same[0].target, same[0].other], "")

    return table_of(
        (
            Column[list[Dominance]](B, batches),
            Column[list[Dominance]]("target", lambda same: same[0].target, NAME),
            Column[list[Dominance]]("against", lambda same: same[0].other, SHORT),
            Column[list[Dominance]]("verdict", _dominates, SHORT),
            Column[list[Dominance]]("better in", lambda same: metrics(same[0].better), TEXT),
            Column[list[Dominance]]("worse in", lambda same: metrics(same[0].worse), TEXT),
            Column[list[Dominance]]("not known", lambda same: metrics(same[0].unknown), TEXT),
        ),
        alike.values(),
    )


def _dominates(same: Sequence[Dominance]) -> str:
    """The verdict with the margin of accuracy, where it is within one, and the items that it rests on."""
    verdict = str(same[0].verdict)
    if verdict == "dominates within margin":
        verdict = f"dominates, accuracy within {percent(same[0].accuracy_margin, unit=' pp')}"
    counts = sorted(pair.items for pair in same if pair.items is not None)
    return f"{verdict} (n = {' to '.join(dict.fromkeys((str(counts[0]), str(counts[-1]))))})" if counts else verdict


CLAIMS = (
    Column[Claim]("targets", lambda claim: " and ".join(claim.targets), NAME),
    Column[Claim]("claim", lambda claim: claim.claim, TEXT),
    Column[Claim]("where", lambda claim: claim.source, SHORT),
    Column[Claim]("verdict", lambda claim: claim.verdict, SHORT),
    Column[Claim]("evidence", lambda claim: claim.evidence, TEXT),
)
_COSTS = {"energy_per_token_j": "J/token", "time_per_token_s": "ms/token"}
Fit = tuple[ModelStudy, ModelFit]
"""A study of one cost of one target, and one of the models fitted to it."""
MODELS = (
    Column[Fit]("target", lambda fit: fit[0].target, NAME),
    Column[Fit]("cost", lambda fit: _COSTS[fit[0].quantity], TEXT),
    Column[Fit]("model", lambda fit: fit[1].model, TEXT),
    Column[Fit]("ΔAICc", lambda fit: number(fit[1].delta_aicc, 1)),
    Column[Fit]("weight", lambda fit: number(fit[1].weight, 2)),
    Column[Fit]("scatter", lambda fit: percent(fit[1].scatter, 1)),
    Column[Fit]("left out", lambda fit: percent(fit[1].cv_error, 1)),
    Column[Fit]("misfit p", lambda fit: number(fit[1].lack_of_fit_p)),
    Column[Fit]("B* of the model", lambda fit: _crossing(fit[1].b_star), TEXT),
    Column[Fit]("B* measured", lambda fit: ", ".join(map(_crossing, fit[0].observed)), TEXT),
    Column[Fit]("parameters (95% CI)", lambda fit: "; ".join(map(_parameter, fit[1].parameters)), TEXT),
)
MODELS_NOTE = (
    "No headline: the measured curves cross where they cross, whatever a model says, and a model's intervals presume "
    "the model. scatter: of the cells around it; left out: its error at each B when fitted without it; misfit p: its "
    "residuals against the scatter of repeats, below 0.01 refuted."
)

TOKEN_ENERGY = (
    Column[TokenEnergy]("target", lambda entry: entry.target, NAME),
    Column[TokenEnergy](B, lambda entry: shown_held(held_of(entry.concurrency, entry.arrival))),
    Column[TokenEnergy]("J/prompt token", lambda entry: _joules(entry.prompt_token_energy_j)),
    Column[TokenEnergy]("95% CI", lambda entry: _joules_ends(entry.prompt_token_energy_j), INTERVAL),
    Column[TokenEnergy]("J/output token", lambda entry: _joules(entry.output_token_energy_j)),
    Column[TokenEnergy]("95% CI", lambda entry: _joules_ends(entry.output_token_energy_j), INTERVAL),
    Column[TokenEnergy]("residual", lambda entry: percent(entry.residual, 1)),
    Column[TokenEnergy]("repeats", lambda entry: str(entry.repeats)),
)
TOKEN_ENERGY_NOTE = (
    "Energy per query = a × prompt tokens + b × output tokens, fitted over the shapes by least squares of relative "
    "misfits, once for each repeat; intervals over repeats. A prompt token's joules include what its keys "
    "and values cost while the answer is decoded, and both have their share of idle power. residual: how far the "
    "shapes are from the fit."
)


def token_energy_notes(entries: Iterable[TokenEnergy]) -> list[str]:
    """What to know of these figures, or why there are none, equal sentences together."""
    where: dict[str, list[str]] = {}
    for entry in entries:
        for note in filter(None, (entry.why, *entry.notes)):
            where.setdefault(note, []).append(f"{entry.target}, {entry.level}")
    return [f"{places[0]}{f' and {len(places) - 1} more' if places[1:] else ''}: {note}"
            for note, places in where.items()]  # fmt: skip


def _joules(found: Estimate | None) -> str:
    return NOT_KNOWN if unknown(found) else value(found, None)


def _joules_ends(found: Estimate | None) -> str:
    return "" if found is None else interval(found.lo, found.hi)


def model_sentences(studies: Sequence[ModelStudy]) -> dict[str, list[str]]:
    """Target -> a sentence per cost that was measured, each followed by its reading of the paper's equations."""
    sentences: dict[str, list[str]] = {}
    for study in studies:
        sentences.setdefault(study.target, []).extend(filter(None, (study.sentence, study.reading)))
    return sentences


def model_notes(studies: Sequence[ModelStudy]) -> list[str]:
    """What the fits could not determine, each with its target and cost."""
    return [f"{s.target}, {_COSTS[s.quantity]}: {note}" for s in studies for note in s.notes]


def _crossing(found: BStar | Observed | None) -> str:
    if found is None:
        return ""
    side = "wins below" if found.direction == "wins_below" else "wins above"
    spread = "" if found.lo is None or found.hi is None else span(batch(found.lo), batch(found.hi))
    beyond = ""
    if isinstance(found, BStar):
        spread = spread or f"in {percent(found.share, 0)} of resamples"
        beyond = "" if found.measured else ", beyond what was measured"
    return f"{side} {batch(found.b)}{f' ({spread})' if spread else ''}{beyond}"


def _parameter(found: Parameter) -> str:
    if found.value is None or found.lo is None or found.hi is None:
        return f"{found.name} not determined"
    factor, unit = (1e3, "m" + found.unit) if found.unit.startswith("s/") else (1.0, found.unit)
    spread = interval(factor * found.lo, factor * found.hi)
    return f"{found.name} {number(factor * found.value)} {unit} ({spread})"


_CLIENT: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "client_cpu_share": ("CPU of the busiest client process, of a core", lambda share: percent(share, 0)),
    "loop_lag_ms_p50": ("event loop late, median", lambda ms: f"{number(ms)} ms"),
    "refill_gap_ms_mean": ("gap between two requests of a slot, mean", lambda ms: f"{number(ms)} ms"),
    "ttft_excess_ms": ("TTFT above the server's own histogram, mean", lambda ms: f"{number(ms)} ms"),
}
CLIENT = (
    Column[NearestCheck]("figure", lambda check: _CLIENT[check.figure][0], TEXT),
    Column[NearestCheck]("at its worst", lambda check: _CLIENT[check.figure][1](check.value)),
    Column[NearestCheck]("limit there", lambda check: _CLIENT[check.figure][1](check.limit)),
    Column[NearestCheck]("target", lambda check: check.target, NAME),
    Column[NearestCheck](B, lambda check: shown_held(held_of(check.concurrency, check.arrival))),
    Column[NearestCheck]("repeat", lambda check: str(check.repeat)),
    Column[NearestCheck]("", lambda check: "client-bound" if check.failed else "", SHORT),
)
CLIENT_NOTE = (
    "The cell closest to each limit. Above a limit the client is what was measured, and the cell is invalid. "
    "Every cell's figures are in cells.csv."
)
