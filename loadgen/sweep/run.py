"""A sweep from its first check to its run directory."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from loadgen.client.body import RequestMaker
from loadgen.client.concealment import concealed
from loadgen.client.exchange import Exchange
from loadgen.client.http import Endpoint, HttpSlot
from loadgen.client.openai_sdk import SdkSlot, sdk_client
from loadgen.client.pool import Slot
from loadgen.errors import ServerError, UsageError
from loadgen.power.feed import PowerFeed
from loadgen.secret import Mask
from loadgen.sweep.cell import INTERRUPTED, CellRun, CellSettings
from loadgen.sweep.config import SweepConfig
from loadgen.sweep.feed import Feed
from loadgen.sweep.interrupt import Interrupt
from loadgen.sweep.journal import CellEnd, CellStart, Journal, power_file
from loadgen.sweep.load import Load
from loadgen.sweep.manifest import SCHEMA as MANIFEST_SCHEMA
from loadgen.sweep.manifest import Manifest, client_facts, clock_anchor, host_facts
from loadgen.sweep.metrics import SweepMetrics
from loadgen.sweep.observer import CellVerdict, Observer, Tee
from loadgen.sweep.plan import Block, Cell, plan_blocks
from loadgen.sweep.power import SIMULATED_PATH, PowerPlan, PowerRecorder, exporter_of, idle_power, plan_power
from loadgen.sweep.servers import Server, source_of
from loadgen.workload.dataset import Dataset, load_dataset
from loadgen.workload.facts import facts_of, write_facts
from loadgen.workload.grading import Grader
from loadgen.workload.protocol import Protocol, load_protocol
from loadgen.workload.sample import warmup_items

EXPECTED_ANSWER_S = {"simulated": 0.6, "target": 5.0, "serve": 5.0}
EXPECTED_START_S = {"simulated": 1.0, "target": 0.0, "serve": 90.0}


Judge = Callable[[Path, Path], CellVerdict]
"""Judges an ended cell, from the run directory and the cell's journal."""


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
        return Grader({item.id: facts_of(item) for item in items}, self.protocol.name)

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
    dataset = load_dataset(config.dataset, data_file=data_file, limit=config.limit)
    protocol = load_protocol(config.protocol, shots_file=shots_file)
    protocol.check_fits(dataset)
    if config.thinking is not None:
        protocol = config.thinking.shape(protocol)
    protocol = msgspec.structs.replace(protocol, api=config.api or protocol.api)
    return SweepPlan(
        config=config,
        dataset=dataset,
        protocol=protocol,
        blocks=tuple(plan_blocks(config.targets, config.concurrency, config.repeats)),
    )


def run_sweep(config: SweepConfig, observer: Observer | None = None, judge: Judge | None = None) -> Path:
    """Measures every cell and returns the run directory, journal and manifest complete, nothing derived yet.

    A server that fails costs its own cells, the others go on. `judge` is asked after each cell, before the next begins,
    so that the observers hear its verdict. Raises UsageError before anything is created, and Interrupted on Ctrl-C.
    """
    source = source_of(config)
    source.check()
    power = plan_power(config, simulated=source.simulated)
    plan = plan_sweep(config)
    observer = observer or Observer()
    run_dir = _create_run_dir(config)
    manifest = _manifest(plan, run_dir, source.simulated)
    manifest.content["power"] = msgspec.to_builtins(power)
    manifest.write()
    write_facts(run_dir, plan.dataset.items)
    title = f"{config.model or ('simulated model' if source.simulated else 'model')} · {plan.dataset.name}, "
    title += f"{len(plan.dataset.items)} items · {len(config.targets)} targets × B "
    title += f"{','.join(map(str, config.concurrency))} × {config.repeats} repeats"
    metrics = _metrics(plan, run_dir, observer, simulated=source.simulated)
    observer = Tee(observer, metrics)
    observer.run_begins(title, len(plan.cells), source.simulated, plan.expected_s)
    interrupt = Interrupt()
    try:
        with interrupt.heard(), exporter_of(power, run_dir) as exporter_url:
            if exporter_url is not None and config.mode == "serve":
                idle = idle_power(exporter_url, power, run_dir)
                manifest.add_idle(idle)
                observer.note(f"before the first server: {idle}")
            for block in plan.blocks:
                try:
                    with source.serve(block.target, block.repeat, run_dir, observer) as server:
                        manifest.add_server(block.repeat, server.target, server.facts)
                        url = f"{server.target.url}{SIMULATED_PATH}" if power.kind == "simulated" else exporter_url
                        with _recorder(url, power, block, server, run_dir, manifest, observer) as recorder:
                            for cell in block.cells:
                                _measure(cell, plan, server, run_dir, observer, judge, recorder, interrupt)
                except ServerError as error:
                    manifest.add_failure(block.repeat, block.target.name, str(error))
                    observer.warn(str(error))
    except KeyboardInterrupt:
        raise Interrupted(run_dir, hurried=interrupt.hurried) from None
    finally:
        metrics.close()
        manifest.close()
    return run_dir


def _metrics(plan: SweepPlan, run_dir: Path, observer: Observer, *, simulated: bool) -> SweepMetrics:
    config = plan.config
    metrics = SweepMetrics(
        simulated=simulated, run=run_dir.name, model=config.model or "", dataset=plan.dataset.name
    )
    if config.metrics_port is not None:
        try:
            metrics.serve(config.metrics_port, config.metrics_host)
        except OSError:
            where = f"{config.metrics_host}:{config.metrics_port}"
            observer.warn(f"{where} is taken or not this machine's: this run's /metrics is not served (--metrics-port)")
    return metrics


@contextlib.contextmanager
def _recorder(
    url: str | None,
    power: PowerPlan,
    block: Block,
    server: Server,
    run_dir: Path,
    manifest: Manifest,
    observer: Observer,
) -> Iterator[PowerRecorder | None]:
    """Power of one server's life, its rest before the first cell included; None where power is not measured."""
    if url is None:
        yield None
        return
    path = power_file(run_dir, block.target.name, block.repeat)
    recorder = PowerRecorder(PowerFeed(url, power.gpus), path, simulated=server.target.simulated)
    entry: dict[str, Any] = {}
    try:
        rest = recorder.rest()
        entry = manifest.add_power(block.repeat, block.target.name, recorder.facts, rest)
        observer.note(f"{block.target.name} at rest: {rest}")
        yield recorder
    finally:
        recorder.close()
        entry |= recorder.losses
        manifest.write()


def _measure(
    cell: Cell,
    plan: SweepPlan,
    server: Server,
    run_dir: Path,
    observer: Observer,
    judge: Judge | None,
    power: PowerRecorder | None,
    interrupt: Interrupt,
) -> None:
    path = run_dir / "journal" / f"{cell.label}.jsonl"
    journal = Journal(path)
    with interrupt.patient():
        try:
            start = clock_anchor()["monotonic_ns"]
            journal.append(CellStart(cell=cell, t_ns=start, simulated=server.target.simulated))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                end = runner.run(_run_cell(cell, plan, server, journal, observer, power, interrupt))
        finally:
            journal.close()
        if end.aborted != INTERRUPTED:
            observer.cell_ends(cell, _cell_line(end), _verdict(end, judge, run_dir, path))


def _verdict(end: CellEnd, judge: Judge | None, run_dir: Path, path: Path) -> CellVerdict:
    if judge is not None:
        try:
            return judge(run_dir, path)
        except Exception as error:  # a glance, whatever is wrong with it, costs no measurement
            return CellVerdict(valid=None, reasons=f"{type(error).__name__}: {error}")
    return CellVerdict(valid=False if end.aborted else None, reasons=end.aborted or "")


def _cell_line(end: CellEnd) -> str:
    if end.window_open_ns is None or end.window_close_ns is None:
        return "ended before its window opened"
    window_s = (end.window_close_ns - end.window_open_ns) / 1e9
    if end.generation_tokens is None:
        return f"window {window_s:.1f} s"
    return f"window {window_s:.1f} s, {end.generation_tokens:,.0f} tokens in the whole cell by the server's count"


async def _run_cell(
    cell: Cell,
    plan: SweepPlan,
    server: Server,
    journal: Journal,
    observer: Observer,
    power: PowerRecorder | None,
    interrupt: Interrupt,
) -> CellEnd:
    config = plan.config
    run = CellRun(
        cell,
        settings=CellSettings.of(config.duration_s, config.requests, config.warmup_s),
        url=server.target.url,
        make_load=lambda on_exchange: _load(cell, plan, server, on_exchange),
        journal=journal,
        observer=observer,
        server_died=server.died,
        grader=plan.grader,
        power=power,
        interrupt=interrupt,
    )
    return await run.run()


def _load(cell: Cell, plan: SweepPlan, server: Server, on_exchange: Callable[[Exchange], None]) -> Load:
    config = plan.config
    maker = RequestMaker(
        plan.protocol,
        api=plan.protocol.api,
        model=server.target.model,
        seed=config.seed,
        max_tokens=plan.max_tokens,
        fixed_length=config.fixed_length,
        thinking=config.thinking,
    )
    feed = Feed(maker, plan.dataset.items, warmup_items(), cell.concurrency, config.requests)
    mask = Mask(config.api_key)
    return Load(
        _slots(cell.concurrency, plan, server), feed, lambda exchange: on_exchange(concealed(exchange, mask))
    )


def _slots(count: int, plan: SweepPlan, server: Server) -> Sequence[Slot]:
    config = plan.config
    if config.transport == "openai":
        client = sdk_client(server.target.url, api_key=config.api_key, timeout_s=config.timeout_s)
        return [SdkSlot(client, plan.protocol.api, slot) for slot in range(count)]
    endpoint = Endpoint(server.target.url, plan.protocol.api, config.api_key)
    return [HttpSlot(endpoint, slot, config.timeout_s) for slot in range(count)]


def _create_run_dir(config: SweepConfig) -> Path:
    if config.out is not None:
        run_dir = Path(config.out)
        if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
            raise UsageError(f"--out {run_dir}: exists already and is not empty; name a new folder")
    else:
        model = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(config.model).name) if config.model else config.mode
        base = Path("runs") / f"{datetime.now():%Y-%m-%d-%H%M%S}-{model}"
        run_dir = next(path for path in _numbered(base) if not path.exists())
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {run_dir}: cannot be created ({error.strerror}); name a writable folder") from None
    return run_dir


def _numbered(base: Path) -> Sequence[Path]:
    return [base, *(base.with_name(f"{base.name}-{n}") for n in range(2, 1000))]


def _manifest(plan: SweepPlan, run_dir: Path, simulated: bool) -> Manifest:
    content: dict[str, Any] = {
        "schema": MANIFEST_SCHEMA,
        "simulated": simulated,
        "config": msgspec.to_builtins(plan.config),
        "dataset": {
            "name": plan.dataset.name,
            "sha256": plan.dataset.sha256,
            "published": plan.dataset.published,
            "items": len(plan.dataset.items),
        },
        "protocol": {
            "name": plan.protocol.name,
            "sha256": plan.protocol.sha256,
            "api": plan.protocol.api,
            "stops": list(plan.protocol.stops),
            "max_tokens": plan.max_tokens,
            "version": plan.protocol.version,
            "answer": plan.protocol.answer,
            "thinking": msgspec.to_builtins(plan.config.thinking),
            "temperature": 0,
            "seed": plan.config.seed,
        },
        "graded": plan.config.fixed_length is None,
        "client": client_facts(),
        "host": host_facts(),
        "gpu": None,
        "power": None,
        "clock_anchors": [clock_anchor()],
        "servers": [],
        "failures": [],
    }
    return Manifest(run_dir / "manifest.json", content)
