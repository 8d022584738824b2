"""What follows the first screen: tables of the run, of what the answers prove, and of the paper's claims.

What counts and what does not, and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from loadgen.analysis.analyse import checkpoint_notes, planned_cells
from loadgen.analysis.crossover.crossing import Crossing
from loadgen.analysis.crossover.crossover import number, placed
from loadgen.analysis.run import Run
from loadgen.analysis.validity import invalid_sentences
from loadgen.reports.grid import HEADINGS, NOT_KNOWN, WHY_NOT_KNOWN, cells_valid, shown_columns, table_rows
from loadgen.reports.html.markup import Html, element, items, join, stamp, table
from loadgen.reports.rows import (
    ASIDE,
    CLIENT,
    DOMINANCE,
    GOODPUT,
    INDICES,
    MODELS,
    NOTE,
    SHARES,
    TRAFFIC,
    client_rows,
    dominance_rows,
    goodput_rows,
    index_rows,
    model_notes,
    model_rows,
    model_sentences,
    share_rows,
    traffic_rows,
)
from loadgen.reports.terminal import CLAIMS, claim_rows
from loadgen.reports.trust import (
    AGAINST,
    BY_DEPTH,
    OVER_B,
    against_rows,
    depth_rows,
    depth_sentences,
    over_b_rows,
    verdict_sentences,
)
from loadgen.reports.words import STAMP

Entry = Mapping[str, Any]
_METRICS = {
    "tokens_per_s": "tokens/s",
    "energy_per_token_j": "J/token",
    "energy_per_query_j": "J/query",
    "energy_hli_per_query_j": "J/query, HLI bound",
    "energy_per_correct_j": "J/correct answer",
    "si": "SI",
}
_CAP = "in flight ≤"
"""What an open loop's concurrency is."""
_CROSSOVERS = ("target", "by", "B*", "95% CI", "in words")


def result(run: Run) -> Html:
    """The table of the terminal with all its columns."""
    reference = run.manifest.config.reference
    rows = table_rows(run.summary)
    columns = shown_columns(rows)
    made = table(
        _headings(run, [HEADINGS[place] for place in columns]),
        [[row[place] for place in columns] for row in rows],
        label="Result",
        name_column=columns.index(HEADINGS.index("target")),
        grouped_by=(columns.index(HEADINGS.index("B")),),
        sortable=True,
    )
    note = (
        "Means over the repeats in which the figure is valid; latencies are medians of the cells, averaged. "
        + ("" if run.arrival else f"× ref: tokens/s against {reference}. ")
        + "Intervals: over repeats, of accuracy over questions. "
        + ("" if run.arrival else "J/query is over each target's own items; comparisons take those of both sides.")
        + (f" {WHY_NOT_KNOWN}" if any(NOT_KNOWN in row for row in rows) else "")
    )
    return join((element("p", note, class_="small"), made))


def traffic(run: Run) -> Html:
    """An open loop's arrivals cell by cell, and goodput; empty without either."""
    parts: list[Html] = []
    if rows := traffic_rows(run):
        note = (
            "Latencies begin when a request was due, whenever the client came to send it. Late: sent more than 5 ms "
            f"after that. Dropped: {run.manifest.config.concurrency[0]} requests were in flight already."
        )
        made = table(TRAFFIC, rows, label="Arrivals", grouped_by=(0,), short_columns=(0,))
        parts += [element("p", note, class_="small"), made]
    if rows := goodput_rows(run):
        parts.append(element("h3", f"Goodput: requests within {run.analysis_json['slo']}"))
        parts.append(table(_headings(run, GOODPUT), rows, label="Goodput", name_column=1, grouped_by=(0,)))
    return join(parts)


def crossovers(analysis: Entry) -> Html:
    """A row per B*, and one per comparison without any; then COR over B in words."""
    suffix = f" {STAMP}" if analysis["simulated"] else ""
    rows = []
    for found in analysis["crossovers"]:
        if found["refusal"] is not None:
            continue
        named = (found["target"] + suffix, _METRICS.get(found["metric"], found["metric"]))
        words = " · ".join((found["sentence"], *found["notes"]))
        for at in found["crossings"] or (None,):
            rows.append((*named, *_b_star(at), words))
            words = "as above"
    made = table(_CROSSOVERS, rows, label="Crossovers", grouped_by=(0,), short_columns=(0, 1))
    told = [f"{curve['target']}: {curve['sentence']}" for curve in analysis["cor_curves"] if curve["sentence"]]
    heading = element("h3", "COR, tokens/s of the reference over the target's, less 1 ", stamp(simulated=bool(suffix)))
    return join((made, heading, items(told))) if told else made


def accuracy(run: Run) -> Html:
    """Question by question against the reference, over B and by depth; empty where nothing was graded."""
    analysis = run.analysis_json
    parts: list[Html] = []
    simulated = analysis["simulated"]
    if tests := analysis["trust"]:
        parts.append(element("h3", f"Against {tests[0]['reference']}, question by question"))
        rows = against_rows(tests, simulated=simulated)
        parts.append(table(_headings(run, AGAINST), rows, label="Accuracy, paired", grouped_by=(0,)))
        told = verdict_sentences(tests, run.level)
        parts.append(element("details", element("summary", "The same in words ", stamp(simulated=simulated)),
                             items(told)))  # fmt: skip
    if tests := analysis["trust_invariance"]:
        parts.append(element("h3", "Over the batch size"))
        parts.append(table(OVER_B, over_b_rows(tests, simulated=simulated), label="Accuracy over the batch size"))
    if rows := depth_rows(analysis["depth"], simulated=simulated):
        parts.append(element("h3", "By reasoning steps"))
        parts.append(table(BY_DEPTH, rows, label="Loss by reasoning steps", grouped_by=(0,)))
        told = depth_sentences(analysis["depth"])
        parts.append(element("p", "; ".join(told), " ", stamp(simulated=simulated), class_="small") if told else Html())
    return join(parts)


def indices(analysis: Entry) -> Html:
    """Pillars and SI per target and B, the weights each precision wins, Pareto dominance."""
    simulated = analysis["simulated"]
    rows = index_rows(analysis["indices"], simulated=simulated)
    shares = share_rows(analysis["weight_space"], simulated=simulated)
    pairs = dominance_rows(analysis["dominance"], simulated=simulated)
    parts = [table(INDICES, rows, label="Indices", grouped_by=(0,), short_columns=(0, 11, 12))]
    if shares:
        parts += [
            element("h3", "Share of all weights of T, E and S for which a precision has the highest SI"),
            table(SHARES, shares, label="Weights", name_column=1, grouped_by=(0,), short_columns=(1,)),
        ]
    if pairs:
        parts += [
            element("h3", "Pareto dominance: at least as good in everything, better in something"),
            table(DOMINANCE, pairs, label="Dominance", name_column=1, grouped_by=(0,), short_columns=(1, 2, 3)),
        ]
    return join(parts)


def client(analysis: Entry) -> Html:
    """How close the client came to its limits."""
    rows = client_rows(analysis.get("client", ()), simulated=analysis["simulated"])
    note = element("p", NOTE, class_="small")
    return join((note, table(CLIENT, rows, label="The client", short_columns=(1, 2, 3, 6)))) if rows else Html("")


def claims(analysis: Entry) -> Html:
    """The paper's claims with a verdict each."""
    rows = claim_rows(analysis.get("claims", ()), simulated=analysis["simulated"])
    return table(CLAIMS, rows, label="Claims of arXiv 2602.13595", grouped_by=(1,), short_columns=(0, 2, 3))


def models(analysis: Entry) -> Html:
    """The fitted cost models: what they say in words, then every fit."""
    studies, simulated = analysis["models"], analysis["simulated"]
    parts: list[Html] = []
    for target, sentences in model_sentences(studies, simulated=simulated).items():
        parts += [element("h3", target), items(sentences)]
    if rows := model_rows(studies, simulated=simulated):
        parts += [element("p", ASIDE, class_="small"), table(MODELS, rows, label="Cost models", grouped_by=(0, 1))]
    parts.append(items(model_notes(studies), class_="small"))
    return join(parts)


def _headings(run: Run, headings: Sequence[str]) -> list[str]:
    """With the name of what an open loop has in B's place."""
    return [_CAP if run.arrival and heading == "B" else heading for heading in headings]


def _b_star(crossing: Entry | None) -> tuple[str, str]:
    if crossing is None:
        return "", ""
    found = msgspec.convert(crossing, Crossing)
    if not placed(found):
        return NOT_KNOWN, ""
    ends = "" if found.lo is None or found.hi is None else f"{number(found.lo)}–{number(found.hi)}"
    return number(found.b), ends


_MOST_REASONS = 3


def validity(run: Run) -> Html:
    """How many of the planned cells count, the first reasons why the others do not, and what the checkpoints say."""
    planned, measured = planned_cells(run.manifest), len(run.cells)
    invalid = invalid_sentences(run.invalid, run.arrival)
    line = cells_valid(run.cells, of=planned)
    line += f", {planned - measured} not measured" if measured < planned else ""
    reasons = invalid[:_MOST_REASONS]
    if len(invalid) > _MOST_REASONS:
        reasons.append(f"and {len(invalid) - _MOST_REASONS} more, listed below")
    reasons += checkpoint_notes(run.manifest)
    power = run.manifest.power
    if power.kind == "none":
        reasons.append(f"energy: not measured, {power.reason}")
    told = element("p", element("strong", line + "."), " Intervals are 95%.")
    return element("div", told, items(reasons), class_="validity" if run.complete else "validity warn")


def doubts(run: Run) -> Html:
    """What is invalid in which cell and why, servers that failed, and every other warning."""
    suffix = f" {STAMP}" if run.analysis_json["simulated"] else ""
    rows = [
        (one.target + suffix, run.arrival or str(one.concurrency), str(one.repeat), one.quantity, one.reasons)
        for one in run.invalid
    ]
    listed = {*invalid_sentences(run.invalid, run.arrival), *checkpoint_notes(run.manifest)}
    warnings = [warning for warning in run.analysis_json["warnings"] if warning not in listed]
    note = "Where the load is invalid, latency and energy are too: they belong to another load."
    heading = join((element("h3", "Invalid cells"), element("p", note, class_="small"))) if rows else Html("")
    headings = ("target", "arrivals" if run.arrival else "B", "repeat", "invalid", "why")
    return join((heading, table(headings, rows, label="Invalid cells"), items(warnings, class_="warnings")))
