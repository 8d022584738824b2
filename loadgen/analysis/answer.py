"""The answer of a run: at which batch each precision wins, by each metric, and whether it is a trap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from loadgen.analysis.cells import CellSummary
from loadgen.analysis.crossover.agreement import hli_disagreement
from loadgen.analysis.crossover.crossover import Crossover, crossover
from loadgen.analysis.crossover.curve import Curve, CurvePoint
from loadgen.analysis.crossover.metric import METRICS
from loadgen.analysis.crossover.step import shared_sizes
from loadgen.analysis.indices.formulas import efficiency, si_linear
from loadgen.analysis.indices.point import OperatingPoint, Repeat
from loadgen.analysis.indices.settings import IndexSettings
from loadgen.analysis.indices.study import IndexStudy, index_study
from loadgen.analysis.intervals import log_error
from loadgen.analysis.trust.answers import Answers, item_means
from loadgen.analysis.trust.study import TrustStudy

Key = tuple[str, int]
"""Target and concurrency."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
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


def answer_of(
    cells: Sequence[CellSummary],
    answers: Mapping[Key, Answers],
    trust: TrustStudy,
    *,
    reference: str,
    settings: IndexSettings,
    start_sd: float | None = None,
    graph_sizes: Mapping[str, Sequence[int]] | None = None,
    processes: int = 1,
) -> Answer:
    """Each figure of the cells in which it is valid; `answers`: the valid ones, by target and concurrency.

    `start_sd`: as `crossover` takes it; `graph_sizes`: by target, the sizes of its server's CUDA graphs where known.

    Of an open loop every crossover is refused and there are no indices: the arrivals set throughput and batch.
    """
    arrival = next((cell.traffic.arrival for cell in cells if cell.traffic.arrival), None)
    if arrival is not None:
        targets = [target for target in dict.fromkeys(cell.target for cell in cells) if target != reference]
        return Answer(crossovers=tuple(_refused(t, reference, metric, arrival) for t in targets for metric in METRICS))
    points = _points(cells, answers, trust)
    study = _Study(cells, points, trust, reference, settings, start_sd, graph_sizes or {})
    return Answer(
        crossovers=tuple(
            study.crossover(target, metric) for target in study.targets if target != reference for metric in METRICS
        ),
        indices=index_study(
            list(points.values()), reference=reference, settings=settings, processes=processes
        ),
    )


def _refused(target: str, reference: str, metric: str, arrival: str) -> Crossover:
    return Crossover(
        target=target,
        reference=reference,
        metric=metric,
        status="unresolved",
        refusal=f"{arrival} set the traffic and no B was held; a B* needs a closed loop",
    )


def _points(
    cells: Sequence[CellSummary], answers: Mapping[Key, Answers], trust: TrustStudy
) -> dict[Key, OperatingPoint]:
    points: dict[Key, OperatingPoint] = {}
    for key in dict.fromkeys((cell.target, cell.concurrency) for cell in cells):
        test = trust.of(*key)
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
        )
    return points


class _Study:
    """One run's curves, metric by metric."""

    def __init__(
        self,
        cells: Sequence[CellSummary],
        points: Mapping[Key, OperatingPoint],
        trust: TrustStudy,
        reference: str,
        settings: IndexSettings,
        start_sd: float | None,
        graph_sizes: Mapping[str, Sequence[int]],
    ) -> None:
        self._cells = {(cell.target, cell.concurrency, cell.repeat): cell for cell in cells}
        self._points = points
        self._trust = trust
        self._reference = reference
        self._settings = settings
        self._start_sd = start_sd
        self._graph_sizes = graph_sizes
        self._repeats = range(1, max((cell.repeat for cell in cells), default=0) + 1)
        self.targets = tuple(dict.fromkeys(target for target, _ in points))

    def crossover(self, target: str, metric: str) -> Crossover:
        """The target against the reference."""
        if metric == "energy_per_correct_j":
            errors = self._item_errors(target, lambda _, relative: relative)
        elif metric == "si":
            errors = self._item_errors(target, self._share_of_trust)
        else:
            errors = None
        return crossover(
            self._curve(target, metric),
            self._curve(self._reference, metric),
            metric,
            item_errors=errors,
            start_sd=self._start_sd,
            graph_sizes=shared_sizes(self._graph_sizes.get(target), self._graph_sizes.get(self._reference)),
        )

    def _valid(self, target: str, b: int) -> list[CellSummary]:
        cells = [self._cells.get((target, b, repeat)) for repeat in self._repeats]
        return [cell for cell in cells if cell is not None and cell.validity.valid]

    def _curve(self, target: str, metric: str) -> Curve:
        return Curve(
            target=target,
            points=tuple(
                CurvePoint(
                    concurrency=b,
                    running=_mean([cell.batch for cell in self._valid(name, b)]),
                    verified=all(cell.running_mean is not None for cell in self._valid(name, b)),
                    values=tuple(self._value(target, b, repeat, metric) for repeat in self._repeats),
                    window_errors=tuple(self._window_error(target, b, repeat, metric) for repeat in self._repeats),
                )
                for (name, b), point in self._points.items()
                if name == target
            ),
        )

    def _value(self, target: str, b: int, repeat: int, metric: str) -> float | None:
        cell = self._cells.get((target, b, repeat))
        if cell is None:
            return None
        if metric in ("energy_per_correct_j", "si") and not self._accuracy_is_known(target, b):
            return None
        if metric == "energy_per_correct_j":
            scores = self._points[target, b].scores
            accuracy = sum(scores.values()) / len(scores) if scores else 0.0
            joules = cell.figure("energy_per_query_j")
            return joules / accuracy if joules and accuracy else None
        if metric == "si":
            return self._si(cell)
        return cell.figure(metric) or None

    def _accuracy_is_known(self, target: str, b: int) -> bool:
        """T_SI has an interval: without one, a figure with accuracy in it has none either, and proves nothing."""
        test = self._trust.of(target, b)
        return target == self._reference or bool(test is not None and test.t_si_lo and test.t_si_hi)

    def _window_error(self, target: str, b: int, repeat: int, metric: str) -> float | None:
        """Of the energy metrics, from the bootstrap inside the window."""
        cell = self._cells.get((target, b, repeat))
        if metric not in ("energy_per_token_j", "energy_per_query_j", "energy_per_correct_j"):
            return None
        if cell is None or not cell.validity.energy_valid:
            return None
        low, high = cell.energy.energy_per_token_j_lo, cell.energy.energy_per_token_j_hi
        return log_error(low, high) if low and high else None

    def _si(self, cell: CellSummary) -> float | None:
        """SI of one repeat, T from all answers (of the reference: 1); None where a pillar is missing."""
        if cell.target == self._reference:
            return 1.0 if cell.validity.valid else None
        against = self._cells.get((self._reference, cell.concurrency, cell.repeat))
        test = self._trust.of(cell.target, cell.concurrency)
        if against is None or test is None or not test.t_si:
            return None
        speeds = cell.figure("tokens_per_s"), against.figure("tokens_per_s")
        joules = cell.figure("energy_per_query_j"), against.figure("energy_per_query_j")
        memories = _memory(cell), _memory(against)
        if None in speeds or None in joules or None in memories:
            return None
        eta, s = _ratio(speeds), 1 / _ratio(joules)
        e = efficiency(eta, 1 / _ratio(memories), self._settings.alpha)
        return si_linear(test.t_si, e, float(np.minimum(s, 1.0)), self._settings.weights)

    def _item_errors(self, target: str, error: Callable[[Key, float], float | None]) -> dict[int, float]:
        errors = {}
        for (name, b) in self._points:
            test = self._trust.of(name, b) if name == target else None
            if test is None or not test.t_si_lo or not test.t_si_hi:
                continue
            found = error((name, b), log_error(test.t_si_lo, test.t_si_hi))
            if found is not None:
                errors[b] = found
        return errors

    def _share_of_trust(self, key: Key, relative: float) -> float | None:
        """Error of log SI that comes from T's: T's share of SI times that of log T."""
        cells = [self._cells.get((*key, repeat)) for repeat in self._repeats]
        values = [si for cell in cells if cell is not None and (si := self._si(cell)) is not None]
        test = self._trust.of(*key)
        if not values or test is None or test.t_si is None:
            return None
        return relative * self._settings.weights[0] * test.t_si / (sum(values) / len(values))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value]
    return sum(known) / len(known) if known else None


def _memory(cell: CellSummary) -> int | None:
    return cell.memory_needed_bytes if cell.memory_needed_bytes is not None else cell.energy.memory_peak_bytes


def _ratio(pair: tuple[float | None, float | None]) -> float:
    ours, theirs = pair
    assert ours is not None and theirs is not None
    return ours / theirs

