"""Answer: what a search found of one target and metric, in numbers and in words."""

from __future__ import annotations

from typing import Literal

import msgspec

from loadgen.analysis.crossover.crossover import Status
from loadgen.analysis.crossover.curve import Metric, metric_of
from loadgen.analysis.estimate import Direction
from loadgen.words import batch, percent, span

LOOKS = {3: 0.02, 4: 0.01, 5: 0.01, 6: 0.005, 8: 0.005}
"""The error, by repeats, of the proof that the sign is the same at every batch; 5% together."""
End = Literal["", "time", "repeats", "out of reach", "edge", "unreadable"]
"""Why a search ended without reaching its goal; empty: it reached it, or goes on."""


class FoundCrossing(msgspec.Struct, frozen=True, kw_only=True):
    """A B* as far as it is known, on the axis of the measured running batch."""

    b: float
    lo: float | None = None
    """95% interval from the repeats beside B*; None: they do not bound it within the range, or a sign is not proven."""
    hi: float | None = None
    bracket: tuple[int | None, int | None] = (None, None)
    """Concurrencies nearest to B* at which the sign is proven, 2.5% on each side; this assumes nothing of the curve
    between them. None: not proven on that side."""
    direction: Direction
    reached: bool = False
    """The interval is as narrow as asked for."""
    repeats: int = 0
    """Starts of each side that the interval rests on."""
    needed: int | None = None
    """Repeats that the goal would take, estimated from the noise and the slope so far; None: reached, or not known."""
    noise: float | None = None
    """Standard deviation of one repeat's log-advantage."""
    slope: float | None = None
    """Change of the log-advantage per factor e of the batch, by the repeats."""
    end: End = ""

    @property
    def established(self) -> bool:
        """Both signs are proven."""
        return None not in self.bracket

    @property
    def width(self) -> float | None:
        """How far the farther end of the interval is from B*, as a share of it."""
        return None if self.lo is None or self.hi is None else max(self.hi / self.b, self.b / self.lo) - 1


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one target and metric."""

    target: str
    reference: str
    metric: str
    status: Status = "unresolved"
    """`better`, `worse`: proven at every batch of the grid; `crosses`: at least one crossing is established."""
    crossings: tuple[FoundCrossing, ...] = ()
    """By ascending batch: one, or two; also those that are not bounded yet."""
    range: tuple[int, int]
    """Concurrencies that were read, the lowest and the highest."""
    grid: tuple[int, ...] = ()
    """Those at which the sign is the question while no crossing is seen."""
    proven: tuple[int, ...] = ()
    """Those of the grid at which it is proven."""
    several: bool = False
    """The sign changes more often than twice: B* is more than one batch, and none is placed."""
    within: float
    """The goal."""
    error_rate: float = 0.05
    """How often at most a claim such as this one is false: 1 - the confidence of an interval; of `better` and `worse`,
    over all looks."""
    ended: bool = False
    end: End = ""
    sentence: str = ""
    """One line without a full stop."""
    brief: str = ""
    """The same where target, reference and metric are known."""

    @property
    def reached(self) -> bool:
        """It ended with what was asked for: every B* as narrow as asked, or none in the range."""
        if self.status in ("better", "worse"):
            return True
        return self.status == "crosses" and all(crossing.reached for crossing in self.crossings)


WHY_NOT: dict[End, str] = {
    "time": "the time is up; give more with --most-minutes",
    "repeats": "it had its {repeats} repeats; give more time with --most-minutes",
    "out of reach": "not surely within reach; a longer --duration or a wider --within takes fewer repeats, and "
    "--most-minutes allows more",
    "edge": "it may lie outside of the range; widen --range",
    "unreadable": "a batch size that it needs could not be measured; cells.csv gives the reason",
}


def worded(answer: Answer) -> Answer:
    """The same with its `sentence` and `brief`."""
    metric = metric_of(answer.metric)
    wins, loses = (f"{answer.target} {words} {answer.reference}" for words in (metric.wins, metric.loses))
    long = _text(answer, metric, wins, loses, f"not decided: whether {wins}")
    short = _text(answer, metric, metric.wins_briefly, metric.loses_briefly, "not decided")
    return msgspec.structs.replace(answer, sentence=long, brief=short)


def _text(answer: Answer, metric: Metric, wins: str, loses: str, question: str) -> str:
    low, high = answer.range
    where = f"every B from {low} to {high}"
    if answer.status in ("better", "worse"):
        grid = ", ".join(map(str, answer.grid))
        claim = wins if answer.status == "better" else loses
        return f"{claim} at {where} (proven at B = {grid}; false in at most {answer.error_rate:.0%})"
    if answer.several:
        return f"{question}; the sign changes more than twice from B = {low} to {high}"
    parts = [place(crossing, answer.within) for crossing in answer.crossings]
    if not parts:
        some = f"; proven at B = {', '.join(map(str, answer.proven))}" if answer.proven else ""
        why = f"; {WHY_NOT[answer.end].format(repeats=max(LOOKS))}" if answer.end else ""
        return f"{question} at {where}{some}{why}"
    if answer.status != "crosses":
        return f"{question}; the sign may change at {' and at '.join(parts)}"
    first = answer.crossings[0].direction == "wins_below"
    words = (metric.loses_briefly, metric.wins_briefly)
    text = f"{wins if first else loses} below {parts[0]}, {words[not first]} above"
    return text if len(parts) == 1 else f"{text}, and {words[first]} again above {parts[1]}"


def place(crossing: FoundCrossing, within: float) -> str:
    """As "B* = 61 (95% CI 57–66; signs proven at B = 49 and 76)", with what is missing where it is not as narrow as
    asked."""
    left, right = crossing.bracket
    proven = f"; signs proven at B = {left} and {right}" if crossing.established else ""
    after = f" after {crossing.repeats} repeat{'s' * (crossing.repeats > 1)}" if crossing.repeats else ""
    if crossing.lo is not None and crossing.hi is not None and crossing.width is not None:
        known = f"95% CI {span(batch(crossing.lo), batch(crossing.hi))}"
        known += "" if crossing.reached else f", ±{percent(crossing.width, 0)}{after}"
    else:
        known = f"no interval{after or ' yet'}"
    star = f"B* {'=' if crossing.lo is not None else 'near'} {batch(crossing.b)} ({known}{proven}"
    if not crossing.end:
        return f"{star})"
    needed = crossing.needed if crossing.needed and crossing.needed > crossing.repeats else None
    takes = f"±{percent(within)} would take about {needed:,} repeats: " if needed else ""
    return f"{star}; {takes}{WHY_NOT[crossing.end].format(repeats=crossing.repeats)})"
