"""A block: the cells that one start of a server measures, from the launch to what is left when the server dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from loadgen.errors import ServerError, UsageError
from loadgen.measure.cell import INTERRUPTED, Interrupt
from loadgen.measure.machine import begin_session, clock_anchor, compare_gpus, require_same_server
from loadgen.measure.observer import Observer
from loadgen.measure.power import SIMULATED_PATH, PowerRecorder, owners_of, server_processes
from loadgen.measure.servers import Server, Source
from loadgen.power.feed import PowerFeed
from loadgen.power.owners import Owners
from loadgen.record.cell import Block, Cell, CellVerdict
from loadgen.record.journal import CellEnd, CellStart, Journal, cell_file, power_file
from loadgen.record.manifest import ManifestFile, PowerBlock, PowerPlan
from loadgen.record.rundir import set_aside

RELAUNCHES = 2
"""How often a server that died is launched again within one block."""

Judge = Callable[[Path, Path], CellVerdict]
"""Judges an ended cell, from the run directory and the cell's journal."""
RunCell = Callable[[Cell, Server, Journal, PowerRecorder | None], Coroutine[Any, Any, CellEnd]]


class BlockRun:
    """Measures the blocks of a sweep, one after the other; what cannot be measured is told in the manifest."""

    def __init__(
        self,
        source: Source,
        power: PowerPlan,
        exporter_url: str | None,
        manifest: ManifestFile,
        observer: Observer,
        judge: Judge | None,
        interrupt: Interrupt,
        run_cell: RunCell,
    ) -> None:
        self._source = source
        self._power = power
        self._exporter_url = exporter_url
        self._manifest = manifest
        self._observer = observer
        self._judge = judge
        self._interrupt = interrupt
        self._run_cell = run_cell

    def measure(self, block: Block) -> None:
        """A server that dies costs the cell in which it died: the rest goes to a fresh one, `RELAUNCHES` times."""
        name, left = block.target.name, list(block.cells)
        try:
            for launches in itertools.count(1):
                died = self._serve(block, left)
                if died is None or not left:
                    return
                if launches > RELAUNCHES:
                    raise ServerError(f"{died}; it was launched {launches} times, {len(left)} cells are not measured")
                again = f"{name}, repeat {block.repeat}: {died}; launched again for the cells that are left"
                self._observer.warn(again)
                begin_session(self._manifest, again)
        except ServerError as error:
            self._manifest.add_failure(block.repeat, name, str(error))
            self._observer.warn(str(error))

    def _serve(self, block: Block, left: list[Cell]) -> str | None:
        """Takes cells from `left` and measures them on one start of the server; how it died, if it did."""
        with self._source.serve(block.target, block.repeat, self._manifest.run_dir, self._observer) as server:
            record = msgspec.structs.replace(server.record, repeat=block.repeat, session=self._manifest.session)
            if self._manifest.resumed:
                require_same_server(self._manifest.manifest, record)
            self._manifest.add_server(record)
            with self._recorder(block, server) as recorder:
                while left and server.died() is None:
                    self._measure(left.pop(0), server, recorder)
            return server.died()

    @contextlib.contextmanager
    def _recorder(self, block: Block, server: Server) -> Iterator[PowerRecorder | None]:
        """Power of one server's life, its rest before the first cell included; None where power is not measured."""
        manifest, name = self._manifest, block.target.name
        simulated = self._power.kind == "simulated"
        url = f"{server.target.url}{SIMULATED_PATH}" if simulated else self._exporter_url
        path = power_file(manifest.run_dir, name, block.repeat, manifest.session)
        try:
            feed = PowerFeed(url, self._power.gpus) if url is not None else None
            recorder = PowerRecorder(feed, path, simulated=server.target.simulated) if feed is not None else None
        except UsageError as error:
            self._warn(f"{name}, repeat {block.repeat}: power is not measured: {error}")
            recorder = None
        if recorder is None:
            yield None
            return
        added = False
        try:
            if manifest.resumed:
                for warning in compare_gpus(manifest.manifest, name, recorder.facts):
                    self._warn(warning)
            rest = recorder.rest()
            sensors = msgspec.structs.asdict(recorder.facts)
            sensors |= {"rest_w": rest.power_w, "calibration": rest.calibration}
            owners = self._owners(server, recorder)
            manifest.add_power(
                PowerBlock(target=name, repeat=block.repeat, session=manifest.session, owners=owners, **sensors)
            )
            added = True
            self._observer.note(f"{name} at rest: {rest}")
            yield recorder
        finally:
            recorder.close()
            if added:
                manifest.end_power(*recorder.losses)

    def _owners(self, server: Server, recorder: PowerRecorder) -> Owners:
        """Whose the processes on the GPUs are, now that the server is up and nothing has been asked of it."""
        pid = server.record.pid or recorder.facts.server_pid
        own = (pid,) if pid is not None else server_processes(server.target.url)
        certain = pid is not None and self._power.kind in ("nvml", "simulated")
        others = (other.target.url for other in self._source.running if other.target.name != server.target.name)
        peers = [pid for url in others for pid in server_processes(url)]
        return owners_of(own, peers, self._power.before, recorder.processes, certain=certain)

    def _warn(self, sentence: str) -> None:
        self._manifest.warn(sentence)
        self._observer.warn(sentence)

    def _measure(self, cell: Cell, server: Server, power: PowerRecorder | None) -> None:
        manifest = self._manifest
        path = cell_file(manifest.run_dir, cell)
        set_aside(manifest.run_dir, cell, manifest)
        journal = Journal(path)
        with self._interrupt.patient():
            try:
                start = clock_anchor().monotonic_ns
                simulated = server.target.simulated
                journal.append(CellStart(cell=cell, t_ns=start, simulated=simulated, session=manifest.session))
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    end = runner.run(self._run_cell(cell, server, journal, power))
            finally:
                journal.close()
            if end.aborted != INTERRUPTED:
                self._observer.cell_ends(cell, _cell_line(end), self._verdict(end, path))

    def _verdict(self, end: CellEnd, path: Path) -> CellVerdict:
        if self._judge is not None:
            try:
                return self._judge(self._manifest.run_dir, path)
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
