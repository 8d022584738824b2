"""What the answers prove, as rows for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from loadgen.analysis.estimate import spanned
from loadgen.reports.words import stamped

AGAINST = ("target", "B", "T_SI", "95% CI", "lost", "won", "items", "tokens", "verdict")
OVER_B = ("target", "items", "accuracy over B", "Cochran's p", "verdict", "flips by B", "at one B", "effect ratio")
BY_DEPTH = ("target", "steps", "items", "reference %", "target %", "difference", "95% CI", "relative loss", "95% CI")

Row = tuple[str, ...]
Entry = Mapping[str, Any]


def against_rows(tests: Sequence[Entry], *, simulated: bool) -> list[Row]:
    """A row per target x concurrency."""
    return [
        (
            stamped(test["target"], simulated=simulated),
            str(test["concurrency"]),
            _number(test["t_si"], 3),
            _interval(test["t_si_lo"], test["t_si_hi"], 3),
            _count(test["lost"]),
            _count(test["won"]),
            _count(test["items"]),
            _lengths(test["comparison"]),
            _short(test),
        )
        for test in tests
    ]


def verdict_sentences(tests: Sequence[Entry], level: Callable[[int], str]) -> list[str]:
    """Neighbouring batches with the same verdict in one sentence: those of several with the range of differences."""
    said = []
    for target, ours in groupby(tests, key=lambda test: test["target"]):
        ordered = sorted(ours, key=lambda test: test["concurrency"])
        measured = [test["concurrency"] for test in ordered]
        for _, alike in groupby(ordered, key=_alike):
            span = list(alike)
            if len(span) == 1:
                said.append(f"{target}, {level(span[0]['concurrency'])}: {span[0]['sentence']}")
            else:
                where = spanned([test["concurrency"] for test in span], measured)
                said.append(f"{target}, {where}: {_of_several(span)}")
    return said


def _alike(test: Entry) -> tuple[str, ...]:
    """A refusal is alike where it has the same reason."""
    return (test["verdict"], test["sentence"] if test["verdict"] == "refused" else "")


def _of_several(tests: Sequence[Entry]) -> str:
    if tests[0]["verdict"] == "refused":
        return str(tests[0]["sentence"])
    differences = sorted(100 * test["comparison"]["difference"] for test in tests)
    items = sorted(int(test["items"]) for test in tests)
    ends = [f"{value:+.1f}".replace("-", "\N{MINUS SIGN}") for value in (differences[0], differences[-1])]
    counts = dict.fromkeys(map(str, (items[0], items[-1])))
    text = f"{tests[0]['verdict']}; {' to '.join(dict.fromkeys(ends))} pp over {' to '.join(counts)} items"
    if tests[0]["verdict"] == "inconclusive":
        text += f"; you need {min(test['judgement']['more_items'] for test in tests)} more items at least"
    return text


def over_b_rows(tests: Sequence[Entry], *, simulated: bool) -> list[Row]:
    """A row per target that answered the same items at several concurrencies."""
    rows: list[Row] = []
    for test in tests:
        seen, ratio = test["invariance"], test["effect_ratio"]
        accuracies = [seen["smallest_accuracy"], *(batch["accuracy"] for batch in seen["batches"])]
        flips = [batch["changed"]["flip_rate"] for batch in seen["batches"]]
        rows.append(
            (
                stamped(test["target"], simulated=simulated),
                str(seen["items"]),
                f"{100 * min(accuracies):.1f}–{100 * max(accuracies):.1f}%",
                _number(seen["p"], 3),
                f"{seen['verdict']} (±{100 * seen['margin']:g} pp)",
                _percent(max((rate for rate in flips if rate is not None), default=None)),
                _percent(seen["noise"]["flip_rate"]),
                _number(ratio and ratio["ratio"], 1),
            )
        )
    return rows


def depth_rows(tests: Sequence[Entry], *, simulated: bool) -> list[Row]:
    """A row per target and bucket of reasoning steps."""
    return [
        (
            stamped(test["target"], simulated=simulated),
            bucket["steps"],
            str(bucket["items"]),
            f"{100 * bucket['reference_accuracy']:.1f}",
            f"{100 * bucket['accuracy']:.1f}",
            f"{100 * bucket['difference']:+.1f} pp",
            _interval(100 * bucket["difference_lo"], 100 * bucket["difference_hi"], 1),
            _percent(bucket["relative_loss"]),
            _percents(bucket["relative_loss_lo"], bucket["relative_loss_hi"]),
        )
        for test in tests
        if test["measure"] == "steps"
        for bucket in test["curve"]["buckets"]
    ]


def depth_sentences(tests: Sequence[Entry]) -> list[str]:
    """Per target: whether its loss changes with depth, and the fit of a constant loss per step."""
    sentences = []
    for test in tests:
        if test["measure"] != "steps":
            continue
        trend, fit = test["curve"]["relative"], test["curve"]["survival"]
        parts = []
        if trend is not None:
            how = "no change with depth is shown" if trend["p"] > 0.05 else (
                "the loss grows with depth" if trend["z"] < 0 else "the loss shrinks with depth"
            )  # fmt: skip
            parts.append(f"{how} (precision × depth interaction, p = {trend['p']:.3f})")
        if fit is not None:
            parts.append(f"a step survives with probability {fit['q']:.3f} ({fit['lo']:.3f}–{fit['hi']:.3f})")
        if parts:
            sentences.append(f"{test['target']}: {'; '.join(parts)}")
    return sentences


def _lengths(comparison: Entry | None) -> str:
    """Mean output tokens of an answer, the target's and the reference's."""
    if comparison is None:
        return ""
    ours, theirs = comparison["output_tokens_mean"], comparison["reference_output_tokens_mean"]
    return "" if ours is None or theirs is None else f"{ours:.0f} : {theirs:.0f}"


def _short(test: Entry) -> str:
    if test["verdict"] == "refused":
        return str(test["sentence"])
    judged = test["judgement"]
    text = str(test["verdict"])
    if test["verdict"] == "inconclusive":
        text += f", {judged['more_items']} more items needed"
    return text + (", confounded by length" if judged["confounded"] else "")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(low: float | None, high: float | None, digits: int) -> str:
    return "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}".removesuffix(".0")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _percents(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}%"
