"""Readings: what a search for B* knows of its cells, step by step, from the run directory.

A reading never changes once its step has ended: it is made of the cells of that step and of those before it. So a
search that is asked again, after a kill or by the report, takes the same decisions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from msgspec.structs import replace

from loadgen.analysis.cellresult import CellAnswers, CellReader, GatheredAnswers
from loadgen.analysis.cells import CellSummary
from loadgen.analysis.crossover.crossing import Crossing
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.energy import PowerData, Server, read_power
from loadgen.analysis.indices.formulas import IndexSettings
from loadgen.analysis.indices.study import IndexStudy, index_study
from loadgen.analysis.runresult import PER_QUERY, Compared, operating_points
from loadgen.analysis.trust.study import TrustStudy, study
from loadgen.errors import UsageError
from loadgen.record.cell import Cell, Step, SweepConfig, step_blocks
from loadgen.record.journal import CellStart, cell_end, cell_file, read_records, why_unfinished
from loadgen.record.manifest import Manifest
from loadgen.search.answer import Answer, FoundCrossing
from loadgen.search.design import Reading, Search, search
from loadgen.search.goal import Goal
from loadgen.search.root import Noise
from loadgen.search.story import Chapter, Story, story_of
from loadgen.workload.grading import Grader
from loadgen.workload.item import read_facts

Place = tuple[str, int, int]
"""A cell's target, B and repeat."""
Result = tuple[CellSummary, CellAnswers]
"""What is read of a cell."""
_TRUST = ("energy_per_correct_j", "si")
"""Metrics that accuracy is in."""


def counted(results: Sequence[Result]) -> list[Result]:
    """The cells of a search that summary.csv, crossovers and indices are made of, target by target: those that located
    B* only at a B that no repeat measured, because there they decided which B was repeated."""
    repeated = {(cell.target, cell.concurrency) for cell, _ in results if cell.phase == "repeat"}
    targets = list(dict.fromkeys(cell.target for cell, _ in results))
    kept = [
        (cell, answers)
        for cell, answers in results
        if cell.phase == "repeat" or (cell.target, cell.concurrency) not in repeated
    ]
    return sorted(kept, key=lambda result: targets.index(result[0].target))


def told_by(answer: Answer, found: Crossover) -> Crossover:
    """A crossover with what the search for it says; its points stay, and whatever else was found at them."""
    measured = sorted(point.concurrency for point in found.points)
    crossings = tuple(
        Crossing(
            b=crossing.b,
            lo=crossing.lo,
            hi=crossing.hi,
            bracket=_bracket(crossing, measured),
            direction=crossing.direction,
            probability=None,
            established=crossing.lo is not None,
        )
        for crossing in answer.crossings
        if measured
    )
    note = "B* is the search's (--find): its interval rests on the repeats beside it"
    return replace(
        found,
        status=answer.status,
        crossings=tuple(crossing for crossing in crossings if crossing.established),
        suspected=tuple(crossing for crossing in crossings if not crossing.established),
        beyond=(),
        refusal=None if answer.ended or answer.crossings else found.refusal,
        notes=(note, *found.notes) if answer.crossings else found.notes,
        sentence=answer.sentence,
        brief=answer.brief,
    )


def _bracket(crossing: FoundCrossing, measured: Sequence[int]) -> tuple[int, int]:
    """Where its signs are proven, else the measured neighbours."""
    low, high = crossing.bracket
    if low is None:
        low = max((b for b in measured if b < crossing.b), default=measured[0])
    if high is None:
        high = min((b for b in measured if b > crossing.b), default=measured[-1])
    return low, high


def goal_of(config: SweepConfig, cell_s: float, start_s: float) -> Goal:
    """What the search of a run looks for; `cell_s` and `start_s`: what a cell and a start of a server take."""
    sd = config.start_sd
    return Goal(
        metrics=config.find,
        low=config.concurrency[0],
        high=config.concurrency[-1],
        within=config.within,
        most_s=config.most_s,
        cell_s=cell_s,
        start_s=start_s,
        noise={} if sd is None else dict.fromkeys(config.find, Noise(sd=sd * math.sqrt(2), degrees=math.inf)),
    )


def first_step(config: SweepConfig) -> Step:
    """What a search measures first, whatever its cells take."""
    step = search(goal_of(config, 0.0, 0.0), config.sides, ()).next
    assert step is not None
    return step


def _costs(run_dir: Path, manifest: Manifest, cells: Sequence[Cell]) -> dict[str, float]:
    """Seconds of a cell, and of a start up to its first cell, in the mean of the first step."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for cell in cells:
        path = cell_file(run_dir, cell)
        begin, end = next(read_records(path)), cell_end(path)
        if isinstance(begin, CellStart) and end is not None:
            spans.setdefault(cell.target, []).append((begin.t_ns, end.t_ns))
    servers = [server for server in reversed(manifest.servers) if server.repeat == 1]
    started = {server.name: server.started_ns for server in servers if server.started_ns is not None}
    starts_ns = [min(spans[name])[0] - started_ns for name, started_ns in started.items() if name in spans]
    cells_ns = [end - begin for ours in spans.values() for begin, end in ours]
    return {"cell_s": fmean(cells_ns) / 1e9, "start_s": max(fmean(starts_ns), 0.0) / 1e9 if starts_ns else 0.0}


class Readings:
    """Adds a step's readings when all its cells have ended."""

    def __init__(
        self,
        run_dir: Path,
        manifest: Manifest,
        goal: Goal | None = None,
        settings: IndexSettings | None = None,
        known: Mapping[Place, Result] | None = None,
    ) -> None:
        """`goal`: with what a cell and a start are expected to take, until the first step shows it; `known`: cells
        that have been read."""
        config = manifest.config
        self._goal = goal or goal_of(config, 0.0, 0.0)
        self._run_dir = run_dir
        self._settings = settings or IndexSettings(carbon_kg_per_kwh=config.carbon_kg_per_kwh)
        self._metrics, self._reference = config.find, config.reference
        self._targets = [target.name for target in config.targets if target.name != config.reference]
        self._facts = read_facts(run_dir)
        graded = self._facts if manifest.graded else {}
        self._grader = Grader(graded, manifest.protocol.name, config.answer_regex)
        self._protocol = manifest.protocol
        self._known = known or {}
        self._steps = 0
        self._forget()
        self.readings: list[Reading] = []

    def search(self, manifest: Manifest) -> Search:
        """The search after all steps that have ended, by the manifest as it is now."""
        self.read(manifest)
        found = search(self._goal, manifest.config.sides, self.readings)
        if not self._agrees(manifest, found.steps):
            raise UsageError(
                f"{self._run_dir}: this loadgen would have searched otherwise than loadgen {manifest.client.loadgen}, "
                "which began the run; go on with that version"
            )
        return found

    def story(self, manifest: Manifest) -> Story | None:
        """The steps that have ended, told; None if this version would have taken others."""
        self.read(manifest)
        story = story_of(self._goal, manifest.config.sides, self.readings)
        return story if self._agrees(manifest, story.chapters) else None

    def _agrees(self, manifest: Manifest, steps: Sequence[Step | Chapter]) -> bool:
        taken = [(step.repeat, step.starts) for step in manifest.steps[: self._steps]]
        return [(step.repeat, step.starts) for step in steps] == taken

    def read(self, manifest: Manifest) -> Sequence[Reading]:
        """The readings of all steps that have ended, by the manifest as it is now."""
        for step in manifest.steps[self._steps :]:
            cells = [cell for block in step_blocks(manifest.config.targets, manifest.steps) for cell in block.cells]
            ours = [cell for cell in cells if cell.repeat == step.repeat]
            if any(why_unfinished(self._run_dir, cell) is not None for cell in ours):
                break
            self.add(step, list(self._results(manifest, ours)))
            if step.repeat == 1:
                self._goal = replace(self._goal, **_costs(self._run_dir, manifest, ours))
        return self.readings

    def add(self, step: Step, results: Sequence[Result]) -> None:
        """The cells of the next step."""
        self._steps += 1
        for summary, answers in results:
            self._cells.append(summary)
            self._gathered.add(answers)
        compared = self._compared()
        self.readings += [self._reading(compared, cell) for cell, _ in results]
        if step.phase == "locate":
            self._forget()

    def _forget(self) -> None:
        """The cells so far are in no reading of later steps: B* was located by them."""
        self._cells: list[CellSummary] = []
        self._gathered = GatheredAnswers(self._protocol)

    def _results(self, manifest: Manifest, cells: Sequence[Cell]) -> Iterator[Result]:
        places = [(cell.target, cell.concurrency, cell.repeat) for cell in cells]
        if found := [self._known[place] for place in places if place in self._known]:
            yield from found
            return
        powers: dict[Server, PowerData] = {}
        for name, repeat in dict.fromkeys((cell.target, cell.repeat) for cell in cells):
            for session in range(1, max(1, len(manifest.sessions)) + 1):
                power = read_power(self._run_dir, manifest, name, repeat, session)
                if power is not None:
                    powers[name, repeat, session] = power
        reader = CellReader(manifest, self._grader, powers, None, self._facts)
        for cell in cells:
            result = reader.result(cell_file(self._run_dir, cell))
            if result is not None:
                yield result.summary, result.answers

    def _compared(self) -> Compared:
        answers, reference = self._gathered.answers, self._reference
        trust = TrustStudy()
        if set(_TRUST) & set(self._metrics):
            trust = study(self._gathered.sides(), self._grader.items, reference=reference)
        points = operating_points(self._cells, answers, trust, self._gathered.lengths)
        indices = IndexStudy()
        if "si" in self._metrics:
            indices = index_study(list(points.values()), reference=reference, settings=self._settings)
        return Compared(self._cells, points, trust, indices, reference, None, {})

    def _reading(self, compared: Compared, cell: CellSummary) -> Reading:
        return Reading(
            repeat=cell.repeat,
            side=cell.target,
            concurrency=cell.concurrency,
            running=cell.batch if cell.validity.valid else None,
            values={metric: self._value(compared, cell, metric) for metric in self._metrics},
            item_errors=self._item_errors(compared, cell),
        )

    def _value(self, compared: Compared, cell: CellSummary, metric: str) -> float | None:
        """In the comparison with the reference; of the reference in that with the first target, to which those with
        others are scaled."""
        b, repeat, first = cell.concurrency, cell.repeat, self._targets[0]
        target = first if cell.target == self._reference else cell.target
        value = compared.value(cell.target, b, repeat, metric, target)
        if value is None or target == first:
            return value
        of_reference = [compared.value(self._reference, b, repeat, metric, name) for name in (first, target)]
        with_first, with_target = of_reference
        return value * with_first / with_target if with_first and with_target else None

    def _item_errors(self, compared: Compared, cell: CellSummary) -> dict[str, float]:
        if cell.target == self._reference:
            return {}
        errors = {m: compared.item_error(cell.target, cell.concurrency, m) for m in self._metrics if m in PER_QUERY}
        return {metric: error for metric, error in errors.items() if error is not None}
