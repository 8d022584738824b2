"""A crossover in words."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.analysis.crossover.crossing import Crossing
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.crossover.metric import Metric, metric_of
from loadgen.analysis.crossover.sign import GridPoint


def sentence(result: Crossover) -> str:
    """One line without a full stop, such as "awq uses less energy per query than fp16 below B* = 61 (95% CI 52–75) and
    more above it"."""
    metric = metric_of(result.metric)
    if result.status == "unresolved":
        return _undecided(result, metric)
    if result.status == "crosses":
        return _crosses(result, metric) + _beyond(result, "another B*")
    verb = metric.wins if result.status == "better" else metric.loses
    every = f"{result.target} {verb} {result.reference} at every B measured ({_range(result.points)})"
    return every + _beyond(result, "a B*")


def number(batch: float) -> str:
    """A batch as it is read: 4.1, 61."""
    return f"{batch:.1f}" if batch < 9.95 else f"{batch:.0f}"


def _crosses(result: Crossover, metric: Metric) -> str:
    first, *others = result.crossings
    wins = first.direction == "wins_below"
    text = f"{result.target} {metric.wins if wins else metric.loses} {result.reference} below {_b_star(first)}"
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


def _undecided(result: Crossover, metric: Metric) -> str:
    question = f"not decided: whether {result.target} {metric.wins} {result.reference}"
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
