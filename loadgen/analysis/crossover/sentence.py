"""A crossover in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from loadgen.analysis.crossover.crossing import Crossing
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.crossover.metric import Metric, metric_of
from loadgen.analysis.crossover.sign import GridPoint
from loadgen.analysis.indices.spans import spanned
from loadgen.analysis.intervals import too_wide
from loadgen.serving.metrics import UNVERIFIED


def sentence(result: Crossover) -> str:
    """One line without a full stop, such as "awq uses less energy per query than fp16 up to B = 32 and more from B = 64
    on (B* = 61, 95% CI 52–75, if there is no step between)": first what the measured batches prove by themselves."""
    metric = metric_of(result.metric)
    wins = f"{result.target} {metric.wins} {result.reference}"
    loses = f"{result.target} {metric.loses} {result.reference}"
    return _said(result, metric, wins, loses, question=f"not decided: whether {wins}")


def brief(result: Crossover) -> str:
    """The same where target, reference and metric are known: "less B ≤ 32, more B ≥ 64 (B* 61, CI 52–75)"."""
    metric = metric_of(result.metric)
    return _said(result, metric, metric.wins_briefly, metric.loses_briefly, question="not decided", briefly=True)


def number(batch: float) -> str:
    """A batch as it is read: 4.1, 61."""
    return f"{batch:.1f}" if batch < 9.95 else f"{batch:.0f}"


def placed(crossing: Crossing) -> bool:
    """Whether B* is known closely enough to be named."""
    return crossing.step == "measured" or not too_wide(crossing.lo, crossing.hi)


def place(crossing: Crossing) -> str:
    """As "B* = 61", or what is known of one that is not placed: "a B* between 16 and 64"."""
    if not placed(crossing):
        return f"a B* between {crossing.bracket[0]} and {crossing.bracket[1]}"
    return f"B* = {crossing.b:.3g}"


def _said(
    result: Crossover, metric: Metric, wins: str, loses: str, *, question: str, briefly: bool = False
) -> str:
    said = _answered(result, metric, wins, loses, question=question, briefly=briefly)
    answer, separator, more = said.partition(";")
    return answer + ("" if result.batch_verified else f" ({UNVERIFIED})") + separator + more


def _answered(
    result: Crossover, metric: Metric, wins: str, loses: str, *, question: str, briefly: bool
) -> str:
    if result.status == "unresolved":
        return _undecided(result, metric, question, briefly=briefly)
    if result.status == "crosses":
        crosses = _crosses_briefly(result, metric) if briefly else _crosses(result, metric, wins, loses)
        return crosses + _away(result) + _beyond(result, "another B*")
    every = f"{wins if result.status == 'better' else loses} at every B {_compared(result)}"
    return every + _beyond(result, "a B*")


def _crosses(result: Crossover, metric: Metric, better: str, worse: str) -> str:
    found = result.crossings
    wins = found[0].direction == "wins_below"
    text = f"{better if wins else worse} {_lowest(result, found[0], 'up to B = ', 'at B = ', 'from B = ', ' to ')}"
    for before, after in pairwise(found):
        wins = not wins
        first, last = before.bracket[1], after.bracket[0]
        there = f"from B = {first} to {last}" if first < last else f"at B = {first}"
        text += f", {metric.wins_briefly if wins else metric.loses_briefly} {there}"
    text += (
        f"{',' if len(found) > 1 else ''} and {metric.loses_briefly if wins else metric.wins_briefly} "
        f"from B = {found[-1].bracket[1]} on ({_b_stars(result)})"
    )
    return text


def _crosses_briefly(result: Crossover, metric: Metric) -> str:
    found = result.crossings
    wins = found[0].direction == "wins_below"
    words = (metric.loses_briefly, metric.wins_briefly)
    parts = [f"{words[wins]} {_lowest(result, found[0], 'B ≤ ', 'B = ', 'B = ', '–')}"]
    for before, after in pairwise(found):
        wins = not wins
        parts.append(f"{words[wins]} {before.bracket[1]}–{after.bracket[0]}")
    parts.append(f"{words[not wins]} B ≥ {found[-1].bracket[1]}")
    stars = ", ".join(_b_star(result, crossing).replace("= ", "").replace("95% ", "") for crossing in found)
    return f"{', '.join(parts)} (B* {stars}{', if no step' if _interpolated(found) else ''})"


def _away(result: Crossover) -> str:
    return f"; not decided at {_list(result, result.away)}" if result.away else ""


def _undecided(result: Crossover, metric: Metric, question: str, *, briefly: bool) -> str:
    if result.refusal:
        return f"{question}; {result.refusal}"
    if result.points[0].p is None:
        return f"{question}; one repeat has no interval" + _suspected(result.suspected)
    groups = {sign: [point for point in result.points if point.sign == sign] for sign in ("wins", "loses", "open")}
    if len(groups["open"]) == len(result.points):
        text = f"{question}; no difference is proven at any B {_compared(result)}"
        return text + _suspected(result.suspected)
    words = {"wins": metric.wins_briefly, "loses": metric.loses_briefly, "open": question if briefly else "open"}
    parts = [f"{words[sign]} at {_list(result, points)}" for sign, points in groups.items() if points]
    whole = "" if briefly else f"{question} at every B {_verb(result)}; "
    return (
        f"{whole}{', '.join(parts)}"
        + _suspected(result.suspected)
        + _beyond(result, "a B*")
    )


def _suspected(crossings: Sequence[Crossing]) -> str:
    if not crossings:
        return ""
    return (
        f"; the means cross at B = {', '.join(number(crossing.b) for crossing in crossings)}, which noise may have made"
    )


def _beyond(result: Crossover, what: str) -> str:
    return "".join(f"; if {what} exists, it is {end.side} {number(end.batch)}" for end in result.beyond)


def _b_stars(result: Crossover) -> str:
    """What holds between the measured batches: "B* = 61, 95% CI 52–75, if there is no step between"."""
    text = " and ".join(f"B* {_b_star(result, crossing)}" for crossing in result.crossings)
    return f"{text}, if there is no step between" if _interpolated(result.crossings) else text


def _interpolated(found: Sequence[Crossing]) -> bool:
    return any(placed(crossing) and crossing.step != "measured" for crossing in found)


def _b_star(result: Crossover, crossing: Crossing) -> str:
    if not placed(crossing):
        two = max(point.repeats for point in result.points) == 2
        return f"not known: {'two' if two else 'the'} repeats differ too much"
    text = f"= {number(crossing.b)}"
    if crossing.lo is None or crossing.hi is None:
        return text
    if crossing.step == "measured":
        return f"anywhere from {number(crossing.lo)} to {number(crossing.hi)}, where the curve may jump"
    return f"{text}, 95% CI {number(crossing.lo)}–{number(crossing.hi)}"


def _lowest(result: Crossover, crossing: Crossing, up_to: str, at: str, begin: str, to: str) -> str:
    """The batches compared below the first crossing; open below only where B = 1 is one of them."""
    first, last = result.points[0].concurrency, crossing.bracket[0]
    if first == last:
        return f"{at}{last}"
    return f"{up_to}{last}" if first == 1 else f"{begin}{first}{to}{last}"


def _compared(result: Crossover) -> str:
    """As `measured (1–128)`; `compared` where a batch that was measured is left out."""
    return f"{_verb(result)} ({_range(result.points)})"


def _verb(result: Crossover) -> str:
    return "compared" if result.left_out else "measured"


def _range(points: Sequence[GridPoint]) -> str:
    return f"{points[0].concurrency}–{points[-1].concurrency}"


def _list(result: Crossover, points: Sequence[GridPoint]) -> str:
    """Neighbours among all that were measured joined: one that is left out is in no span."""
    measured = {*(point.concurrency for point in result.points), *result.left_out}
    return spanned([point.concurrency for point in points], measured)
