"""CellResult: what the analysis keeps of one cell; of a large run, cells are read by several processes at once.

GatheredAnswers: the graded answers of a run, cell by cell, for the comparison of precisions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from itertools import compress
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from loadgen.analysis.celldata import CellData, read_cell
from loadgen.analysis.cells import CellSummary, grade_cell, summarize_cell
from loadgen.analysis.energy import PowerData, Server, read_power, server_memory
from loadgen.analysis.tables import requests_table, server_table
from loadgen.analysis.trust.answers import Answers, GradedAnswer, ItemRequest, Lengths
from loadgen.analysis.trust.study import TargetAnswers
from loadgen.processgroup import forked, spare_processes
from loadgen.record.cell import CellVerdict, Slo, held_of
from loadgen.record.journal import file_bytes
from loadgen.record.manifest import Manifest, ProtocolRecord, read_manifest
from loadgen.workload.grading import GUESSES, Grade, Grader
from loadgen.workload.item import ItemFacts, read_facts

Key = tuple[str, float]
"""Target, and B or the rate of an open loop."""
_SETTINGS = ("temperature", "seed", "api", "stops", "thinking")


class CellAnswers(msgspec.Struct, frozen=True, kw_only=True):
    """The graded answers of one cell; none where they are not valid."""

    target: str
    concurrency: int
    arrival: str | None = None
    """That of an open loop."""
    answers: dict[str, list[GradedAnswer]]
    """By item; equal ones are one, given several times."""
    prompt_sha: dict[str, str]
    """By item."""
    lengths: dict[str, tuple[int, int]] = {}
    """By item, graded or not: answers whose length is known, and their output tokens; none where the load is not valid.
    Answers that were completed after the window count too: items are taken up in order, so that no length is favoured.
    """

    def __reduce__(self) -> tuple[Callable[[bytes], CellAnswers], tuple[bytes]]:
        """From process to process in a tenth of the time that pickle takes for as many small objects."""
        return _unpacked, (msgspec.msgpack.encode(self),)


def _unpacked(packed: bytes) -> CellAnswers:
    return msgspec.msgpack.decode(packed, type=CellAnswers)


def cell_answers(data: CellData, grades: Sequence[Grade | None], *, load_valid: bool = True) -> CellAnswers:
    """The exchanges that have a grade; lengths of all that were measured, if the cell's load is valid."""
    e, graded = data.exchanges, [v is not None for v in grades]
    told = zip(e.item_id, e.text, data.output_tokens.tolist(), e.stop_reason, map(id, grades), strict=True)
    known, alike = dict(zip(map(id, grades), grades, strict=True)), Counter[tuple[Any, ...]]()
    for (item, text, tokens, reason, grade), times in Counter(compress(told, graded)).items():
        v = known[grade]
        assert v is not None
        output_tokens = None if tokens < 0 else tokens
        alike[item, text, output_tokens, v.outcome, v.extractor in GUESSES, _stopped(reason)] += times
    answers: dict[str, list[GradedAnswer]] = defaultdict(list)
    for (item, text, output_tokens, outcome, guessed, stopped), times in alike.items():
        answers[item].append(
            GradedAnswer(
                repeat=data.cell.repeat,
                times=times,
                outcome=outcome,
                correct=outcome == "correct",
                guessed=guessed,
                stopped=stopped,
                output_tokens=output_tokens,
                text_sha=blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest(),
            )
        )
    return CellAnswers(
        target=data.cell.target,
        concurrency=data.cell.concurrency,
        arrival=data.cell.arrival if data.open_loop else None,
        answers=dict(answers),
        prompt_sha=dict(compress(zip(e.item_id, e.prompt_sha, strict=True), graded)),
        lengths=_lengths(data) if load_valid else {},
    )


def _lengths(data: CellData) -> dict[str, tuple[int, int]]:
    lengths: dict[str, tuple[int, int]] = {}
    chosen = data.measured & data.ok & (data.output_tokens >= 0)
    told = zip(data.exchanges.item_id, data.output_tokens.tolist(), strict=True)
    for (item, tokens), times in Counter(compress(told, chosen.tolist())).items():
        answers, before = lengths.get(item, (0, 0))
        lengths[item] = answers + times, before + times * tokens
    return lengths


def _stopped(reason: str | int | None) -> bool:
    """By a stop string; a number is the token that ends a turn."""
    return isinstance(reason, str) and not reason.lstrip("-").isdecimal()


class GatheredAnswers:
    """The answers of a run; `add` those of every cell."""

    def __init__(self, protocol: ProtocolRecord) -> None:
        """`protocol`: the manifest's."""
        self._max_tokens = protocol.max_tokens
        self._sampling = {name: getattr(protocol, name) for name in _SETTINGS}
        self._answers: dict[Key, dict[str, list[GradedAnswer]]] = defaultdict(lambda: defaultdict(list))
        self._loads: dict[Key, tuple[int, str | None]] = {}
        self._asked: dict[Key, dict[str, ItemRequest]] = defaultdict(dict)
        self._lengths: dict[Key, dict[str, tuple[int, int]]] = defaultdict(dict)

    def add(self, cell: CellAnswers) -> None:
        key = cell.target, held_of(cell.concurrency, cell.arrival)
        self._loads[key] = cell.concurrency, cell.arrival
        for item, graded in cell.answers.items():
            self._answers[key][item] += graded
            self._asked[key][item] = ItemRequest(
                prompt_sha=cell.prompt_sha[item], max_tokens=self._max_tokens, sampling=self._sampling
            )
        known = self._lengths[key]
        for item, (answers, tokens) in cell.lengths.items():
            before = known.get(item, (0, 0))
            known[item] = before[0] + answers, before[1] + tokens

    @property
    def answers(self) -> dict[Key, Answers]:
        """Item -> answers, by target and concurrency (or rate)."""
        return dict(self._answers)

    @property
    def lengths(self) -> dict[Key, Lengths]:
        """Item -> mean output tokens, by target and concurrency, of the cells whose load is valid."""
        return {
            key: {item: tokens / answers for item, (answers, tokens) in known.items() if tokens}
            for key, known in self._lengths.items()
        }

    def sides(self) -> list[TargetAnswers]:
        """One per target and concurrency, or rate."""
        return [
            TargetAnswers(
                target=key[0],
                concurrency=self._loads[key][0],
                arrival=self._loads[key][1],
                answers=answers,
                asked=self._asked[key],
            )
            for key, answers in self._answers.items()
        ]


LARGE_BYTES = 100_000_000
"""Bytes of all journals: smaller runs are read before a second process would be of use."""


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a cell that goes into the run's files."""

    summary: CellSummary
    answers: CellAnswers
    requests: pa.Table
    """Rows of requests.parquet."""
    server: pa.Table
    """Rows of server.parquet."""
    damaged: int
    """Lines of the cell's journal that are left out."""


class CellReader:
    """Journals of a run, cell by cell."""

    def __init__(
        self,
        manifest: Manifest,
        grader: Grader,
        powers: Mapping[Server, PowerData],
        slo: Slo | None = None,
        facts: Mapping[str, ItemFacts] | None = None,
    ) -> None:
        """`facts`: of every item, graded or not; those of the grader unless given."""
        self._facts = grader.items if facts is None else facts
        self._manifest = manifest
        self._grader = grader
        self._powers = powers
        self._slo = slo

    def result(self, path: Path) -> CellResult | None:
        """The result of one journal file; None if it does not hold even its first line."""
        data = read_cell(path)
        if data is None:
            return None
        grades = grade_cell(data, self._grader)
        power = self._powers.get((data.cell.target, data.cell.repeat, data.session))
        summary = _summary(self._manifest, data, grades, power, self._slo, self._facts)
        graded = grades if summary.validity.answers_valid else [None] * len(grades)
        return CellResult(
            summary=summary,
            answers=cell_answers(data, graded, load_valid=summary.validity.valid),
            requests=requests_table(data, grades, self._facts),
            server=server_table(data),
            damaged=data.damaged,
        )

    def results(self, paths: Sequence[Path], processes: int) -> Iterator[CellResult]:
        """The result of every file that holds a cell, in the order of `paths`, the same for any number of processes."""
        results = forked([partial(self.result, path) for path in paths], processes)
        return (result for result in results if result is not None)


def _summary(
    manifest: Manifest,
    data: CellData,
    grades: Sequence[Grade | None],
    power: PowerData | None,
    slo: Slo | None = None,
    facts: Mapping[str, ItemFacts] | None = None,
) -> CellSummary:
    config = manifest.config
    return summarize_cell(
        data,
        grades,
        power,
        graded=manifest.graded,
        memory=server_memory(manifest, data.cell.target, data.cell.repeat, data.session),
        max_error_rate=config.max_error_rate,
        fixed_length=config.fixed_length,
        tdp_w=config.tdp_w,
        carbon_kg_per_kwh=config.carbon_kg_per_kwh,
        slo=slo,
        facts=facts,
    )


LARGEST_BYTES = 100_000_000
"""Bytes of a journal that is read between two cells: about a second."""


def judge_cell(run_dir: Path, path: Path, *, largest_bytes: int = LARGEST_BYTES) -> CellVerdict:
    """What cells.csv will say of the cell that has just ended, whose journal is `path`; a larger one is left to the
    report.

    By the same rules from the same files. Power samples that come later can only move an energy that is at a limit.
    """
    size = file_bytes(path)
    if size > largest_bytes:
        return CellVerdict(valid=None, reasons=f"its journal of {size / 1e6:.0f} MB is read by the report only")
    data = read_cell(path)
    if data is None:
        return CellVerdict(valid=None, reasons="its journal is empty")
    manifest = read_manifest(run_dir)
    since_ns = data.window[0] if data.window else None
    power = read_power(run_dir, manifest, data.cell.target, data.cell.repeat, data.session, since_ns=since_ns)
    facts = read_facts(run_dir) if manifest.protocol.answer == "none" else None
    cell = _summary(manifest, data, [None] * len(data.exchanges), power, facts=facts)
    found = cell.validity
    return CellVerdict(
        valid=found.valid,
        latency_valid=found.latency_valid,
        energy_valid=found.energy_valid,
        answers_valid=found.answers_valid,
        reasons=found.sentence,
        figures=cell.columns(),
    )


def processes_for(paths: Sequence[Path]) -> int:
    """How many processes read these files best, on this machine."""
    return 1 if sum(path.lstat().st_size for path in paths) < LARGE_BYTES else spare_processes()
