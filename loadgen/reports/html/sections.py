"""What follows the first screen: tables of the run, of what the answers prove, of the paper's claims, and warnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby
from typing import TypeVar

from loadgen.analysis.crossover.crossing import Crossing
from loadgen.analysis.crossover.crossover import Crossover, placed
from loadgen.analysis.run import Run
from loadgen.analysis.trust.accuracy import AccuracyComparison
from loadgen.analysis.trust.study import BatchTest, DepthTest, TrustTest
from loadgen.analysis.trust.trends import DepthBucket, TrustInvariance
from loadgen.analysis.validity import Invalid, invalid_sentences
from loadgen.analysis.warnings import KEPT_SERVERS, checkpoint_notes, planned_cells
from loadgen.reports import rows
from loadgen.reports.html.markup import Html, element, items, join, table
from loadgen.reports.rows import INTERVAL, NAME, SHORT, TEXT, Column, table_of
from loadgen.search.story import Chapter, Story
from loadgen.words import NOT_KNOWN, WHY_NOT_KNOWN, batch, count, interval, number, percent, percents, span, spanned

AGAINST = (
    Column[TrustTest]("target", lambda test: test.target, NAME),
    Column[TrustTest]("B", lambda test: rows.shown_held(test.held)),
    Column[TrustTest]("T_SI", lambda test: number(test.t_si, 3)),
    Column[TrustTest]("95% CI", lambda test: interval(test.t_si_lo, test.t_si_hi, 3), INTERVAL),
    Column[TrustTest]("lost", lambda test: count(test.lost)),
    Column[TrustTest]("won", lambda test: count(test.won)),
    Column[TrustTest]("items", lambda test: count(test.items)),
    Column[TrustTest]("tokens", lambda test: _lengths(test.comparison)),
    Column[TrustTest]("verdict", lambda test: _verdict(test), TEXT),
)
"""Each target at each B, question by question. tokens: mean length of an answer, the target's and the
reference's."""


def _lengths(comparison: AccuracyComparison | None) -> str:
    if comparison is None:
        return ""
    lengths = number(comparison.output_tokens_mean, 0), number(comparison.reference_output_tokens_mean, 0)
    return " : ".join(lengths) if all(lengths) else ""


def _verdict(test: TrustTest) -> str:
    judged = test.judgement
    if judged is None:
        return test.sentence
    more = f", {judged.more_items} more items needed" if judged.more_items is not None else ""
    return f"{test.verdict}{more}{', confounded by length' if judged.confounded else ''}"


def verdict_sentences(tests: Sequence[TrustTest], level: Callable[[float], str]) -> list[str]:
    """Neighbouring batches with the same verdict in one sentence: those of several with the range of differences."""
    sentences = []
    for target, ours in groupby(tests, key=lambda test: test.target):
        ordered = sorted(ours, key=lambda test: test.held)
        measured = [test.concurrency for test in ordered]
        for _, alike in groupby(ordered, key=lambda test: test.verdict + _refusal(test)):
            tests_alike = list(alike)
            if len(tests_alike) == 1:
                where, verdict = level(tests_alike[0].held), tests_alike[0].sentence
            else:
                where = spanned([test.concurrency for test in tests_alike], measured)
                if tests_alike[0].arrival is not None:
                    where = ", ".join(level(test.held) for test in tests_alike)
                verdict = _refusal(tests_alike[0]) or _of_several(tests_alike)
            sentences.append(f"{target}, {where}: {verdict}")
    return sentences


def _refusal(test: TrustTest) -> str:
    return test.sentence if test.verdict == "refused" else ""


def _of_several(tests: Sequence[TrustTest]) -> str:
    compared = [test.comparison for test in tests if test.comparison is not None]
    differences, items = sorted(c.difference for c in compared), sorted(c.items for c in compared)
    ends = dict.fromkeys(percent(differences[place], 1, unit="", sign=True) for place in (0, -1))
    counts = dict.fromkeys(str(items[place]) for place in (0, -1))
    text = f"{tests[0].verdict}; {' to '.join(ends)} pp over {' to '.join(counts)} items"
    more = [test.judgement.more_items for test in tests if test.judgement and test.judgement.more_items is not None]
    return text + (f"; you need {min(more)} more items at least" if more else "")


OVER_B = (
    Column[BatchTest]("target", lambda test: test.target, NAME),
    Column[BatchTest]("items", lambda test: str(test.invariance.items)),
    Column[BatchTest]("accuracy over B", lambda test: _accuracies(test.invariance)),
    Column[BatchTest]("Cochran's p", lambda test: number(test.invariance.p, 3)),
    Column[BatchTest]("verdict", lambda test: _same_accuracy(test.invariance), TEXT),
    Column[BatchTest]("flips by B", lambda test: percent(_most_flips(test.invariance), 1)),
    Column[BatchTest]("at one B", lambda test: percent(test.invariance.noise.flip_rate, 1)),
    Column[BatchTest]("effect ratio", lambda test: number(test.effect_ratio.ratio, 1) if test.effect_ratio else ""),
)
"""Each target that answered the same items at several B."""


def _same_accuracy(invariance: TrustInvariance) -> str:
    return f"{invariance.verdict} (±{percent(invariance.margin, unit=' pp')})"


def _accuracies(invariance: TrustInvariance) -> str:
    shares = [invariance.smallest_accuracy, *(batch.accuracy for batch in invariance.batches)]
    return percents(min(shares), max(shares))


def _most_flips(invariance: TrustInvariance) -> float | None:
    rates = [batch.changed.flip_rate for batch in invariance.batches]
    return max((rate for rate in rates if rate is not None), default=None)


Bucket = tuple[str, DepthBucket]
BY_DEPTH = (
    Column[Bucket]("target", lambda of: of[0], NAME),
    Column[Bucket]("steps", lambda of: of[1].steps, SHORT),
    Column[Bucket]("items", lambda of: str(of[1].items)),
    Column[Bucket]("reference %", lambda of: percent(of[1].reference_accuracy, 1, unit="")),
    Column[Bucket]("target %", lambda of: percent(of[1].accuracy, 1, unit="")),
    Column[Bucket]("difference", lambda of: percent(of[1].difference, 1, unit=" pp", sign=True)),
    Column[Bucket]("95% CI", lambda of: percents(of[1].difference_lo, of[1].difference_hi, unit=""), INTERVAL),
    Column[Bucket]("relative loss", lambda of: percent(of[1].relative_loss, 1)),
    Column[Bucket]("95% CI", lambda of: percents(of[1].relative_loss_lo, of[1].relative_loss_hi), INTERVAL),
)
"""A target and a bucket of reasoning steps."""


def depth_buckets(tests: Sequence[DepthTest]) -> list[Bucket]:
    """The entries of `BY_DEPTH`."""
    return [(t.target, bucket) for t in tests if t.measure == "steps" for bucket in t.curve.buckets]


def depth_sentences(tests: Sequence[DepthTest]) -> list[str]:
    """Per target: whether its loss changes with depth, and the fit of a constant loss per step."""
    sentences = []
    for test in (test for test in tests if test.measure == "steps"):
        trend, fit = test.curve.relative, test.curve.survival
        parts = []
        if trend is not None:
            change = "the loss grows with depth" if trend.z < 0 else "the loss shrinks with depth"
            change = change if trend.p <= 0.05 else "no change with depth is shown"
            parts.append(f"{change} (precision × depth interaction, p = {number(trend.p, 3)})")
        if fit is not None:
            ends = interval(fit.lo, fit.hi, 3)
            parts.append(f"a step survives with probability {number(fit.q, 3)} ({ends})")
        if parts:
            sentences.append(f"{test.target}: {'; '.join(parts)}")
    return sentences


Of = TypeVar("Of")


def run_table(
    run: Run, columns: Sequence[Column[Of]], entries: Iterable[Of], label: str, *, by: Collection[str] = ()
) -> Html:
    """A table of the run, with its stamp and its name for B; a rule divides rows that differ in the columns `by`."""
    return table(
        table_of(columns, entries), label=label, simulated=run.manifest.simulated, grouped_by=by,
        b=rows.RATE if run.arrival else rows.B,
    )  # fmt: skip


def result(run: Run) -> Html:
    """A row per target and B with all figures."""
    shown = table_of(rows.result_columns(run), rows.summary_rows(run)).filled
    note = "Means over the repeats in which the figure is valid; latencies are medians of the cells, averaged. "
    if not run.arrival:
        note += f"× ref: tokens/s against {run.manifest.config.reference}. "
    note += "Intervals: over repeats, of accuracy over questions. "
    if not run.arrival:
        note += "J/query is over each target's own items; comparisons take those of both sides."
    if any(NOT_KNOWN in row for row in shown.rows):
        note += f" {WHY_NOT_KNOWN}"
    made = table(
        shown, label="Result", simulated=run.manifest.simulated, grouped_by=("B",),
        b=rows.RATE if run.arrival else rows.B,
    )  # fmt: skip
    return join((element("p", note, class_="small"), made))


def traffic(run: Run) -> Html:
    """An open loop's arrivals cell by cell, and goodput; empty without either."""
    parts: list[Html] = []
    if run.arrival is not None:
        note = (
            "Latencies begin when a request was due, whenever the client came to send it. Late: sent more than 5 ms "
            f"after that. Dropped: {run.manifest.config.concurrency[0]} requests were in flight already."
        )
        made = run_table(run, rows.TRAFFIC, run.cells.to_dict("records"), "Arrivals", by=("target",))
        parts += [element("p", note, class_="small"), made]
    if run.analysis.slo:
        parts.append(element("h3", f"Goodput: requests within {run.analysis.slo}"))
        parts.append(run_table(run, rows.GOODPUT, rows.summary_rows(run), "Goodput", by=("B",)))
    return join(parts)


_METRICS = {
    "tokens_per_s": "tokens/s",
    "energy_per_token_j": "J/token",
    "energy_per_query_j": "J/query",
    "energy_hli_per_query_j": "J/query, HLI bound",
    "energy_per_correct_j": "J/correct answer",
    "si": "SI",
}
Star = tuple[Crossover, Crossing | None]
_CROSSOVERS = (
    Column[Star]("target", lambda star: star[0].target, NAME),
    Column[Star]("by", lambda star: _METRICS[star[0].metric], SHORT),
    Column[Star]("B*", lambda star: _b_star(star[1])),
    Column[Star]("95% CI", lambda star: _ends(star[1]), INTERVAL),
    Column[Star]("in words", lambda star: _words(*star), TEXT),
)


def crossovers(run: Run) -> Html:
    """A row per B*, and one per comparison without any; then COR over B in words."""
    stars: list[Star] = []
    for found in run.analysis.crossovers:
        if found.refusal is None:
            stars += [(found, crossing) for crossing in found.crossings] or [(found, None)]
    made = run_table(run, _CROSSOVERS, stars, "Crossovers", by=("target",))
    curves = [f"{curve.target}: {curve.sentence}" for curve in run.analysis.cor_curves if curve.sentence]
    heading = element("h3", "COR, tokens/s of the reference over the target's, less 1")
    return join((made, heading, items(curves))) if curves else made


_STEPS = (
    Column[Chapter]("step", lambda step: str(step.repeat)),
    Column[Chapter]("phase", lambda step: step.phase, SHORT),
    Column[Chapter]("measured", lambda step: _started(step), TEXT),
    Column[Chapter]("where it stood, and why this was next", lambda step: step.why, TEXT),
)


def search(run: Run) -> Html:
    """What a search for B* found, and its steps; empty of a grid."""
    story = run.analysis.search
    if story is None:
        return Html("")
    answers = items([f"{_METRICS[answer.metric]}: {answer.sentence}" for answer in story.answers])
    goal = (
        f"Goal: every B* from B = {story.range[0]} to {story.range[1]} within {percent(story.within)}. The steps "
        "called locate are in no interval; the intervals rest on the repeats."
    )
    if run.manifest.kept_servers:
        goal += f" {KEPT_SERVERS}{_moved(story)}"
    if not story.ended:
        goal += " The search has not ended: loadgen sweep --resume goes on."
    told = run_table(run, _STEPS, story.chapters, "Steps of the search")
    return join((answers, element("p", goal, class_="small"), told))


def _moved(story: Story) -> str:
    """How far a restart would move each B*."""
    slopes = {
        f"{answer.target} by {_METRICS[answer.metric]}": abs(crossing.slope)
        for answer in story.answers
        for crossing in answer.crossings
        if crossing.slope
    }
    moves = [f"{percent(math.expm1(0.01 / slope))} ({name})" for name, slope in slopes.items()]
    return f" Each 1% by which it would change the ratio moves B* by about {', '.join(moves)}." if moves else ""


def _started(step: Chapter) -> str:
    """As "fp16, awq at B = 1, 16"."""
    alike = dict.fromkeys(start.concurrency for start in step.starts)
    sides = {b: [start.side for start in step.starts if start.concurrency == b] for b in alike}
    return "; ".join(f"{', '.join(names)} at B = {', '.join(map(str, b))}" for b, names in sides.items())


def _b_star(crossing: Crossing | None) -> str:
    return "" if crossing is None else batch(crossing.b) if placed(crossing) else NOT_KNOWN


def _ends(crossing: Crossing | None) -> str:
    if crossing is None or not placed(crossing) or crossing.lo is None or crossing.hi is None:
        return ""
    return span(batch(crossing.lo), batch(crossing.hi))


def _words(found: Crossover, crossing: Crossing | None) -> str:
    """The comparison's sentence, once."""
    if crossing is not None and crossing != found.crossings[0]:
        return "as above"
    return " · ".join((found.sentence, *found.notes))


def accuracy(run: Run) -> Html:
    """Question by question against the reference, over B and by depth; empty where nothing was graded."""
    analysis = run.analysis
    parts: list[Html] = []
    if analysis.trust:
        sentences = items(verdict_sentences(analysis.trust, run.level))
        parts += [
            element("h3", f"Against {analysis.reference}, question by question"),
            run_table(run, AGAINST, analysis.trust, "Accuracy, paired", by=("target",)),
            element("details", element("summary", "The same in words"), sentences),
        ]
    if analysis.trust_invariance:
        parts.append(element("h3", "Over the batch size"))
        parts.append(run_table(run, OVER_B, analysis.trust_invariance, "Accuracy over the batch size"))
    if buckets := depth_buckets(analysis.depth):
        parts.append(element("h3", "By reasoning steps"))
        parts.append(run_table(run, BY_DEPTH, buckets, "Loss by reasoning steps", by=("target",)))
        if sentences_of_depth := depth_sentences(analysis.depth):
            parts.append(element("p", "; ".join(sentences_of_depth), class_="small"))
    return join(parts)


def indices(run: Run) -> Html:
    """Pillars and SI per target and B, the weights each precision wins, Pareto dominance."""
    analysis = run.analysis
    parts = [run_table(run, rows.INDICES, analysis.indices, "Indices", by=("target",))]
    if shares := rows.shares(analysis.weight_space):
        title = "Share of all weights of T, E and S for which a precision has the highest SI"
        parts += [element("h3", title), run_table(run, rows.SHARES, shares, "Weights", by=("B",))]
    if (pairs := rows.dominance(analysis.dominance)).rows:
        made = table(pairs, label="Dominance", simulated=run.manifest.simulated, grouped_by=("B",))
        parts += [element("h3", "Pareto dominance: at least as good in everything, better in something"), made]
    return join(parts)


def token_energy(run: Run) -> Html:
    """Joules of a prompt token and of an output token, of a run with several shapes."""
    entries = run.analysis.token_energy
    if not entries:
        return Html("")
    fitted = [entry for entry in entries if entry.prompt_token_energy_j is not None]
    made = run_table(run, rows.TOKEN_ENERGY, fitted, "Joules by token", by=("target",))
    return join((element("p", rows.TOKEN_ENERGY_NOTE, class_="small"), made, items(rows.token_energy_notes(entries))))


def client(run: Run) -> Html:
    """How close the client came to its limits."""
    checks = run.analysis.client
    note = element("p", rows.CLIENT_NOTE, class_="small")
    return join((note, run_table(run, rows.CLIENT, checks, "The client"))) if checks else Html("")


def claims(run: Run) -> Html:
    """The paper's claims with a verdict each."""
    return run_table(run, rows.CLAIMS, run.analysis.claims, "Claims of arXiv 2602.13595", by=("claim",))


def models(run: Run) -> Html:
    """The fitted cost models: what they say in words, then every fit."""
    studies = run.analysis.models
    parts: list[Html] = []
    for target, sentences in rows.model_sentences(studies).items():
        parts += [element("h3", target), items(sentences)]
    if fits := [(study, fit) for study in studies for fit in study.models]:
        made = run_table(run, rows.MODELS, fits, "Cost models", by=("target", "cost"))
        parts += [element("p", rows.MODELS_NOTE, class_="small"), made]
    parts.append(items(rows.model_notes(studies), class_="small"))
    return join(parts)


def validity(run: Run) -> Html:
    """How many of the planned cells count, a link to why the others do not, and what the checkpoints say."""
    planned, measured = planned_cells(run.manifest), len(run.every_cell)
    line = rows.cells_valid(run.every_cell, of=planned)
    line += f", {planned - measured} not measured" if measured < planned else ""
    why = element("a", "What is invalid, and why", href="#doubts") if run.invalid else ""
    counts = element("p", element("strong", line + "."), " ", why)
    notes = items(checkpoint_notes(run.manifest))
    return element("div", counts, notes, class_="validity" if run.complete else "validity warn")


def doubts(run: Run) -> Html:
    """What is invalid in which cell and why, servers that failed, and every other warning."""
    columns = (
        Column[Invalid]("target", lambda one: one.target, NAME),
        Column[Invalid](
            "arrivals" if run.arrival else "B", lambda one: one.arrival or run.arrival or str(one.concurrency)
        ),
        *([Column[Invalid]("shape", lambda one: one.shape or "", SHORT)] if run.shape else []),
        Column[Invalid]("repeat", lambda one: str(one.repeat)),
        Column[Invalid]("invalid", lambda one: one.quantity, TEXT),
        Column[Invalid]("why", lambda one: one.reasons, TEXT),
    )
    listed = {*invalid_sentences(run.invalid, run.arrival), *checkpoint_notes(run.manifest)}
    warnings = [warning for warning in run.analysis.warnings if warning not in listed]
    note = "Where the load is invalid, latency and energy are too: they belong to another load."
    heading = join((element("h3", "Invalid cells"), element("p", note, class_="small"))) if run.invalid else Html("")
    return join((heading, run_table(run, columns, run.invalid, "Invalid cells"), items(warnings, class_="warnings")))
