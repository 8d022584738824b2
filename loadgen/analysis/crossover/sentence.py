"""A crossover in words."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.analysis.crossover.crossing import Crossing
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.crossover.metric import Metric, metric_of
from loadgen.analysis.crossover.sign import GridPoint
from loadgen.serving.metrics import UNVERIFIED


def sentence(result: Crossover) -> str:
    """One line without a full stop, such as "awq uses less energy per query than fp16 below B* = 61 (95% CI 52–75) and
    more above it"."""
    metric = metric_of(result.metric)
    wins = f"{result.target} {metric.wins} {result.reference}"
    loses = f"{result.target} {metric.loses} {result.reference}"
    return _said(result, metric, wins, loses, question=f"not decided: whether {wins}")


def brief(result: Crossover) -> str:
    """The same where target, reference and metric are known: "less below B* = 61 (95% CI 52–75) and more above it"."""
    metric = metric_of(result.metric)
    return _said(result, metric, metric.wins_briefly, metric.loses_briefly, question="not decided")


def number(batch: float) -> str:
    """A batch as it is read: 4.1, 61."""
    return f"{batch:.1f}" if batch < 9.95 else f"{batch:.0f}"


def _said(result: Crossover, metric: Metric, wins: str, loses: str, *, question: str) -> str:
    answer, separator, more = _answered(result, metric, wins, loses, question=question).partition(";")
    return answer + ("" if result.batch_verified else f" ({UNVERIFIED})") + separator + more


def _answered(result: Crossover, metric: Metric, wins: str, loses: str, *, question: str) -> str:
    if result.status == "unresolved":
        return _undecided(result, metric, question)
    if result.status == "crosses":
        return _crosses(result, metric, wins, loses) + _beyond(result, "another B*")
    every = f"{wins if result.status == 'better' else loses} at every B measured ({_range(result.points)})"
    return every + _beyond(result, "a B*")


def _crosses(result: Crossover, metric: Metric, better: str, worse: str) -> str:
    first, *others = result.crossings
    wins = first.direction == "wins_below"
    text = f"{better if wins else worse} below {_b_star(first)}"
    for crossing in others:
        wins = not wins
        text += f", {metric.wins_briefly if wins else metric.loses_briefly} up to {_b_star(crossing)}"
    text += f"{',' if others else ''} and {metric.loses_briefly if wins else metric.wins_briefly} above it"
    brackets = [crossing.bracket for crossing in result.crossings]
    away = [
        point
        for point in result.points
        if point.sign == "open" and not any(low < point.concurrency < high for low, high in brackets)
    ]
    return text + (f"; not decided at B = {_list(away)}" if away else "")


def _undecided(result: Crossover, metric: Metric, question: str) -> str:
    if result.refusal:
        return f"{question}; {result.refusal}"
    if result.points[0].p is None:
        return f"{question}; one repeat has no interval" + _suspected(result.suspected)
    groups = {sign: [point for point in result.points if point.sign == sign] for sign in ("wins", "loses", "open")}
    if len(groups["open"]) == len(result.points):
        text = f"{question}; no difference is proven at any B measured ({_range(result.points)})"
        return text + _suspected(result.suspected)
    words = {"wins": metric.wins_briefly, "loses": metric.loses_briefly, "open": "open"}
    parts = [f"{words[sign]} at B = {_list(points)}" for sign, points in groups.items() if points]
    return (
        f"{question} at every B measured; {', '.join(parts)}" + _suspected(result.suspected) + _beyond(result, "a B*")
    )


def _suspected(crossings: Sequence[Crossing]) -> str:
    if not crossings:
        return ""
    return (
        f"; the means cross at B = {', '.join(number(crossing.b) for crossing in crossings)}, which noise may have made"
    )


def _beyond(result: Crossover, what: str) -> str:
    return "".join(f"; if {what} exists, it is {end.side} {number(end.batch)}" for end in result.beyond)


def _b_star(crossing: Crossing) -> str:
    text = f"B* = {number(crossing.b)}"
    if crossing.lo is None or crossing.hi is None:
        return text
    return f"{text} (95% CI {number(crossing.lo)}–{number(crossing.hi)})"


def _range(points: Sequence[GridPoint]) -> str:
    return f"{points[0].concurrency}–{points[-1].concurrency}"


def _list(points: Sequence[GridPoint]) -> str:
    return ", ".join(str(point.concurrency) for point in points)
