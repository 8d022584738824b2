"""What the answers prove, as tables and sentences of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from loadgen.analysis.trust.accuracy import AccuracyComparison
from loadgen.analysis.trust.study import BatchTest, DepthTest, TrustTest
from loadgen.analysis.trust.trends import DepthBucket, TrustInvariance
from loadgen.reports.rows import INTERVAL, NAME, SHORT, TEXT, Column
from loadgen.words import interval, number, percent, percents, spanned

AGAINST = (
    Column[TrustTest]("target", lambda test: test.target, NAME),
    Column[TrustTest]("B", lambda test: str(test.concurrency)),
    Column[TrustTest]("T_SI", lambda test: number(test.t_si, 3)),
    Column[TrustTest]("95% CI", lambda test: interval(test.t_si_lo, test.t_si_hi, 3), INTERVAL),
    Column[TrustTest]("lost", lambda test: number(test.lost)),
    Column[TrustTest]("won", lambda test: number(test.won)),
    Column[TrustTest]("items", lambda test: number(test.items)),
    Column[TrustTest]("tokens", lambda test: _lengths(test.comparison)),
    Column[TrustTest]("verdict", lambda test: _verdict(test), TEXT),
)
"""Of each target at each B, question by question. tokens: mean length of an answer, the target's and the
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


def verdict_sentences(tests: Sequence[TrustTest], level: Callable[[int], str]) -> list[str]:
    """Neighbouring batches with the same verdict in one sentence: those of several with the range of differences."""
    sentences = []
    for target, ours in groupby(tests, key=lambda test: test.target):
        ordered = sorted(ours, key=lambda test: test.concurrency)
        measured = [test.concurrency for test in ordered]
        for _, alike in groupby(ordered, key=lambda test: test.verdict + _refusal(test)):
            tests_alike = list(alike)
            if len(tests_alike) == 1:
                where, verdict = level(tests_alike[0].concurrency), tests_alike[0].sentence
            else:
                where = spanned([test.concurrency for test in tests_alike], measured)
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
"""Of each target that answered the same items at several B."""


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
"""Of a target and a bucket of reasoning steps."""


def buckets(tests: Sequence[DepthTest]) -> list[Bucket]:
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
