"""A sweep from its first check to its run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from loadgen.errors import Interrupted, UsageError
from loadgen.load.body import BodyChanges
from loadgen.measure.block import BlockRun, Judge
from loadgen.measure.cell import Interrupt
from loadgen.measure.config import api_key
from loadgen.measure.kvcache import kv_blocks
from loadgen.measure.machine import (
    allow_open_files,
    await_old_servers,
    begin_session,
    client_record,
    client_workers,
    clock_anchor,
    compare_machines,
    host_record,
    require_same_data,
    require_same_power,
    require_same_server,
)
from loadgen.measure.metrics import SweepMetrics
from loadgen.measure.observer import Observer, Tee
from loadgen.measure.plan import SweepPlan, blocks_left, changes_record, cost_sentences, plan_rest, plan_sweep
from loadgen.measure.power import exporter_of, gpus_needed, gpus_placed, idle_power, plan_power, serving_gpus
from loadgen.measure.preflight import Learned, Patience, learn_from
from loadgen.measure.prompts import Prompts, lack_of_room
from loadgen.measure.search import check_measured, price_sentence, upcoming
from loadgen.measure.servers import Source, source_of
from loadgen.measure.settings import Confirm, new_run_dir, remember, require_consent, resumed_config
from loadgen.record.cell import SweepConfig
from loadgen.record.journal import held, stored
from loadgen.record.manifest import Manifest, ManifestFile, PowerPlan, read_manifest
from loadgen.secret import Mask
from loadgen.serving.facts import proxies_passed_by
from loadgen.serving.launch import option
from loadgen.serving.process import mask_log
from loadgen.serving.simulated.engine import EngineLimits
from loadgen.webserver import host_port
from loadgen.workload.dataset import data_path
from loadgen.workload.item import write_facts

if TYPE_CHECKING:
    from loadgen.cluster.clients import RayClients


@dataclass(frozen=True)
class _Ready:
    """A sweep that has passed every check, up to the first start of a server."""

    plan: SweepPlan
    source: Source
    power: PowerPlan
    learned: Learned
    warnings: tuple[str, ...] = ()
    """What is different on this machine from the sessions before."""
    clients: RayClients | None = None
    """Where the client processes run, unless that is here; to be closed."""

    def close(self) -> None:
        if self.clients is not None:
            self.clients.close()


@dataclass(frozen=True)
class Rehearsal:
    """What a sweep would do."""

    plan: SweepPlan
    places: dict[str, str]
    """What is measured, with what and where, by its heading."""


def rehearse_sweep(config: SweepConfig, observer: Observer | None = None) -> Rehearsal:
    """A sweep, checked as `run_sweep` checks it; nothing is started, and no file or folder is left.

    Raises UsageError for all that would be refused. Servers that run already get the first short requests.
    """
    ready, run_dir = _make_ready(config, observer or Observer(), keep=False)
    ready.close()
    return Rehearsal(ready.plan, _places(ready, run_dir))


def rehearse_rest(run_dir: Path, given: Mapping[str, Any], observer: Observer | None = None) -> Rehearsal:
    """What an interrupted run lacks, checked as `resume_sweep` checks it, consent apart; nothing is started and nothing
    in the run changes."""
    begun = read_manifest(run_dir)
    with held(run_dir):
        config = resumed_config(run_dir, begun, given)
        if not blocks_left(run_dir, begun):
            return Rehearsal(plan_rest(run_dir, begun, config), {"run": f"{run_dir} is complete"})
        ready = _make_ready_again(run_dir, begun, config, observer or Observer())
        ready.close()
        return Rehearsal(ready.plan, _places(ready, run_dir))


def _places(ready: _Ready, run_dir: Path) -> dict[str, str]:
    plan, source, power, config = ready.plan, ready.source, ready.power, ready.plan.config
    window = f"{config.requests} requests" if config.duration_s is None else f"{config.duration_s:g} s"
    given = Path(config.data_file) if config.data_file else None
    file = data_path(config.dataset, given) or given
    answers = f"{'exactly' if config.fixed_length else 'at most'} {plan.max_tokens} tokens"
    if not config.fixed_length and all(item.output_tokens for item in plan.dataset.items):
        answers = "as many tokens as its request asks for"
    protocol = plan.protocol
    if source.running:
        servers = [f"{one.target.name} at {one.target.url}, model {one.target.model}" for one in source.running]
    elif config.mode == "simulated":
        servers = [f"{', '.join(spec.name for spec in config.targets)}: simulated, on 127.0.0.1"]
    elif config.mode == "compose":
        servers = [f"{spec.name}: service {spec.service} of {config.compose}" for spec in config.targets]
    else:
        known = {name: f": {one.argv[0]} serve {one.checkpoint}" for name, one in source.launches.items()}
        servers = [f"{spec.name}{known.get(spec.name, ': its checkpoint is made first')}" for spec in config.targets]
    meter = f"not measured: {power.reason}" if power.kind == "none" else f"{power.kind} {power.url or ''}".rstrip()
    if power.gpus:
        meter += f" of {', '.join(power.gpus)}"
    port, items, repeats = config.metrics_port, len(plan.dataset.items), config.repeats
    every = "" if config.find else f", {repeats} repeat{'s' * (repeats > 1)}"
    return {
        "load": f"{config.load}, windows of {window}{every}",
        "questions": f"{plan.dataset.name}, {items} item{'s' * (items > 1)}" + (f" from {file}" if file else ""),
        "asked by": f"protocol {protocol.name}, API {protocol.api}, an answer has {answers}",
        "servers": "; ".join(servers),
        **({} if ready.clients is None else {"client": ready.clients.placed(config.client_processes or 1)}),
        "power": meter,
        "run": f"{run_dir}" + ("" if port is None else f", /metrics on {host_port(config.metrics_host, port)}"),
    }


def _make_ready(config: SweepConfig, observer: Observer, *, keep: bool = True) -> tuple[_Ready, Path]:
    """A new sweep and its empty folder, which is removed again unless it is to be kept."""
    allow_open_files(config)
    clients = _clients(config)
    source, patience = source_of(config), Patience(config.wait_ready_s, observer)
    source.check(patience)
    power = _planned_power(config, source)
    plan = plan_sweep(config)
    _check_room(plan, source)
    check_measured(plan, power)
    with new_run_dir(config, keep=keep) as run_dir:
        if keep:
            source.make_missing(patience)
        learned = _learn(plan, source, patience, BodyChanges(extra=config.extra_body))
    _say_cost(plan, source, observer)
    return _Ready(plan, source, power, learned, clients=clients), run_dir


def _make_ready_again(run_dir: Path, begun: Manifest, config: SweepConfig, observer: Observer) -> _Ready:
    """What is left of an interrupted run."""
    plan = plan_rest(run_dir, begun, config)
    require_same_data(begun, plan.dataset_record, plan.protocol_record(BodyChanges()), plan.recipes)
    allow_open_files(config)
    clients = _clients(config)
    source = source_of(replace(config, quantize_missing=False), begun.checkpoints)
    patience = Patience(config.wait_ready_s, observer)
    source.check(patience)
    power = _planned_power(config, source)
    known = begun.body_changes
    known_changes = BodyChanges(extra=config.extra_body, refused=known.refused, limit_field=known.limit_field)
    learned = _learn(plan, source, patience, known_changes)
    require_same_power(begun.power, power)
    for server in source.running:
        require_same_server(begun, server.record)
    serves = config.mode in ("serve", "compose")
    warnings = compare_machines(begun, client=client_record(), host=host_record(), serves=serves)
    _say_cost(plan, source, observer)
    return _Ready(plan, source, power, learned, tuple(warnings), clients)


def _clients(config: SweepConfig) -> RayClients | None:
    """Where the client processes run, unless that is here. Raises UsageError where no cluster answers."""
    if not config.on_ray:
        return None
    from loadgen.cluster.clients import RayClients

    return RayClients()


def _check_room(plan: SweepPlan, source: Source) -> None:
    """Raises UsageError for requests of a known length that a server to be launched would refuse."""
    config = plan.config
    room = str(config.max_model_len or EngineLimits().max_model_len)
    rooms = {"simulated servers": room} if config.mode == "simulated" else {}
    rooms |= {name: option(launch.argv, "--max-model-len") or "" for name, launch in source.launches.items()}
    for name, tokens in rooms.items():
        lack = lack_of_room(plan.dataset.items, int(tokens) if tokens.isdigit() else None)
        if lack is not None:
            raise UsageError(f"{name}: {lack}")


def _planned_power(config: SweepConfig, source: Source) -> PowerPlan:
    needs, places = gpus_needed(source.launches), gpus_placed(source.launches)
    return plan_power(config, simulated=source.simulated, needs=needs, places=places)


def _say_cost(plan: SweepPlan, source: Source, observer: Observer) -> None:
    if not source.simulated:
        gpus = serving_gpus(plan.config.gpus, {}) if gpus_needed(source.launches) else ()
        totals = [info.memory_total_bytes for info in gpus if info.memory_total_bytes]
        for sentence in cost_sentences(plan, source.launches, min(totals, default=None)):
            observer.note(sentence)


def run_sweep(
    config: SweepConfig,
    observer: Observer | None = None,
    judge: Judge | None = None,
    given: Mapping[str, Any] | None = None,
) -> Path:
    """Measures every cell and returns the run directory: journal and manifest complete, nothing derived yet.

    A server that fails costs its own cells, the others go on. `judge` is asked after each cell, before the next begins,
    so that the observers hear its verdict. `given` are the options of which `config` was made. Raises UsageError before
    anything is created, Interrupted on Ctrl-C, and StorageError when the run directory can no longer be written.
    """
    observer = observer or Observer()
    ready, run_dir = _make_ready(config, observer)
    manifest = ready.plan.manifest(ready.power, ready.learned.changes, given, simulated=ready.source.simulated)
    manifest = replace(manifest, checkpoints=dict(ready.source.found))
    remember(manifest)
    with held(run_dir), stored(run_dir):
        _sweep(ready, ManifestFile(run_dir, manifest), observer, judge)
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

    `given` are arguments of `configure` that were named again. Each block gets a fresh server and each cell its
    warm-up, as in a first session. `trusted` and `confirm` are those of `require_consent`.

    Raises UsageError if the directory is not a run, is being measured, an option says something else, or data, servers
    or GPUs are not what they were; and Interrupted on Ctrl-C, as often as it is resumed.
    """
    read_manifest(run_dir)
    observer = observer or Observer()
    with held(run_dir), stored(run_dir):
        begun = read_manifest(run_dir)
        config = resumed_config(run_dir, begun, given or {})
        for log in sorted((run_dir / "servers").glob("*.log")):
            mask_log(log, Mask(api_key(config)))
        if not blocks_left(run_dir, begun):
            observer.note(f"{run_dir} is complete, nothing is left to measure")
            return run_dir
        require_consent(run_dir, begun, given or {}, trusted=trusted, confirm=confirm)
        ready = _make_ready_again(run_dir, begun, config, observer)
        begun = replace(begun, body_changes=changes_record(ready.learned.changes))
        for name in await_old_servers(begun.servers):
            observer.warn(f"the server of {name} that an earlier session started is still running")
        _sweep(ready, ManifestFile(run_dir, begun), observer, judge)
    return run_dir


def _sweep(ready: _Ready, file: ManifestFile, observer: Observer, judge: Judge | None) -> None:
    plan, source, power = ready.plan, ready.source, ready.power
    config, run_dir = plan.config, file.run_dir
    begin_session(file)
    write_facts(run_dir, plan.dataset.items)
    metrics = _metrics(plan, run_dir, observer, simulated=source.simulated)
    observer = Tee(observer, metrics)
    timetable = replace(plan.timetable, cells=(), cells_s=()) if config.find else plan.timetable
    observer.run_begins(_title(plan, file, source), timetable, source.simulated)
    blocks = BlockRun(
        plan, source, power, ready.learned.changes, file, observer, judge, Interrupt(), Prompts(plan),
        make=ready.clients.worker if ready.clients is not None else None,
    )  # fmt: skip
    for warning in (*ready.warnings, *ready.learned.notes, *power.warnings):
        blocks.warn(warning)
    for note in plan.dataset.notes:
        observer.note(note)
    if proxies := proxies_passed_by(spec.url for spec in config.targets if spec.url is not None):
        shown = ", ".join(map(Mask(), proxies))
        observer.note(f"the proxy {shown} of the environment is not used: servers are measured directly")
    if ready.clients is not None:
        observer.note(f"the client is {ready.clients.placed(config.client_processes or 1)}")
    interrupt = blocks.interrupt
    try:
        with interrupt.heard(), exporter_of(power, run_dir, blocks.warn) as exporter_url:
            workers = client_workers(config, file, observer)
            if exporter_url is not None and config.mode in ("serve", "compose"):
                try:
                    idle = idle_power(exporter_url, power, run_dir, file.session)
                except UsageError as error:
                    if power.required:
                        raise
                    blocks.warn(f"power before the first server is not measured: {error}")
                else:
                    file.add_idle(idle)
                    observer.note(f"before the first server: {idle}")
            if config.same_kv is not None:
                source.kv_blocks = file.manifest.kv_blocks or kv_blocks(source, config, run_dir, observer)
                file.change(kv_blocks=dict(source.kv_blocks))
            for block in upcoming(plan, file, observer):
                blocks.measure(block, workers, exporter_url)
    except KeyboardInterrupt:
        raise Interrupted(run_dir, hurried=interrupt.hurried) from None
    finally:
        try:
            file.anchor(clock_anchor())
        finally:
            ready.close()
            metrics.close(wait=not interrupt.asked)


def _title(plan: SweepPlan, file: ManifestFile, source: Source) -> str:
    config = plan.config
    targets, repeats = len(config.targets), config.repeats
    title = (
        f"{config.model or ('simulated model' if source.simulated else 'model')} · {plan.dataset.name}, "
        f"{len(plan.dataset.items)} items · {targets} target{'s' * (targets > 1)} × {config.load}"
        + (f" × {repeats} repeat{'s' * (repeats > 1)}" if not config.find else "")
    )
    if file.resumed and config.find:
        title += f" · resumed in step {max(1, len(file.manifest.steps))}"
    elif config.find:
        title += f" · {price_sentence(plan)}"
    elif file.resumed:
        whole = sum(len(block.cells) for block in file.manifest.blocks)
        title += f" · resumed, {whole - len(plan.cells)} of {whole} cells are kept"
    return title


def _metrics(plan: SweepPlan, run_dir: Path, observer: Observer, *, simulated: bool) -> SweepMetrics:
    config = plan.config
    metrics = SweepMetrics(
        simulated=simulated,
        run=run_dir.name,
        model=config.model or "",
        dataset=plan.dataset.name,
        shapes=bool(config.shapes),
    )
    if config.metrics_port is not None:
        try:
            metrics.serve(config.metrics_port, config.metrics_host)
        except UsageError:
            where = host_port(config.metrics_host, config.metrics_port)
            observer.warn(f"{where} cannot be used for this run's /metrics, which is not served: choose --metrics-port")
    return metrics


def _learn(plan: SweepPlan, source: Source, patience: Patience, known: BodyChanges) -> Learned:
    """What running servers teach about the requests, and what is odd about their model lists."""
    cell = min(plan.cells, key=lambda cell: cell.concurrency)
    assignments = {server.target.name: plan.assignment(server.target, cell, known) for server in source.running}
    learned = learn_from(assignments, known, patience)
    odd = [server.record.model_note for server in source.running if server.record.model_note]
    return replace(learned, notes=(*odd, *learned.notes))
