"""A block: the cells that one start of a server measures, from the launch to what is left when the server dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import uvloop
from msgspec.structs import asdict, replace

from loadgen.errors import ServerError, UsageError
from loadgen.load.body import BodyChanges
from loadgen.load.workers import MakeWorker
from loadgen.measure.cell import INTERRUPTED, CellRun, Interrupt
from loadgen.measure.config import api_key
from loadgen.measure.machine import begin_session, clock_anchor, compare_gpus, require_same_server
from loadgen.measure.observer import Observer
from loadgen.measure.plan import SweepPlan
from loadgen.measure.power import SIMULATED_PATH, PowerRecorder, gpus_needed, owners_of, server_processes
from loadgen.measure.prompts import Prompts
from loadgen.measure.servers import Server, Source
from loadgen.power.feed import PowerFeed
from loadgen.power.trace import Owners
from loadgen.record.cell import Block, Cell, CellVerdict
from loadgen.record.journal import CellEnd, CellStart, Journal, cell_file, power_file, set_aside
from loadgen.record.manifest import ManifestFile, PowerBlock, PowerPlan
from loadgen.serving.metrics import metrics_of

RELAUNCHES = 2
"""How often a server that died is launched again within one block."""

Judge = Callable[[Path, Path], CellVerdict]
"""Judges an ended cell, from the run directory and the cell's journal."""


@dataclass(frozen=True)
class BlockRun:
    """Measures the blocks of a sweep one after another; the manifest says what could not be measured."""

    plan: SweepPlan
    source: Source
    power: PowerPlan
    changes: BodyChanges
    file: ManifestFile
    observer: Observer
    judge: Judge | None
    interrupt: Interrupt
    prompts: Prompts
    make: MakeWorker | None = None
    """Of client processes that run elsewhere."""

    def warn(self, sentence: str) -> None:
        """Warns the observers and writes the warning into the manifest."""
        self.file.warn(sentence)
        self.observer.warn(sentence)

    def measure(self, block: Block, workers: Mapping[int, int], exporter_url: str | None) -> None:
        """A server that dies costs the cell in which it died: the rest goes to a fresh one, `RELAUNCHES` times.

        `workers`: client processes by batch size.
        """
        name, left = block.target.name, list(block.cells)
        try:
            for launches in itertools.count(1):
                died = self._serve(block, left, workers, exporter_url)
                if died is None or not left:
                    return
                if launches > RELAUNCHES:
                    raise ServerError(f"{died}; it was launched {launches} times, {len(left)} cells are not measured")
                again = f"{name}, repeat {block.repeat}: {died}; launched again for the cells that are left"
                self.observer.warn(again)
                begin_session(self.file, again)
        except ServerError as error:
            self.file.add_failure(block.repeat, name, str(error))
            self.observer.not_measured(left, str(error))

    def _serve(
        self, block: Block, left: list[Cell], workers: Mapping[int, int], exporter_url: str | None
    ) -> str | None:
        """Takes cells from `left` and measures them on one start of the server; how it died, if it did."""
        with self.source.serve(block.target, block.repeat, self.file.run_dir, self.observer) as server:
            record = replace(server.record, repeat=block.repeat, session=self.file.session)
            if self.file.resumed:
                require_same_server(self.file.manifest, record)
            self.file.add_server(record)
            if record.quantized is not None and record.quantized.used(self.file.manifest.dataset):
                self.warn(
                    f"{record.name}: its checkpoint was calibrated on questions that this sweep asks, and may answer "
                    "them better than new ones; quantize it with other texts (--calibration)"
                )
            plan = self._plan_with_texts(left[0], server)
            with self._recorder(block, server, exporter_url) as recorder:
                while left and server.died() is None:
                    cell = left.pop(0)
                    self._measure(plan, cell, server, workers[cell.concurrency], recorder)
            return server.died()

    def _plan_with_texts(self, cell: Cell, server: Server) -> SweepPlan:
        assignment = self.plan.assignment(server.target, cell, self.changes)
        plan, notes = self.prompts.plan_for(assignment, server.target.name, server.record.max_model_len)
        for note in notes:
            if note not in self.file.manifest.sessions[-1].warnings:
                self.warn(note)
        return plan

    @contextlib.contextmanager
    def _recorder(self, block: Block, server: Server, exporter_url: str | None) -> Iterator[PowerRecorder | None]:
        """Power of one server's life, its rest before the first cell included; None where power is not measured."""
        file, name = self.file, block.target.name
        url = f"{server.target.url}{SIMULATED_PATH}" if self.power.kind == "simulated" else exporter_url
        path = power_file(file.run_dir, name, block.repeat, file.session)
        try:
            feed = PowerFeed(url, self._gpus(name)) if url is not None else None
            recorder = PowerRecorder(feed, path, simulated=server.target.simulated) if feed is not None else None
        except UsageError as error:
            self.warn(f"{name}, repeat {block.repeat}: power is not measured: {error}")
            recorder = None
        if recorder is None:
            yield None
            return
        known = len(file.manifest.power_blocks)
        try:
            for warning in compare_gpus(file.manifest, name, recorder.facts) if file.resumed else ():
                self.warn(warning)
            rest = recorder.rest()
            sensors = asdict(recorder.facts) | {"rest_w": rest.power_w, "calibration": rest.calibration}
            owners = self._owners(server, recorder)
            file.add_power(PowerBlock(target=name, repeat=block.repeat, session=file.session, owners=owners, **sensors))
            self.observer.note(f"{name} at rest: {rest}")
            yield recorder
        finally:
            recorder.close()
            if len(file.manifest.power_blocks) > known:
                file.end_power(*recorder.losses)

    def _gpus(self, name: str) -> tuple[str, ...] | None:
        """The target's own GPUs, the first of those chosen; all of them where loadgen did not launch its server."""
        if name in self.power.placed:
            return self.power.placed[name]
        needed = gpus_needed(self.source.launches).get(name)
        return self.power.gpus if self.power.gpus is None else self.power.gpus[:needed]

    def _owners(self, server: Server, recorder: PowerRecorder) -> Owners:
        """Whose the processes on the GPUs are, now that the server is up and nothing has been asked of it."""
        pid = recorder.facts.server_pid or server.record.pid  # of a container the sensors know its own
        own = (pid,) if pid is not None else server_processes(server.target.url)
        certain = pid is not None and self.power.kind in ("nvml", "simulated")
        others = (other.target.url for other in self.source.running if other.target.name != server.target.name)
        peers = [pid for url in others for pid in server_processes(url)]
        return owners_of(own, peers, self.power.before, recorder.processes, certain=certain)

    def _measure(self, plan: SweepPlan, cell: Cell, server: Server, workers: int, power: PowerRecorder | None) -> None:
        path = cell_file(self.file.run_dir, cell)
        set_aside(self.file.run_dir, cell, self.file)
        journal = Journal(path)
        start = CellStart(
            cell=cell, t_ns=clock_anchor().monotonic_ns, simulated=server.target.simulated, session=self.file.session
        )
        with self.interrupt.patient():
            try:
                journal.append(start)
                run = CellRun(
                    cell,
                    plan.assignment(server.target, cell, self.changes),
                    workers,
                    warmup_s=self.plan.warmup_s,
                    metrics=metrics_of(server.target, api_key(self.plan.config)),
                    journal=journal,
                    observer=self.observer,
                    server_died=server.died,
                    grader=self.plan.grader,
                    power=power,
                    interrupt=self.interrupt,
                    make=self.make,
                )
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    end = runner.run(run.run())
            finally:
                journal.close()
            if end.aborted != INTERRUPTED:
                self.observer.cell_ends(cell, _cell_line(end), self._verdict(end, path))

    def _verdict(self, end: CellEnd, path: Path) -> CellVerdict:
        if self.judge is not None:
            try:
                return self.judge(self.file.run_dir, path)
            except Exception as error:  # a failing verdict costs no measurement
                return CellVerdict(valid=None, reasons=f"{type(error).__name__}: {error}")
        return CellVerdict(valid=False if end.aborted else None, reasons=end.aborted or "")


def _cell_line(end: CellEnd) -> str:
    if end.window_open_ns is None or end.window_close_ns is None:
        return "ended before its window opened"
    window_s = (end.window_close_ns - end.window_open_ns) / 1e9
    if end.generation_tokens is None:
        return f"window {window_s:.1f} s"
    return f"window {window_s:.1f} s, {end.generation_tokens:,.0f} tokens in the whole cell by the server's count"
