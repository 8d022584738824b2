"""Story: a search step by step, with what was known after each."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadgen.record.cell import Phase, Start
from loadgen.search.answer import Answer
from loadgen.search.design import Reading, search
from loadgen.search.goal import Goal


class Mark(msgspec.Struct, frozen=True):
    """A target against the reference at one batch of one step."""

    target: str
    metric: str
    concurrency: int
    batch: float
    """The running batch, the mean of both."""
    ratio: float | None
    """The target's figure over the reference's; None: not measured, or invalid."""


class Known(msgspec.Struct, frozen=True):
    """A B* as far as it was known after a step."""

    target: str
    metric: str
    b: float
    lo: float | None
    hi: float | None


class Chapter(msgspec.Struct, frozen=True, kw_only=True):
    """One step."""

    repeat: int
    phase: Phase
    starts: tuple[Start, ...]
    why: str
    marks: tuple[Mark, ...]
    known: tuple[Known, ...]


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """The search of a run, as analysis.json holds it."""

    within: float
    range: tuple[int, int]
    chapters: tuple[Chapter, ...]
    answers: tuple[Answer, ...]
    ended: bool
    """False: it was interrupted, and `--resume` goes on."""


def story_of(goal: Goal, sides: Sequence[str], readings: Sequence[Reading]) -> Story:
    """The steps that have ended, told from the beginning."""
    found = search(goal, sides, readings)
    chapters = []
    for step in found.steps:
        then = search(goal, sides, [reading for reading in readings if reading.repeat <= step.repeat])
        known = [
            Known(answer.target, answer.metric, crossing.b, crossing.lo, crossing.hi)
            for answer in then.answers
            for crossing in answer.crossings
        ]
        ours = [reading for reading in readings if reading.repeat == step.repeat]
        chapters.append(
            Chapter(
                repeat=step.repeat,
                phase=step.phase,
                starts=step.starts,
                why=step.why,
                marks=tuple(_marks(goal, sides[0], ours)),
                known=tuple(known),
            )
        )
    return Story(
        within=goal.within,
        range=(goal.low, goal.high),
        chapters=tuple(chapters),
        answers=found.answers,
        ended=found.next is None,
    )


def _marks(goal: Goal, reference: str, readings: Sequence[Reading]) -> list[Mark]:
    against = {reading.concurrency: reading for reading in readings if reading.side == reference}
    marks = []
    for ours in readings:
        theirs = against.get(ours.concurrency)
        if ours.side == reference or theirs is None:
            continue
        batch = ((ours.running or ours.concurrency) + (theirs.running or ours.concurrency)) / 2
        for metric in goal.metrics:
            x, y = ours.values.get(metric), theirs.values.get(metric)
            marks.append(Mark(ours.side, metric, ours.concurrency, batch, x / y if x and y else None))
    return marks
