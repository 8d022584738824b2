"""The first screen: what the run says of each target, and the figure that shows it; then both in full, B by B."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from loadgen.analysis.analyse import Analysis
from loadgen.analysis.estimate import Estimate
from loadgen.analysis.indices.study import TargetIndices
from loadgen.analysis.run import Run, held_in
from loadgen.analysis.trust.accuracy import AccuracyComparison
from loadgen.analysis.trust.study import TrustTest
from loadgen.reports import rows
from loadgen.reports.figures import Figure
from loadgen.reports.html.markup import Html, element, gallery, join, table, words_of
from loadgen.reports.rows import INTERVAL, NAME, Column, Table, table_of
from loadgen.words import NOT_KNOWN, WHY_NOT_KNOWN, number, percent, percents, span

HEADLINES = ("energy_per_query_j", "tokens_per_s")
"""The crossover of the first of them that was measured is the headline."""
LEADS = ("energy", "throughput", "ttft", "e2e", "ttft-distribution", "e2e-distribution")
"""The first of them that was drawn is the figure of the first screen."""
_END = re.compile("</(?:h3|p|li)>")
_MOST_LETTERS = 400
"""A longer text comes after the figure on a phone, whose first screen it would fill."""
_TRAP = {"trap": "yes", "no trap": "no", "cannot tell": "cannot tell"}


def lead(figures: Sequence[Figure]) -> Figure | None:
    """The figure of the first screen; None where nothing was drawn."""
    by_name = {figure.name: figure for figure in figures}
    return next((by_name[name] for name in LEADS if name in by_name), None)


def answer(run: Run, shown: Figure | None, terms: Html) -> Html:
    """What the run says of each target, the figure, and what the `terms` of both mean."""
    if run.arrival is not None:
        said = _traffic(run)
    else:
        targets = dict.fromkeys(entry.target for entry in run.analysis.crossovers)
        said = [_target(run, target) for target in targets] or [_alone(run)]
    order = "answer figure-first" if len(words_of(join(said))) > _MOST_LETTERS else "answer"
    drawn = element("div", gallery([shown] if shown else [], folded=True), _not_energy(run, shown), class_="lead")
    return element("div", element("div", *said, class_="said"), drawn, terms, class_=order)


def sentences(run: Run) -> list[str]:
    """The same as plain texts, one for each target; in an open loop one for each target and rate."""
    if run.arrival is not None:
        told = rows.traffic_sentences(run)
        return [f"{target}, {run.level(b)}: {text}." for target in told for b, text in told[target].items()]
    targets = dict.fromkeys(entry.target for entry in run.analysis.crossovers)
    articles = [_target(run, target) for target in targets] or [_alone(run)]
    parts = [words_of(Html(_END.sub("|", article))).split("|") for article in articles]
    texts = [[" ".join(part.split()).removesuffix(".") for part in article if part.strip()] for article in parts]
    return [f"{first}: {'. '.join(rest)}." if targets else f"{first}. {'. '.join(rest)}." for first, *rest in texts]


def _not_energy(run: Run, shown: Figure | None) -> Html:
    """Why the figure is not of energy; nothing if it is."""
    if shown is not None and shown.name == LEADS[0]:
        return Html("")
    reason = run.manifest.power.reason or "valid in no cell"
    instead = f"The figure shows {shown.title[:1].lower()}{shown.title[1:]}." if shown else ""
    return element("p", f"Energy was not measured ({reason}). {instead}", class_="small")


def _target(run: Run, target: str) -> Html:
    """A sentence, then the verdicts of accuracy and of the trap."""
    analysis = run.analysis
    test = _most_answered(run, target)
    verdicts = [
        *_traps([entry for entry in analysis.indices if entry.target == target]),
        element("li", f"Accuracy {test.brief}", class_="plain") if test else "",
    ]
    return element(
        "article",
        element("h3", f"{target} against {analysis.reference}", class_="unseen"),
        element("p", _headline(analysis, target) + ".", class_="big"),
        element("ul", *verdicts, class_="verdicts") if any(verdicts) else "",
        class_="target",
    )


def _alone(run: Run) -> Html:
    """Nothing to compare: the ends of the only curve."""
    said = [f"Only {run.analysis.reference} was measured: there is nothing to compare."]
    for column, unit in (("energy_per_query_j", "J per query"), ("tokens_per_s", "tokens/s")):
        measured = [row for row in rows.summary_rows(run) if row[column] == row[column]]
        ends = measured[:1] + measured[1:][-1:]
        if ends:
            said.append(" and ".join(f"{number(row[column])} {unit} at B = {row['concurrency']}" for row in ends) + ".")
    texts = (element("p", text, class_="big" if text == said[0] else "") for text in said)
    return element("article", *texts, class_="target")


def _traffic(run: Run) -> list[Html]:
    """What an open loop says; only a closed loop can say which precision pays off by B. A table if there are several
    rates: its sentences are in the section of the arrivals."""
    if len(run.rates) > 1:
        made = table(
            table_of(_RATES, rows.summary_rows(run)).filled, label="By rate", simulated=run.manifest.simulated,
            grouped_by=(rows.RATE,),
        )  # fmt: skip
        return [join((element("h3", f"{', '.join(run.summary['target'].unique())} at {run.arrival}"), made))]
    return [
        element(
            "article",
            element("h3", f"{target} at {run.arrival}"),
            *(element("p", text + ".", class_="big") for text in told.values()),
            class_="target",
        )
        for target, told in rows.traffic_sentences(run).items()
    ]


_RATES = (
    Column[rows.CsvRow](rows.RATE, lambda row: rows.shown_held(held_in(row))),
    Column[rows.CsvRow]("target", lambda row: str(row["target"]), NAME),
    Column[rows.CsvRow]("answered /s", lambda row: number(row["completed_per_s"])),
    Column[rows.CsvRow]("TTFT p99, ms", lambda row: number(row["ttft_ms_p99"], 0)),
    Column[rows.CsvRow]("E2E p99, ms", lambda row: number(row["e2e_ms_p99"], 0)),
    Column[rows.CsvRow]("good %", lambda row: percent(row["goodput_share"], 1, unit="")),
    Column[rows.CsvRow]("J/query", lambda row: number(row["energy_per_query_j"])),
)


def _headline(analysis: Analysis, target: str) -> str:
    found = {entry.metric: entry for entry in analysis.crossovers if entry.target == target}
    of_headlines = [found[metric] for metric in HEADLINES if metric in found]
    measured = [entry for entry in of_headlines if entry.refusal is None]
    shown = (measured or of_headlines)[0]
    return _capital(shown.sentence) if shown.status == "unresolved" else shown.sentence


def _traps(indices: Sequence[TargetIndices]) -> list[Html]:
    """Trap: yes, no or cannot tell, over B; neighbours with the same verdict together."""
    spans = [(trap, [e.concurrency for e in alike]) for trap, alike in groupby(indices, lambda entry: entry.trap)]
    chips = [
        element("li", element("b", _TRAP[trap]), f" at B = {span(b[0], b[-1])}", class_=trap.replace(" ", "-"))
        for trap, b in spans
    ]
    return [element("li", "Trap:", class_="name"), *chips] if chips else []


def _most_answered(run: Run, target: str) -> TrustTest | None:
    """The comparison of answers at the batch at which both answered most questions."""
    tests = [test for test in run.analysis.trust if test.target == target and test.items]
    return max(tests, key=lambda test: test.items or 0, default=None)


def in_full(run: Run) -> Html:
    """Each target's verdicts with their reasons, then the figures behind them, B by B."""
    said = [entry for target in dict.fromkeys(run.summary["target"]) for entry in _reasons(run, target)]
    return join((*said, _comparison(run)))


def _reasons(run: Run, target: str) -> list[Html]:
    texts = [f"Quantization trap: {entry.sentence}." for entry in run.analysis.traps if entry.target == target]
    if (test := _most_answered(run, target)) is not None:
        where = f"Accuracy over the {test.items} questions that both answered at {run.level(test.held)}"
        texts.append(f"{where}: {test.sentence}.")
    heading = [element("h3", f"{target} against {run.analysis.reference}")] if texts else []
    return heading + [element("p", text, class_="small") for text in texts]


Pair = tuple[TargetIndices, AccuracyComparison | None]
"""The indices, and the comparison of the answers at the same B."""
_COMPARISON = (
    Column[Pair]("target", lambda pair: pair[0].target, NAME),
    Column[Pair]("B", lambda pair: str(pair[0].concurrency)),
    Column[Pair]("tok/s × {}", lambda pair: rows.value(pair[0].e_si.eta, 2)),
    Column[Pair]("95% CI", lambda pair: rows.ends(pair[0].e_si.eta, 2), INTERVAL),
    Column[Pair]("J/query × {}", lambda pair: rows.value(_energy(pair[0]), 2)),
    Column[Pair]("95% CI", lambda pair: rows.ends(_energy(pair[0]), 2), INTERVAL),
    Column[Pair]("accuracy, pp", lambda pair: percent(pair[1].difference if pair[1] else None, 1, unit="", sign=True)),
    Column[Pair]("95% CI", lambda pair: _points(pair[1]), INTERVAL),
    Column[Pair]("n", lambda pair: str(pair[1].items) if pair[1] else ""),
    Column[Pair]("SI", lambda pair: rows.value(pair[0].si, 2)),
    Column[Pair]("95% CI", lambda pair: rows.ends(pair[0].si, 2), INTERVAL),
)


def _comparison(run: Run) -> Html:
    reference = run.analysis.reference
    compared = {(test.target, test.concurrency): test.comparison for test in run.analysis.trust}
    pairs = [(e, compared.get((e.target, e.concurrency))) for e in run.analysis.indices]
    made = table_of(_COMPARISON, pairs)
    made = Table(
        tuple(heading.format(reference) for heading in made.headings), made.kinds,
        [row for row in made.rows if any(row[2:])],
    ).filled  # fmt: skip
    label = f"Every target against {reference}, B by B"
    shown = table(made, label=label, simulated=run.manifest.simulated, grouped_by=("B",))
    note = element("p", WHY_NOT_KNOWN, class_="small") if any(NOT_KNOWN in row for row in made.rows) else ""
    return join((element("h3", label), shown, note)) if made.rows else Html("")


def _energy(entry: TargetIndices) -> Estimate | None:
    return entry.energy.ratio if entry.energy and entry.energy.source == "measured" else None


def _points(compared: AccuracyComparison | None) -> str:
    return percents(compared.difference_lo, compared.difference_hi, unit="", sign=True) if compared else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
