"""From journal to numbers: run directory in, derived files out, no server and no clock.

Notes on answers: what is odd about them and changes no figure, counted over a cell and told once a run.

Fairness: what two targets' servers must have in common, so that a difference in figures is one in precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import msgspec
from msgspec.structs import replace

from loadgen.analysis.answer import Answer, answer_of
from loadgen.analysis.cellresult import CellReader, GatheredAnswers, processes_for
from loadgen.analysis.cells import CellSummary
from loadgen.analysis.claims import claims_of
from loadgen.analysis.client import NearestCheck, nearest_checks
from loadgen.analysis.energy import Server, read_powers
from loadgen.analysis.indices.formulas import IndexSettings
from loadgen.analysis.models.study import cost_models
from loadgen.analysis.record import Analysis, ServerCalibration, write_analysis
from loadgen.analysis.tables import RunTables, power_table, summarize, write_cells, write_summary
from loadgen.analysis.trust.answers import flaw_warnings, hidden_warnings
from loadgen.analysis.trust.study import TrustStudy, TrustTest, study
from loadgen.analysis.validity import Invalid, invalid_sentences, late_tail
from loadgen.errors import UsageError
from loadgen.folder import Folder
from loadgen.record.cell import Slo, level
from loadgen.record.journal import cell_files
from loadgen.record.manifest import FILE, ClockAnchor, Manifest, read_manifest
from loadgen.words import spanned
from loadgen.workload.grading import Grader
from loadgen.workload.item import read_facts


def note_warnings(cells: Sequence[CellSummary]) -> list[str]:
    """Each kind of note once, with the targets that it is true of and how many answers; and the retries."""
    notes: dict[str, Counter[str]] = {}
    retries: Counter[str] = Counter()
    for cell in cells:
        for note, count in cell.answer_notes.items():
            notes.setdefault(note, Counter())[cell.target] += count
        retries[cell.target] += cell.retries
    said = [f"{_told(counts)} answers: {note}" for note, counts in notes.items()]
    if retries.total():
        said.append(f"{_told(+retries)} requests were sent again, because the server had closed their kept connection")
    return said


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{target}: {count}" for target, count in counts.items())


SIXTEEN_BITS = frozenset({"float16", "bfloat16"})
"""Keys and values of either take the same memory and time to read."""


def unequal_servers(manifest: Manifest) -> list[str]:
    """One sentence per target whose KV cache, or CUDA graphs, are not those of the reference; both must be known."""
    reference = manifest.config.reference
    servers = {server.name: server for server in manifest.servers}
    if (ours := servers.pop(reference, None)) is None:
        return []
    sentences: list[str] = []
    for name, server in servers.items():
        sentences += _kv_caches(name, server.kv_cache_dtype, reference, ours.kv_cache_dtype)
        sentences += _graphs(name, server.eager, reference, ours.eager)
    return sentences


def _kv_caches(name: str, dtype: str | None, reference: str, ours: str | None) -> Iterable[str]:
    if dtype is None or ours is None or dtype == ours or {dtype, ours} <= SIXTEEN_BITS:
        return
    yield (
        f"{name} keeps keys and values in {dtype} and {reference} in {ours}: they differ in more than their weights; "
        "measure both with one --kv-cache-dtype"
    )


def _graphs(name: str, eager: bool | None, reference: str, ours: bool | None) -> Iterable[str]:
    if eager is None or ours is None or eager == ours:
        return
    slow, fast = (name, reference) if eager else (reference, name)
    yield (
        f"{slow} ran eagerly (enforce_eager=True: no torch.compile, no CUDA graphs) and {fast} did not: part of their "
        "difference is not of precision, most at small B"
    )


FAIR_POINTS = 2.0
"""Percentage points by which hit shares may differ between two arms, or two repeats, that are compared."""


def hit_warnings(cells: Sequence[CellSummary]) -> list[str]:
    """One sentence about hits that the requests' own salts should have prevented."""
    hit = [cell for cell in cells if cell.cache_hit_share]
    if not hit:
        return []
    most = max(hit, key=lambda cell: cell.cache_hit_share or 0.0)
    return [
        f"prefix cache: {len(hit)} cells had hits although every request has its own cache_salt, at most "
        f"{most.cache_hit_share or 0.0:.1%} of the prompt tokens ({most.target}, {most.load}, repeat {most.repeat}); "
        "the server does not honour cache_salt: switch its prefix cache off (vLLM: --no-enable-prefix-caching)"
    ]


def share_marks(cells: Sequence[CellSummary], reference: str) -> dict[str, list[str]]:
    """Target -> what marks its comparison with the reference: hit shares that differ by more than `FAIR_POINTS`.

    Compared are, at each load, the repeats of one arm, and the means of the target and the reference. Uneven repeats of
    the reference mark every target.
    """
    shares: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        if cell.cache_hit_share is not None:
            shares.setdefault((cell.target, cell.load), []).append(100 * cell.cache_hit_share)
    marks: dict[str, list[str]] = {target: [] for target, _ in shares}
    for (target, load), ours in shares.items():
        if max(ours) - min(ours) > FAIR_POINTS:
            marks[target].append(
                f"{target}, {load}: its repeats took {min(ours):.1f} to {max(ours):.1f}% of their prompt tokens from "
                "the prefix cache"
            )
        theirs = shares.get((reference, load), ours)
        if abs(fmean(ours) - fmean(theirs)) > FAIR_POINTS:
            marks[target].append(
                f"{load}: {target} took {fmean(ours):.1f}% of its prompt tokens from the prefix cache, {reference} "
                f"{fmean(theirs):.1f}%"
            )
    of_reference = marks.get(reference, [])
    return {target: ours if target == reference else [*ours, *of_reference] for target, ours in marks.items()}


CLOCK_STEP_S = 1.0
"""From which on the wall clock was set, not only slewed."""


def analyse(
    run_dir: Path,
    settings: IndexSettings | None = None,
    *,
    slo: Slo | None = None,
    start_sd: float | None = None,
    out: Path | None = None,
) -> None:
    """(Re)write every derived file of a run directory from its journal, also of a run that was killed.

    With `out`, they and a copy of the manifest are written into that folder, made if need be, and nothing into the run.

    `settings`: the indices' free choices, by default the paper's with the sweep's own carbon intensity; `slo`: what
    goodput asks for, by default what the sweep was told; `start_sd`: the relative standard deviation between starts of
    a server, by default what the sweep was told. Raises UsageError if this is not a run directory, nothing was
    measured, or `out` is a run directory.
    """
    manifest = read_manifest(run_dir)
    if out is not None:
        if any(map(Folder(out).has, ("journal", "items.json"))):
            raise UsageError(f"{out} is a run directory, whose own files would be overwritten; name another folder")
        out.mkdir(parents=True, exist_ok=True)
        Folder(out).write(FILE, Folder(run_dir).read(FILE))
    facts = read_facts(run_dir) if manifest.graded else {}
    grader = Grader(facts, manifest.protocol.name, manifest.config.answer_regex)
    cells: list[CellSummary] = []
    gathered = GatheredAnswers(manifest.protocol)
    config = manifest.config
    if settings is None:
        settings = IndexSettings(carbon_kg_per_kwh=config.carbon_kg_per_kwh)
    config = replace(config, carbon_kg_per_kwh=settings.carbon_kg_per_kwh)
    manifest = replace(manifest, config=config)
    if start_sd is None:
        start_sd = config.start_sd
    calibrations: dict[Server, ServerCalibration] = {}
    damaged: list[str] = []
    if slo is None and config.slo:
        slo = Slo.parse(config.slo)
    paths = cell_files(run_dir)
    processes = processes_for(paths)
    powers = read_powers(run_dir, manifest, processes)
    with RunTables(out or run_dir) as tables:
        for result in CellReader(manifest, grader, powers, slo).results(paths, processes):
            cell = result.summary
            cells.append(cell)
            if result.damaged:
                damaged.append(f"{_name(cell)}: {_left_out(result.damaged)}")
            gathered.add(result.answers)
            tables.add("requests", result.requests)
            tables.add("server", result.server)
            block = cell.target, cell.repeat, cell.session
            power = powers.get(block)
            if power is not None and block not in calibrations:
                tables.add("power", power_table(cell, power))
                calibrations[block] = ServerCalibration(
                    target=cell.target, repeat=cell.repeat, session=cell.session, gpus=power.calibration()
                )
                if power.damaged:
                    damaged.append(f"power of {cell.target}, repeat {cell.repeat}: {_left_out(power.damaged)}")
    if not cells:
        why = "".join(f": {failure.error}" for failure in manifest.failures[:1])
        raise UsageError(f"{run_dir} holds no measured cell, there is nothing to report{why}")
    trust = study(gathered.sides(), grader.items, reference=manifest.config.reference, processes=processes)
    answer = answer_of(
        cells,
        gathered.answers,
        trust,
        reference=manifest.config.reference,
        settings=settings,
        start_sd=start_sd,
        graph_sizes={server.name: server.graph_sizes for server in manifest.servers if server.graph_sizes is not None},
        processes=processes,
    )
    write_cells(out or run_dir, cells)
    write_summary(out or run_dir, summarize(cells, gathered.answers, trust, answer.indices, processes))
    claims = claims_of(cells, answer, trust, reference=manifest.config.reference, lengths=gathered.lengths)
    arrival = manifest.config.arrival
    hidden = hidden_warnings(gathered.answers, manifest.protocol.max_tokens, lambda b: level(b, arrival))
    hidden += flaw_warnings(facts)
    analysis = msgspec.structs.replace(
        _analysis(manifest, cells, trust, answer, damaged, hidden),
        claims=claims,
        slo=None if slo is None else str(slo),
        start_sd=start_sd,
        index_settings=settings,
        calibration=tuple(calibrations.values()),
    )
    write_analysis(out or run_dir, analysis)


def batch_notes(cells: list[CellSummary]) -> list[str]:
    """What is not plain about the running batch of valid cells: a sentence per target and kind, with its first cell."""
    told: dict[tuple[str, str], list[CellSummary]] = {}
    for cell in cells:
        if cell.validity.valid and cell.running_note.why:
            told.setdefault((cell.target, cell.running_note.why), []).append(cell)
    return [
        _name(first) + (f" and {len(others)} more" if others else "") + f": {first.running_note}"
        for first, *others in told.values()
    ]


def planned_cells(manifest: Manifest) -> int:
    """How many cells the run was to measure."""
    config = manifest.config
    return len(config.targets) * len(config.concurrency) * config.repeats


def checkpoint_notes(manifest: Manifest) -> list[str]:
    """What must be known of the servers before any figure: of their checkpoints, and what makes two of them unequal."""
    said: dict[str, dict[str, None]] = {}
    for server in manifest.servers:
        for note in filter(None, (server.note, *server.remarks)):
            said.setdefault(note, {})[server.name] = None
    return [*(f"{', '.join(targets)}: {note}" for note, targets in said.items()), *unequal_servers(manifest)]


def _left_out(lines: int) -> str:
    return f"{lines} damaged line{'s' * (lines > 1)} of its journal left out"


def _analysis(
    manifest: Manifest,
    cells: list[CellSummary],
    trust: TrustStudy,
    answer: Answer,
    damaged: list[str],
    hidden: list[str],
) -> Analysis:
    warnings = checkpoint_notes(manifest)
    arrival = manifest.config.arrival
    invalid = tuple(
        Invalid(target=c.target, concurrency=c.concurrency, repeat=c.repeat, quantity=quantity, reasons=reasons)
        for c in cells
        for quantity, reasons in c.validity.told
    )
    warnings += [*invalid_sentences(invalid, arrival), *damaged]
    measured = Counter((cell.target, cell.repeat) for cell in cells)
    warnings += [
        f"{failure.target}, repeat {failure.repeat}: {failure.error}"
        for failure in manifest.failures
        if measured[failure.target, failure.repeat] < len(manifest.config.concurrency)
    ]
    warnings += [
        f"session {session.session}: {sentence}" for session in manifest.sessions for sentence in session.warnings
    ]
    unsure = [(cell, doubt) for cell in cells if (doubt := cell.client_doubt) is not None]
    if unsure:
        warnings.append(
            f"p99 latencies of {len(unsure)} cells may be the client's, as {_name(unsure[0][0])}: {unsure[0][1]}"
        )
    warnings += [
        f"{_name(cell)}: {cell.failures} of its requests failed, the first with {cell.first_failure}"
        for cell in cells
        if cell.failures and not cell.validity.failing
    ]
    doubtful = [cell for cell in cells if cell.validity.energy_valid and cell.energy.energy_reservations]
    if doubtful:
        warnings.append(
            f"energy of {len(doubtful)} cells with a reservation (energy_reservations in cells.csv), as "
            f"{_name(doubtful[0])}: {doubtful[0].energy.energy_reservations}"
        )
    warnings += [
        f"{_name(cell)}: {cell.traffic.dropped} of {cell.traffic.arrivals} arrivals were dropped and have no latency: "
        "the highest percentiles may be too low"
        for cell in cells
        if cell.validity.latency_valid and cell.traffic.dropped
    ]
    warnings += [
        f"{_name(cell)}: {said}"
        for cell in cells
        if cell.validity.latency_valid and (said := late_tail(cell.traffic)) is not None
    ]
    marks = share_marks(cells, manifest.config.reference)
    if not manifest.config.prefix_cache:
        warnings += hit_warnings(cells)
    warnings += [
        f"the comparison is not fair: {mark}"
        for mark in dict.fromkeys(mark for ours in marks.values() for mark in ours)
    ]
    warnings += _accuracy_warnings(trust, arrival)
    warnings += hidden
    warnings += [
        f"the wall clock was set by {step_s:+.1f} s during session {session}; no figure depends on it, but times in "
        "Grafana do"
        for session, step_s in _clock_steps(manifest)
    ]
    for block in manifest.power_blocks:
        if block.samples_lost:
            warnings.append(
                f"{block.target}, repeat {block.repeat}: {block.samples_lost} power samples were gone before they were "
                "pulled; windows that miss them have no energy"
            )
    warnings += batch_notes(cells)
    warnings += note_warnings(cells)
    warnings += answer.hli_disagreements
    planned, reference = planned_cells(manifest), manifest.config.reference
    if len(cells) < planned:
        warnings.append(f"{planned - len(cells)} of {planned} planned cells were not measured")
    if not manifest.dataset.published and manifest.dataset.name not in ("jsonl", "choices"):
        warnings.append(f"the data file is not the published {manifest.dataset.name} (another sha256)")
    held = [cell for cell in cells if cell.traffic.arrival is None]
    return Analysis(
        reference=reference,
        simulated=manifest.simulated,
        invalid=invalid,
        crossovers=tuple(
            msgspec.structs.replace(found, notes=(*found.notes, *marks.get(found.target, ())))
            for found in answer.crossovers
        ),
        **msgspec.structs.asdict(trust),
        models=cost_models(held, answer.crossovers, reference=reference),
        **msgspec.structs.asdict(answer.indices),
        client=tuple(_nearest(cells)),
        warnings=tuple(warnings),
    )


def _accuracy_warnings(trust: TrustStudy, arrival: str | None) -> list[str]:
    """Of comparisons that are refused or confounded: batches with the same reason together."""
    alike: dict[tuple[str, str], list[TrustTest]] = {}
    for test in trust.trust:
        if test.verdict == "refused" or (test.judgement is not None and test.judgement.confounded):
            kind = test.sentence if test.verdict == "refused" else "confounded"
            alike.setdefault((test.target, kind), []).append(test)
    said = []
    for (target, _), tests in alike.items():
        first, *others = sorted(tests, key=lambda test: test.concurrency)
        measured = [test.concurrency for test in trust.trust if test.target == target]
        more = f" (likewise at {spanned([test.concurrency for test in others], measured)})" if others else ""
        where = level(first.concurrency, arrival)
        said.append(f"accuracy of {target} against {first.reference} at {where}: {first.sentence}{more}")
    return said


def _nearest(cells: list[CellSummary]) -> list[NearestCheck]:
    return nearest_checks(
        ((cell.target, cell.concurrency, cell.repeat), check) for cell in cells for check in cell.client_checks
    )


def _clock_steps(manifest: Manifest) -> list[tuple[int, float]]:
    """Session and seconds by which the wall clock went beside the monotonic one, where that is more than drift."""
    anchors: dict[int, list[ClockAnchor]] = {}
    for anchor in manifest.clock_anchors:
        anchors.setdefault(anchor.session, []).append(anchor)
    steps = []
    for session, found in anchors.items():
        walls = [anchor.unix_ns - anchor.monotonic_ns for anchor in found]
        if abs(walls[-1] - walls[0]) > CLOCK_STEP_S * 1e9:
            steps.append((session, (walls[-1] - walls[0]) / 1e9))
    return steps


def _name(cell: CellSummary) -> str:
    return f"{cell.target}, {cell.load}, repeat {cell.repeat}"
