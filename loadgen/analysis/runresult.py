"""RunResult: at which batch each precision wins, by each metric, and whether it is a trap."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import msgspec
import numpy as np

from loadgen.analysis.cells import CellSummary
from loadgen.analysis.crossover.crossing import shared_sizes
from loadgen.analysis.crossover.crossover import Crossover, crossover, hli_disagreement, worded
from loadgen.analysis.crossover.curve import METRICS, Curve, CurvePoint
from loadgen.analysis.estimate import log_error
from loadgen.analysis.indices.formulas import IndexSettings
from loadgen.analysis.indices.point import OperatingPoint, Repeat
from loadgen.analysis.indices.study import IndexStudy, index_study
from loadgen.analysis.trust.answers import (
    Answers,
    Lengths,
    PairedItems,
    PairedLengths,
    influence,
    item_lengths,
    item_means,
    pair_lengths,
    paired,
)
from loadgen.analysis.trust.study import TrustStudy
from loadgen.words import spanned

PER_QUERY = ("energy_per_query_j", "energy_hli_per_query_j", "energy_per_correct_j", "si")
"""Metrics in which the length of an answer counts."""
OWN_ITEMS = 0.02
"""Log ratio by which joules per query over own and over shared items must differ before a note says so."""
Key = tuple[str, int]
"""Target and concurrency."""


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """Crossovers by target and metric, and every index."""

    crossovers: tuple[Crossover, ...] = ()
    indices: IndexStudy = IndexStudy()

    @property
    def hli_disagreements(self) -> list[str]:
        """A sentence per target for which board power times time proves the opposite of the meter."""
        of = {(found.target, found.metric): found for found in self.crossovers}
        measured = [found for found in self.crossovers if found.metric == "energy_per_query_j"]
        said = [hli_disagreement(found, of[found.target, "energy_hli_per_query_j"]) for found in measured]
        return [sentence for sentence in said if sentence is not None]


def run_result(
    cells: Sequence[CellSummary],
    answers: Mapping[tuple[str, float], Answers],
    trust: TrustStudy,
    *,
    reference: str,
    settings: IndexSettings,
    start_sd: float | None = None,
    graph_sizes: Mapping[str, Sequence[int]] | None = None,
    lengths: Mapping[tuple[str, float], Lengths] | None = None,
    processes: int = 1,
) -> RunResult:
    """Each figure of the cells in which it is valid; `answers`: the valid ones, by target and concurrency.

    `start_sd`: as `crossover` takes it; `graph_sizes`: by target, the sizes of its server's CUDA graphs where known;
    `lengths`: output tokens by item, also of answers that are not graded (those of `answers` unless given).

    Of an open loop every crossover is refused and there are no indices: the arrivals set throughput and batch.
    """
    arrival = " and ".join(dict.fromkeys(cell.traffic.arrival for cell in cells if cell.traffic.arrival))
    if arrival:
        targets = [target for target in dict.fromkeys(cell.target for cell in cells) if target != reference]
        return RunResult(
            crossovers=tuple(_refused(t, reference, metric, arrival) for t in targets for metric in METRICS)
        )
    points = operating_points(cells, answers, trust, lengths)
    indices = index_study(list(points.values()), reference=reference, settings=settings, processes=processes)
    study = Compared(cells, points, trust, indices, reference, start_sd, graph_sizes or {})
    return RunResult(
        crossovers=tuple(
            study.crossover(target, metric) for target in study.targets if target != reference for metric in METRICS
        ),
        indices=indices,
    )


def _refused(target: str, reference: str, metric: str, arrival: str) -> Crossover:
    refusal = f"{arrival} set the traffic and no B was held; a B* needs a closed loop"
    refused = Crossover(target=target, reference=reference, metric=metric, status="unresolved", refusal=refusal)
    return worded(refused)


def operating_points(
    cells: Sequence[CellSummary],
    given_answers: Mapping[tuple[str, float], Answers],
    trust: TrustStudy,
    given_lengths: Mapping[tuple[str, float], Lengths] | None = None,
) -> dict[Key, OperatingPoint]:
    """By target and concurrency, the arguments being those of `run_result`."""
    if given_lengths is None:
        given_lengths = {key: item_lengths(given) for key, given in given_answers.items()}
    answers = {(target, int(b)): given for (target, b), given in given_answers.items()}
    lengths = {(target, int(b)): given for (target, b), given in given_lengths.items()}
    points: dict[Key, OperatingPoint] = {}
    for key in dict.fromkeys((cell.target, cell.concurrency) for cell in cells):
        test = trust.test(*key)
        comparable = test is None or test.verdict != "refused"
        points[key] = OperatingPoint(
            target=key[0],
            concurrency=key[1],
            repeats=tuple(
                Repeat(
                    repeat=cell.repeat,
                    running_mean=cell.running_mean or None,
                    tokens_per_s=cell.tokens_per_s or None,
                    energy_per_query_j=cell.figure("energy_per_query_j") or None,
                    energy_hli_per_query_j=cell.energy.energy_hli_per_query_j or None,
                    tokens_per_query=cell.output_tokens_mean or None,
                    memory_needed_bytes=cell.memory_needed_bytes or None,
                    memory_peak_bytes=cell.energy.memory_peak_bytes or None,
                )
                for cell in cells
                if cell.validity.valid and (cell.target, cell.concurrency) == key
            ),
            scores=item_means(answers.get(key, {})) if comparable else {},
            lengths=lengths.get(key, {}),
        )
    return points


class Compared:
    """The figures by which a run's targets are compared with the reference, metric by metric: each cell's, and curves
    of them."""

    def __init__(
        self,
        cells: Sequence[CellSummary],
        points: Mapping[Key, OperatingPoint],
        trust: TrustStudy,
        indices: IndexStudy,
        reference: str,
        start_sd: float | None,
        graph_sizes: Mapping[str, Sequence[int]],
    ) -> None:
        self._cells = {(cell.target, cell.concurrency, cell.repeat): cell for cell in cells}
        self._points = points
        self._trust = trust
        self._indices = indices
        self._reference = reference
        self._start_sd = start_sd
        self._graph_sizes = graph_sizes
        self._paired: dict[Key, PairedLengths | None] = {}
        self._repeats = range(1, max((cell.repeat for cell in cells), default=0) + 1)
        self.targets = tuple(dict.fromkeys(target for target, _ in points))

    def crossover(self, target: str, metric: str) -> Crossover:
        """The target against the reference. Joules per query are compared over the items that both completed: a B with
        too few of them is left out, with a note, and the comparison is refused if fewer than two are left."""
        few = {} if metric not in PER_QUERY else {
            b: found.refusal
            for (name, b) in self._points
            if name == target and (found := self._lengths(target, b)) is not None and found.refusal is not None
        }  # fmt: skip
        ours, theirs = (
            self._curve(name, metric, target, leaving=few.keys()) for name in (target, self._reference)
        )  # fmt: skip
        errors = self._item_errors(target, metric)
        result = crossover(
            ours,
            theirs,
            metric,
            item_errors=errors,
            start_sd=self._start_sd,
            graph_sizes=shared_sizes(self._graph_sizes.get(target), self._graph_sizes.get(self._reference)),
        )
        more = self._bounds(target) if metric == "si" else self._own_items(target, result)
        result = msgspec.structs.replace(result, notes=(*result.notes, *more))
        if not few:
            return result
        at = {why: [b for b in sorted(few) if few[b] == why] for _, why in sorted(few.items())}
        measured = {b for name, b in self._points if name == target}
        left_out = tuple(f"{spanned(few_b, measured)}: left out, {why}; measure longer" for why, few_b in at.items())
        refusal = result.refusal
        if refusal is not None and len(ours.points) < 2:
            b, why = max(few.items(), key=lambda found: (self._shared(target, found[0]), -found[0]))
            refusal = f"{why} (at B = {b}); measure longer"
        result = msgspec.structs.replace(
            result, refusal=refusal, left_out=tuple(sorted({*few, *result.left_out})), notes=result.notes + left_out
        )
        return worded(result)

    def _lengths(self, target: str, b: int) -> PairedLengths | None:
        """Lengths of the items that target and reference completed; None where either's are not known."""
        key = target, b
        if key not in self._paired:
            against = self._points.get((self._reference, b))
            self._paired[key] = pair_lengths(self._points[key].lengths, against.lengths) if against else None
        return self._paired[key]

    def _shared(self, target: str, b: int) -> int:
        lengths = self._lengths(target, b)
        return lengths.n if lengths is not None else 0

    def _graded(self, target: str, b: int) -> PairedItems | None:
        """Grades of the items that target and reference answered."""
        against = self._points.get((self._reference, b))
        return paired(self._points[target, b].scores, against.scores) if against else None

    def _valid(self, target: str, b: int) -> list[CellSummary]:
        cells = [self._cells.get((target, b, repeat)) for repeat in self._repeats]
        return [cell for cell in cells if cell is not None and cell.validity.valid]

    def _curve(self, side: str, metric: str, target: str, *, leaving: Collection[int]) -> Curve:
        """The curve of `side`, the target or the reference of a comparison, without the concurrencies to leave out."""
        return Curve(
            target=side,
            points=tuple(
                CurvePoint(
                    concurrency=b,
                    running=_mean([cell.batch for cell in self._valid(name, b)]),
                    verified=all(cell.running_mean is not None for cell in self._valid(name, b)),
                    values=tuple(self.value(side, b, repeat, metric, target) for repeat in self._repeats),
                    window_errors=self._window_errors(side, b, metric),
                )
                for (name, b), point in self._points.items()
                if name == side and b not in leaving
            ),
        )

    def value(self, side: str, b: int, repeat: int, metric: str, target: str) -> float | None:
        """The figure of a cell of `side`, the target or the reference, in their comparison; None: not known."""
        cell = self._cells.get((side, b, repeat))
        if cell is None:
            return None
        if metric == "si":
            return self._si(side, b, repeat)
        if metric == "energy_per_correct_j":
            pairs = self._graded(target, b) if (target, b) in self._points else None
            joules = self._joules(side, b, repeat, "energy_per_query_j", target)
            if pairs is None or not joules or not self._accuracy_is_known(side, b):
                return None
            accuracy = float((pairs.reference if side == self._reference else pairs.target).mean())
            return joules / accuracy if accuracy else None
        return self._joules(side, b, repeat, metric, target) if metric in PER_QUERY else cell.figure(metric) or None

    def _joules(self, side: str, b: int, repeat: int, figure: str, target: str) -> float | None:
        """Joules per query of the target or the reference, over the items that both completed: joules per token times
        the mean length of these. Where no length is known, of the cell's own."""
        point = self._points[side, b]
        lengths = self._lengths(target, b) if (target, b) in self._points else None
        if lengths is None:
            return point.by_repeat(figure).get(repeat)
        per_token = point.joules_per_token(figure).get(repeat)
        if lengths.refusal is not None or per_token is None:
            return None
        return per_token * float((lengths.reference if side == self._reference else lengths.target).mean())

    def _si(self, side: str, b: int, repeat: int) -> float | None:
        """That of the indices; none where the choice of items adds an error to it that is not known."""
        if side == self._reference:
            return 1.0
        entry = self._indices.entry(side, b)
        return entry.si_repeats.get(repeat) if entry and entry.si_item_error is not None else None

    def _own_items(self, target: str, result: Crossover) -> list[str]:
        """A note where the table's joules per query, of each side's own items, have another ratio than is compared."""
        if result.metric != "energy_per_query_j":
            return []
        told = []
        for point in result.points:
            ours, theirs = (
                self._points[side, point.concurrency].by_repeat(result.metric) for side in (target, self._reference)
            )
            both = ours.keys() & theirs.keys()
            own = math.exp(sum(math.log(ours[at] / theirs[at]) for at in both) / len(both))
            compared = math.exp(-point.log_advantage)
            told.append((round(abs(math.log(own / compared)), 6), -point.concurrency, own, compared))
        apart, b, own, compared = max(told, default=(0.0, 0, 0.0, 0.0))
        if apart < OWN_ITEMS:
            return []
        return [
            f"J/query in tables is over each side's own items: {own:.3f} times {self._reference}'s at B = {-b}; the "
            f"crossover compares the {self._shared(target, -b)} items that both completed: {compared:.3f} times"
        ]

    def _bounds(self, target: str) -> list[str]:
        """A note where SI has no measured energy."""
        entries = [self._indices.entry(name, b) for name, b in self._points if name == target]
        bound = [e.concurrency for e in entries if e and e.si_repeats and e.energy and e.energy.source == "hli"]
        where = ", ".join(map(str, sorted(bound)))
        return [f"B = {where}: energy was not measured, SI takes board power times time"] if bound else []

    def _accuracy_is_known(self, target: str, b: int) -> bool:
        """T_SI has an interval: without one, a figure with accuracy in it has none either, and proves nothing."""
        test = self._trust.test(target, b)
        return target == self._reference or bool(test is not None and test.t_si_lo and test.t_si_hi)

    def _window_errors(self, target: str, b: int, metric: str) -> tuple[float | None, ...]:
        """By repeat, of the energy metrics; none of the others."""
        if metric not in ("energy_per_token_j", "energy_per_query_j", "energy_per_correct_j"):
            return ()
        return tuple(self._window_error(target, b, repeat) for repeat in self._repeats)

    def _window_error(self, target: str, b: int, repeat: int) -> float | None:
        cell = self._cells.get((target, b, repeat))
        if cell is None or not cell.validity.energy_valid:
            return None
        low, high = cell.energy.energy_per_token_j_lo, cell.energy.energy_per_token_j_hi
        return log_error(low, high) if low is not None and high is not None else None

    def _item_errors(self, target: str, metric: str) -> dict[int, float] | None:
        """Standard error of the log ratio that comes from the choice of items, by concurrency."""
        if metric not in PER_QUERY:
            return None
        errors = {b: self.item_error(target, b, metric) for name, b in self._points if name == target}
        return {b: error for b, error in errors.items() if error is not None}

    def item_error(self, target: str, b: int, metric: str) -> float | None:
        """The standard error of the log ratio that comes from the choice of items, of a metric of PER_QUERY: that of
        lengths and of T_SI together, as those of one item are not independent."""
        if metric == "si":
            entry = self._indices.entry(target, b)
            return entry.si_item_error if entry is not None else None
        lengths = self._lengths(target, b)
        of_lengths = lengths.error if lengths is not None and lengths.refusal is None else 0.0
        if metric in ("energy_per_query_j", "energy_hli_per_query_j"):
            return of_lengths
        test, pairs = self._trust.test(target, b), self._graded(target, b)
        if test is None or not test.t_si_lo or not test.t_si_hi or not test.t_si or pairs is None:
            return None
        of_trust = log_error(test.t_si_lo, test.t_si_hi)
        together = correlation(pairs, lengths) if of_lengths and lengths is not None else 0.0
        return _hypot(of_trust, -of_lengths, together)


def correlation(pairs: PairedItems, lengths: PairedLengths) -> float:
    """The correlation of log T_SI with the log ratio of lengths, over the items with both; 0 where one is constant."""
    graded = dict(zip(pairs.item_ids, influence(pairs.target) - influence(pairs.reference), strict=True))
    long = dict(zip(lengths.item_ids, lengths.influence, strict=True))
    both = [item for item in graded if item in long]
    t, tokens = np.array([graded[item] for item in both]), np.array([long[item] for item in both])
    size = float((t**2).sum() * (tokens**2).sum())
    return float((t * tokens).sum()) / math.sqrt(size) if size > 0 else 0.0


def _hypot(one: float, other: float, correlation: float) -> float:
    """Standard error of the sum of two that are correlated, each with its sign."""
    return math.sqrt(max(one**2 + other**2 + 2 * correlation * one * other, 0.0))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value]
    return sum(known) / len(known) if known else None
