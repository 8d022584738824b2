"""A sweep from its first check to its run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from loadgen.address import host_port
from loadgen.errors import UsageError
from loadgen.load.assignment import Assignment
from loadgen.load.body import BodyChanges
from loadgen.load.load import Load, OnExchange
from loadgen.load.workers import load_of
from loadgen.measure.block import BlockRun, Judge
from loadgen.measure.cell import CellRun, CellSettings, Interrupt
from loadgen.measure.config import api_key
from loadgen.measure.machine import (
    allow_open_files,
    await_old_servers,
    begin_session,
    client_record,
    clock_anchor,
    compare_machines,
    crew_of,
    host_record,
    require_same_data,
    require_same_power,
    require_same_server,
)
from loadgen.measure.metrics import SweepMetrics
from loadgen.measure.observer import Observer, Tee
from loadgen.measure.power import PowerRecorder, exporter_of, idle_power, plan_power
from loadgen.measure.preflight import Learned, learn_from
from loadgen.measure.servers import Patience, Server, Source, source_of
from loadgen.measure.settings import Confirm, as_stored, new_run_dir, remember, require_consent, resumed_config
from loadgen.record.cell import Block, Cell, plan_blocks
from loadgen.record.config import SweepConfig
from loadgen.record.journal import CellEnd, Journal
from loadgen.record.manifest import (
    BodyChangesRecord,
    DatasetRecord,
    Manifest,
    ManifestFile,
    PowerPlan,
    ProtocolRecord,
    read_manifest,
)
from loadgen.record.rundir import held, stored, unfinished
from loadgen.secret import Mask
from loadgen.serving.checkpoint import weights_of
from loadgen.serving.facts import proxies_passed_by
from loadgen.serving.metrics import metrics_of
from loadgen.serving.process import mask_log
from loadgen.serving.recipe import recipe_sha256
from loadgen.workload.dataset import Dataset, load_dataset
from loadgen.workload.grading import Grader
from loadgen.workload.grading.words import check_speed
from loadgen.workload.item import facts_of, write_facts
from loadgen.workload.protocol import Protocol, load_protocol
from loadgen.workload.questions import warmup_items

EXPECTED_ANSWER_S = {"simulated": 0.6, "target": 5.0, "serve": 5.0}
EXPECTED_START_S = {"simulated": 1.0, "target": 0.0, "serve": 90.0}


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: what was measured is in `run_dir`."""

    def __init__(self, run_dir: Path, *, hurried: bool) -> None:
        super().__init__(str(run_dir))
        self.run_dir = run_dir
        self.hurried = hurried
        """Whoever asked wants no report either."""


class SweepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known before a server is started."""

    config: SweepConfig
    dataset: Dataset
    protocol: Protocol
    """As it is asked: `--api` and `--thinking` are in it."""
    blocks: tuple[Block, ...]

    @property
    def cells(self) -> list[Cell]:
        return [cell for block in self.blocks for cell in block.cells]

    @property
    def grader(self) -> Grader:
        """Grades nothing where the answers' length was fixed."""
        items = self.dataset.items if self.config.fixed_length is None else ()
        return Grader({item.id: facts_of(item) for item in items}, self.protocol.name, self.config.answer_regex)

    @property
    def max_tokens(self) -> int:
        """Cap of an answer, or its length."""
        return self.config.fixed_length or self.config.max_tokens or self.protocol.max_tokens

    @property
    def expected_s(self) -> float:
        """A first guess of the sweep's length; the live view corrects it as cells end."""
        mode = self.config.mode
        cell_s = (self.config.duration_s or 30.0) + (self.config.warmup_s or 0.0) + 3 * EXPECTED_ANSWER_S[mode]
        return len(self.cells) * cell_s + len(self.blocks) * EXPECTED_START_S[mode]


def plan_sweep(config: SweepConfig) -> SweepPlan:
    """Loads data and protocol; raises UsageError. Starts nothing, creates nothing but the cache of published files."""
    data_file = Path(config.data_file) if config.data_file else None
    shots_file = Path(config.shots_file) if config.shots_file else None
    platinum = Path(config.platinum_file) if config.platinum_file else None
    dataset = load_dataset(config.dataset, data_file=data_file, limit=config.limit, platinum_file=platinum)
    protocol = load_protocol(config.protocol, shots_file=shots_file)
    protocol.check_fits(dataset)
    if config.answer_regex is not None:
        check_speed(config.answer_regex)
    if config.thinking is not None:
        protocol = config.thinking.shape(protocol)
    protocol = msgspec.structs.replace(protocol, api=config.api or protocol.api)
    return SweepPlan(
        config=config,
        dataset=dataset,
        protocol=protocol,
        blocks=_blocks(config),
    )


def left_of(run_dir: Path, config: SweepConfig) -> SweepPlan:
    """The plan of what an interrupted run lacks; without blocks if it lacks nothing."""
    return msgspec.structs.replace(plan_sweep(config), blocks=unfinished(run_dir, _blocks(config)))


def _blocks(config: SweepConfig) -> tuple[Block, ...]:
    return tuple(plan_blocks(config.targets, config.concurrency, config.repeats, config.arrival))


def run_sweep(
    config: SweepConfig,
    observer: Observer | None = None,
    judge: Judge | None = None,
    given: Mapping[str, Any] | None = None,
) -> Path:
    """Measures every cell and returns the run directory, journal and manifest complete, nothing derived yet.

    A server that fails costs its own cells, the others go on. `judge` is asked after each cell, before the next begins,
    so that the observers hear its verdict. `given` are the options of which `config` was made. Raises UsageError before
    anything is created, Interrupted on Ctrl-C, and StorageError when the run directory can no longer be written.
    """
    observer = observer or Observer()
    allow_open_files(config)
    source, patience = source_of(config), Patience(config.wait_ready_s, observer)
    source.check(patience)
    power = plan_power(config, simulated=source.simulated)
    plan = plan_sweep(config)
    with new_run_dir(config) as run_dir:
        learned = _learn(plan, source, patience, BodyChanges(extra=config.extra_body))
    manifest = _manifest(plan, power, learned.changes, given, simulated=source.simulated)
    remember(manifest.config)
    with held(run_dir), stored(run_dir):
        _sweep(plan, source, power, ManifestFile(run_dir, manifest), observer, judge, learned.changes, learned.notes)
    return run_dir


def resume_sweep(
    run_dir: Path,
    given: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
    judge: Judge | None = None,
    *,
    trusted: bool = False,
    confirm: Confirm | None = None,
) -> Path:
    """Measures the cells of an interrupted run that are not finished, with the settings it was begun with.

    `given` are arguments of `configure` that were named again. A block of cells gets a fresh server and every cell its
    warm-up, as ever. `trusted` and `confirm` are those of `require_consent`.

    Raises UsageError if the directory is no run, is being measured, an option says something else, or
    data, servers or GPUs are not what they were; and Interrupted on Ctrl-C, as often as you like.
    """
    read_manifest(run_dir)
    observer = observer or Observer()
    with held(run_dir), stored(run_dir):
        begun = read_manifest(run_dir)
        config = resumed_config(run_dir, begun, given or {})
        for log in sorted((run_dir / "servers").glob("*.log")):
            mask_log(log, Mask(api_key(config)))
        if not unfinished(run_dir, _blocks(config)):
            observer.note(f"{run_dir} is complete, nothing is left to measure")
            return run_dir
        require_consent(run_dir, begun, given or {}, trusted=trusted, confirm=confirm)
        plan = left_of(run_dir, config)
        require_same_data(begun, _dataset(plan), _protocol(plan, BodyChanges()), _recipes(config))
        allow_open_files(config)
        source, patience = source_of(config), Patience(config.wait_ready_s, observer)
        source.check(patience)
        power = plan_power(config, simulated=source.simulated)
        known = BodyChanges(
            extra=config.extra_body, refused=begun.body_changes.refused, limit_field=begun.body_changes.limit_field
        )
        learned = _learn(plan, source, patience, known)
        require_same_power(begun.power, power)
        for server in source.running:
            require_same_server(begun, server.record)
        serves = config.mode == "serve"
        warnings = compare_machines(begun, client=client_record(), host=host_record(), serves=serves)
        warnings += learned.notes
        begun = msgspec.structs.replace(begun, body_changes=_changes(learned.changes))
        for name in await_old_servers(begun.servers):
            observer.warn(f"the server of {name} that an earlier session started is still running")
        _sweep(plan, source, power, ManifestFile(run_dir, begun), observer, judge, learned.changes, warnings)
    return run_dir


def _sweep(
    plan: SweepPlan,
    source: Source,
    power: PowerPlan,
    manifest: ManifestFile,
    observer: Observer,
    judge: Judge | None,
    changes: BodyChanges,
    warnings: Sequence[str],
) -> None:
    config, run_dir = plan.config, manifest.run_dir
    begin_session(manifest)
    write_facts(run_dir, plan.dataset.items)
    metrics = _metrics(plan, run_dir, observer, simulated=source.simulated)
    observer = Tee(observer, metrics)
    observer.run_begins(_title(plan, manifest, source), len(plan.cells), source.simulated, plan.expected_s)
    for warning in (*warnings, *power.warnings):
        manifest.warn(warning)
        observer.warn(warning)
    if proxies := proxies_passed_by(spec.url for spec in config.targets if spec.url is not None):
        shown = ", ".join(map(Mask(), proxies))
        observer.note(f"the proxy {shown} of the environment is not asked: servers are measured directly")

    def warn(sentence: str) -> None:
        manifest.warn(sentence)
        observer.warn(sentence)

    interrupt = Interrupt()
    crew: dict[int, int] = {}

    async def run_cell(cell: Cell, server: Server, journal: Journal, recorder: PowerRecorder | None) -> CellEnd:
        workers = crew[cell.concurrency]
        make_load = partial(_load, cell, plan, server, changes, workers)
        return await _run_cell(cell, plan, server, make_load, journal, observer, recorder, interrupt)

    try:
        with interrupt.heard(), exporter_of(power, run_dir, warn) as exporter_url:
            crew |= crew_of(config, manifest, observer)
            if exporter_url is not None and config.mode == "serve":
                try:
                    idle = idle_power(exporter_url, power, run_dir, manifest.session)
                except UsageError as error:
                    if power.required:
                        raise
                    warn(f"power before the first server is not measured: {error}")
                else:
                    manifest.add_idle(idle)
                    observer.note(f"before the first server: {idle}")
            blocks = BlockRun(source, power, exporter_url, manifest, observer, judge, interrupt, run_cell)
            for block in plan.blocks:
                blocks.measure(block)
    except KeyboardInterrupt:
        raise Interrupted(run_dir, hurried=interrupt.hurried) from None
    finally:
        try:
            manifest.anchor(clock_anchor())
        finally:
            metrics.close(wait=not interrupt.asked)


def _title(plan: SweepPlan, manifest: ManifestFile, source: Source) -> str:
    config = plan.config
    title = f"{config.model or ('simulated model' if source.simulated else 'model')} · {plan.dataset.name}, "
    title += f"{len(plan.dataset.items)} items · {len(config.targets)} targets × {config.load} × "
    title += f"{config.repeats} repeats"
    if manifest.resumed:
        whole = len(config.targets) * len(config.concurrency) * config.repeats
        title += f" · resumed, {whole - len(plan.cells)} of {whole} cells are kept"
    return title


def _metrics(plan: SweepPlan, run_dir: Path, observer: Observer, *, simulated: bool) -> SweepMetrics:
    config = plan.config
    metrics = SweepMetrics(simulated=simulated, run=run_dir.name, model=config.model or "", dataset=plan.dataset.name)
    if config.metrics_port is not None:
        try:
            metrics.serve(config.metrics_port, config.metrics_host)
        except OSError:
            where = host_port(config.metrics_host, config.metrics_port)
            observer.warn(f"{where} is taken or not this machine's: this run's /metrics is not served (--metrics-port)")
    return metrics


async def _run_cell(
    cell: Cell,
    plan: SweepPlan,
    server: Server,
    make_load: Callable[[OnExchange], Load],
    journal: Journal,
    observer: Observer,
    power: PowerRecorder | None,
    interrupt: Interrupt,
) -> CellEnd:
    config = plan.config
    run = CellRun(
        cell,
        settings=CellSettings.of(config.duration_s, config.requests, config.warmup_s),
        metrics=metrics_of(server.target, api_key(config)),
        make_load=make_load,
        journal=journal,
        observer=observer,
        server_died=server.died,
        grader=plan.grader,
        power=power,
        interrupt=interrupt,
    )
    return await run.run()


def _load(
    cell: Cell, plan: SweepPlan, server: Server, changes: BodyChanges, workers: int, on_exchange: OnExchange
) -> Load:
    config = plan.config
    assignment = msgspec.structs.replace(
        _assignment(plan, server, cell.concurrency, changes),
        duration_s=config.duration_s,
        arrivals=cell.arrivals,
        arrival_seed=f"{config.seed}/{cell.repeat}",
    )
    return load_of(assignment, workers, on_exchange)


def _assignment(plan: SweepPlan, server: Server, concurrency: int, changes: BodyChanges) -> Assignment:
    config = plan.config
    return Assignment(
        url=server.target.url,
        model=server.target.model,
        api_key=api_key(config),
        transport=config.transport,
        timeout_s=config.timeout_s,
        protocol=plan.protocol,
        seed=config.seed,
        max_tokens=plan.max_tokens,
        fixed_length=config.fixed_length,
        thinking=config.thinking,
        items=plan.dataset.items,
        warmup_items=tuple(warmup_items()),
        concurrency=concurrency,
        requests=config.requests,
        changes=changes,
        drain_s=config.drain_s,
        prefix_cache=config.prefix_cache,
    )


def _learn(plan: SweepPlan, source: Source, patience: Patience, known: BodyChanges) -> Learned:
    """What the servers that run already teach about the requests, and what is odd about their model lists."""
    b = min(plan.config.concurrency)
    asked = {server.target.name: _assignment(plan, server, b, known) for server in source.running}
    learned = learn_from(asked, known, patience)
    odd = [note for server in source.running if (note := server.record.model_note)]
    return msgspec.structs.replace(learned, notes=(*odd, *learned.notes))


def _dataset(plan: SweepPlan) -> DatasetRecord:
    data = plan.dataset
    return DatasetRecord(name=data.name, sha256=data.sha256, published=data.published, items=len(data.items))


def _protocol(plan: SweepPlan, changes: BodyChanges) -> ProtocolRecord:
    protocol = plan.protocol
    decoding = changes.applied({"temperature": 0, "seed": plan.config.seed})
    return ProtocolRecord(
        name=protocol.name,
        sha256=protocol.sha256,
        api=protocol.api,
        stops=protocol.stops,
        max_tokens=plan.max_tokens,
        version=protocol.version,
        answer=protocol.answer,
        thinking=plan.config.thinking,
        temperature=decoding.get("temperature"),
        seed=decoding.get("seed"),
    )


def _recipes(config: SweepConfig) -> dict[str, str]:
    return {t.precision: recipe_sha256(t.precision) for t in config.targets} if config.mode == "serve" else {}


def _changes(changes: BodyChanges) -> BodyChangesRecord:
    return msgspec.convert({"refused": changes.refused, "limit_field": changes.limit_field}, BodyChangesRecord)


def _manifest(
    plan: SweepPlan, power: PowerPlan, changes: BodyChanges, given: Mapping[str, Any] | None, *, simulated: bool
) -> Manifest:
    """The manifest of a run that is about to begin."""
    config = plan.config
    return Manifest(
        simulated=simulated,
        config=msgspec.structs.replace(config, extra_body=Mask(api_key(config)).content(config.extra_body)),
        given=None if given is None else as_stored(given, Mask(api_key(config))),
        dataset=_dataset(plan),
        protocol=_protocol(plan, changes),
        recipes=_recipes(config),
        body_changes=_changes(changes),
        graded=config.fixed_length is None,
        weights=weights_of(Path(config.model).expanduser()) if config.model else None,
        client=client_record(),
        host=host_record(),
        power=power,
        servers=(),
        failures=(),
    )
