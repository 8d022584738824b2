"""Analysis: the content of analysis.json, and how `analyse` makes it and every other derived file of a run directory.

A run directory in, numbers out: no server and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import asdict, replace

from loadgen.analysis.cellresult import CellReader, GatheredAnswers, processes_for
from loadgen.analysis.cells import CellSummary
from loadgen.analysis.claims import Claim, claims_of
from loadgen.analysis.client import NearestCheck, nearest_checks
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.energy import Server, read_powers
from loadgen.analysis.indices.formulas import IndexSettings
from loadgen.analysis.indices.study import IndexStudy
from loadgen.analysis.models.study import ModelStudy, cost_models
from loadgen.analysis.pareto import ParetoPoint, pareto_points
from loadgen.analysis.runresult import RunResult, run_result
from loadgen.analysis.tables import RunTables, damaged, older, power_table, summarize, write_cells, write_summary
from loadgen.analysis.tokenenergy import TokenEnergy, token_energies
from loadgen.analysis.trust.answers import flaw_warnings, hidden_warnings
from loadgen.analysis.trust.study import BatchTest, DepthTest, TrustTest, study
from loadgen.analysis.validity import Invalid
from loadgen.analysis.warnings import cell_name, run_warnings, share_marks
from loadgen.errors import UsageError
from loadgen.folder import Folder, read_json
from loadgen.power.trace import Calibration
from loadgen.record.cell import Slo
from loadgen.record.journal import cell_files
from loadgen.record.manifest import FILE, Manifest, read_manifest
from loadgen.search.readings import Place, Readings, Result, counted, told_by
from loadgen.search.story import Story
from loadgen.secret import error_text
from loadgen.workload.grading import Grader
from loadgen.workload.item import read_facts

SCHEMA = 1
ANALYSIS = "analysis.json"


class ServerCalibration(msgspec.Struct, frozen=True, kw_only=True):
    """The power sensors of one server."""

    target: str
    repeat: int
    session: int
    gpus: dict[str, Calibration]
    """By UUID."""


class Analysis(IndexStudy, frozen=True, kw_only=True):
    """What the figures of a run say. docs/metrics.md describes each list."""

    schema: int = SCHEMA
    reference: str
    simulated: bool
    invalid: tuple[Invalid, ...]
    crossovers: tuple[Crossover, ...] = ()
    trust: tuple[TrustTest, ...]
    trust_invariance: tuple[BatchTest, ...] = ()
    depth: tuple[DepthTest, ...] = ()
    models: tuple[ModelStudy, ...] = ()
    pareto: tuple[ParetoPoint, ...] = ()
    token_energy: tuple[TokenEnergy, ...] = ()
    """Of a run with several shapes of requests."""
    client: tuple[NearestCheck, ...] = ()
    """The client's figures that came closest to their limits."""
    warnings: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    slo: str | None = None
    """What goodput asks for, as `--slo` takes it."""
    shape: str | None = None
    """Of a run with several shapes of requests, the one that all lists but `token_energy`, `invalid`, `warnings`,
    `client` and `calibration` are about."""
    start_sd: float | None = None
    """Relative standard deviation between starts of a server, where the user stated it."""
    search: Story | None = None
    """Of a run that searched for B* (`--find`); None: a grid, or a search of another version of loadgen."""
    index_settings: IndexSettings = IndexSettings()
    calibration: tuple[ServerCalibration, ...] = ()

    def crossover(self, target: str, metric: str) -> Crossover | None:
        """The crossover of a target against the reference; `metric` as in `METRICS`."""
        found = (one for one in self.crossovers if (one.target, one.metric) == (target, metric))
        return next(found, None)


def analyse(
    run_dir: Path,
    settings: IndexSettings | None = None,
    *,
    slo: Slo | None = None,
    start_sd: float | None = None,
    shape: str | None = None,
    out: Path | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """(Re)write every derived file of a run directory from its journal, also of a run that was killed.

    With `out`, they and a copy of the manifest are written into that folder, made if need be, and nothing into the run.

    `settings`: the indices' free choices, by default the paper's with the sweep's own carbon intensity; `slo`: what
    goodput asks for, by default what the sweep was told; `start_sd`: the relative standard deviation between starts of
    a server, by default what the sweep was told; `shape`: which of several shapes of requests the analysis is about, by
    default the first that was measured; `meanwhile` is called while cells are read. Raises UsageError if this is not a
    run directory, nothing was measured, or `out` is a run directory.
    """
    manifest, asked = read_manifest(run_dir), shape
    shape = _shape_of(run_dir, manifest, shape)
    if out is not None:
        if any(map(Folder(out).has, ("journal", "items.json"))):
            raise UsageError(f"{out} is a run directory, whose own files would be overwritten; name another folder")
        out.mkdir(parents=True, exist_ok=True)
        Folder(out).write(FILE, Folder(run_dir).read(FILE))
    folder, config = out or run_dir, manifest.config
    settings = settings or IndexSettings(carbon_kg_per_kwh=config.carbon_kg_per_kwh)
    start_sd = config.start_sd if start_sd is None else start_sd
    if slo is None and config.slo:
        slo = Slo.parse(config.slo)
    config = replace(config, carbon_kg_per_kwh=settings.carbon_kg_per_kwh)
    manifest, reference = replace(manifest, config=config), config.reference
    known = read_facts(run_dir)
    facts = known if manifest.graded else {}
    grader = Grader(facts, manifest.protocol.name, config.answer_regex)
    paths = cell_files(run_dir)
    processes = processes_for(paths)
    powers = read_powers(run_dir, manifest, processes)
    cells: list[CellSummary] = []
    gathered = GatheredAnswers(manifest.protocol)
    calibrations: dict[Server, ServerCalibration] = {}
    damages: list[str] = []
    searched: dict[Place, Result] = {}
    with RunTables(folder) as tables:
        for result in CellReader(manifest, grader, powers, slo, known).results(paths, processes):
            if meanwhile is not None and not cells:
                meanwhile()
            cell = result.summary
            cells.append(cell)
            if result.damaged:
                damages.append(f"{cell_name(cell)}: {_left_out(result.damaged)}")
            if cell.phase is None and cell.shape == shape:
                gathered.add(result.answers)
            elif cell.phase is not None:
                searched[cell.target, cell.concurrency, cell.repeat] = cell, result.answers
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
                    damages.append(f"power of {cell.target}, repeat {cell.repeat}: {_left_out(power.damaged)}")
    if not cells:
        why = "".join(f": {failure.error}" for failure in manifest.failures[:1])
        raise UsageError(f"{run_dir} holds no measured cell, there is nothing to report{why}")
    story, measured = None, [cell for cell in cells if cell.shape == shape]
    if not measured:
        there = [other for other in config.shapes if any(cell.shape == other for cell in cells)]
        if asked is None and there:
            analyse(run_dir, settings, slo=slo, start_sd=start_sd, shape=there[0], out=out)
            return
        other = f"; give --shape {there[0]}" if there else ""
        raise UsageError(f"{run_dir} holds no measured cell of the shape {shape or 'that its manifest names'}{other}")
    if searched:
        found_by_search = counted(list(searched.values()))
        measured = [cell for cell, _ in found_by_search]
        for _, answers in found_by_search:
            gathered.add(answers)
        story = Readings(run_dir, manifest, settings=settings, known=searched).story(manifest)
    trust = study(gathered.sides(), grader.items, reference=reference, processes=processes)
    graph_sizes = {server.name: server.graph_sizes for server in manifest.servers if server.graph_sizes is not None}

    def result_of(chosen: Sequence[CellSummary]) -> RunResult:
        return run_result(
            chosen, gathered.answers, trust, reference=reference, settings=settings, start_sd=start_sd,
            graph_sizes=graph_sizes, processes=processes,
        )  # fmt: skip

    found = result_of(measured)
    rows = {shape: summarize(measured, gathered.answers, trust, found.indices, processes)}
    for other in config.shapes:
        if other != shape and (ours := [cell for cell in cells if cell.shape == other]):
            rows[other] = summarize(ours, {}, trust, result_of(ours).indices, processes)
    write_cells(folder, cells)
    write_summary(folder, [row for one in config.shapes or [None] for row in rows.get(one, ())])
    marks = share_marks(cells, reference)
    invalid = tuple(
        Invalid(
            target=c.target,
            concurrency=c.concurrency,
            arrival=c.traffic.arrival,
            shape=c.shape,
            repeat=c.repeat,
            quantity=quantity,
            reasons=reasons,
        )
        for c in cells
        for quantity, reasons in c.validity.told
    )
    loads = {cell.held: cell.load for cell in cells}
    hidden = hidden_warnings(gathered.answers, manifest.protocol.max_tokens, loads.__getitem__)
    held = [cell for cell in measured if cell.traffic.arrival is None]
    checks = (
        ((cell.target, cell.concurrency, cell.traffic.arrival, cell.repeat), check)
        for cell in cells
        for check in cell.client_checks
    )
    analysis = Analysis(
        reference=reference,
        simulated=manifest.simulated,
        invalid=invalid,
        crossovers=tuple(
            replace(c, notes=(*c.notes, *marks.get(c.target, ()))) for c in _searched(found.crossovers, story)
        ),
        **asdict(trust),
        models=cost_models(held, found.crossovers, reference=reference),
        **asdict(found.indices),
        pareto=pareto_points(measured),
        token_energy=tuple(token_energies(cells, config.shapes, prefix_cache=config.prefix_cache)),
        client=tuple(nearest_checks(checks)),
        warnings=run_warnings(
            manifest,
            cells,
            trust,
            invalid=invalid,
            damaged=damages,
            marks=marks,
            answers=[*hidden, *flaw_warnings(facts)],
            hli=found.hli_disagreements,
            shape=shape,
        ),
        claims=claims_of(measured, found, trust, reference=reference, lengths=gathered.lengths),
        slo=None if slo is None else str(slo),
        shape=shape,
        start_sd=start_sd,
        search=story,
        index_settings=settings,
        calibration=tuple(calibrations.values()),
    )
    write_analysis(folder, analysis)


def _shape_of(run_dir: Path, manifest: Manifest, asked: str | None) -> str | None:
    """The shape that the analysis is about; None for a run of one. Raises UsageError for one that was not measured."""
    shapes = manifest.config.shapes
    if asked is None:
        return shapes[0] if shapes else None
    if asked not in shapes:
        known = f"give one of {', '.join(shapes)}" if shapes else "it has one shape; omit --shape"
        raise UsageError(f"--shape {asked}: {run_dir} was not measured with it; {known}")
    return asked


def _searched(crossovers: Sequence[Crossover], story: Story | None) -> list[Crossover]:
    """With the answers of the search where there is one."""
    answers = {(answer.target, answer.metric): answer for answer in story.answers} if story is not None else {}
    return [told_by(answers[key], c) if (key := (c.target, c.metric)) in answers else c for c in crossovers]


def _left_out(lines: int) -> str:
    return f"{lines} damaged line{'s' * (lines > 1)} of its journal left out"


def write_analysis(folder: Path, analysis: Analysis) -> None:
    """Writes analysis.json."""
    text = msgspec.json.format(msgspec.json.encode(analysis), indent=2)
    Folder(folder).write(ANALYSIS, text + b"\n")


def read_analysis(folder: Path) -> Analysis:
    """What `write_analysis` wrote. Raises UsageError if it is damaged, or of an older version."""
    try:
        found: Analysis = read_json(folder, ANALYSIS, Analysis)
    except ValueError as error:
        why = error_text(error)
    else:
        return found
    raise older(folder) if "missing required field" in why else damaged(folder, ANALYSIS, why)
