"""Workers: the load of a cell that several processes share, seen from the one that runs the cell.

Each worker has a share of the slots and of the items, and all stamp with the same clock: CLOCK_MONOTONIC is one for all
processes of a machine. Ended requests come back over a socket pair and are journalled here, in one file per cell.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from time import process_time

import msgspec

from loadgen.client.exchange import Exchange
from loadgen.client.probe import ClientUse, ProcessUse
from loadgen.secret import Mask, without_secrets
from loadgen.serving.process import exit_words
from loadgen.sweep.assignment import Assignment
from loadgen.sweep.channel import Channel, Command, Method, WorkerState
from loadgen.sweep.feed import Share
from loadgen.sweep.load import Load, OnExchange, Tally
from loadgen.sweep.observer import Arrived

PREPARE_DEADLINE_S = 120.0
CLOSE_DEADLINE_S = 30.0
_EXIT_DEADLINE_S = 5.0


def load_of(assignment: Assignment, workers: int, on_exchange: OnExchange) -> Load:
    """The load of this process alone, or of `workers` others."""
    return assignment.load(on_exchange) if workers == 1 else Workers(assignment, workers, on_exchange)


class Workers:
    """A Load of `count` processes, started anew for the cell."""

    arrived: Arrived | None = None

    def __init__(self, assignment: Assignment, count: int, on_exchange: OnExchange) -> None:
        """No process is without a slot: a `count` above B counts as B."""
        of = min(count, assignment.concurrency)
        self._on_exchange = on_exchange
        self._changed = asyncio.Event()
        self._told: set[Method] = set()
        self._tally = Tally()
        self._error: Exception | None = None
        self._cpu_before_s = self._cpu_s = 0.0
        self._workers = [
            _WorkerProcess(msgspec.structs.replace(assignment, share=Share(first, of)), self._on_ended, self._changed)
            for first in range(of)
        ]

    @property
    def completed(self) -> int:
        return self._tally.completed

    @property
    def failures_in_a_row(self) -> int:
        return self._tally.failures_in_a_row

    @property
    def failure(self) -> str | None:
        if self._error is not None:
            return str(self._error)
        return next((worker.failure for worker in self._workers if worker.failure is not None), None)

    @property
    def steady(self) -> bool:
        return all(worker.state.steady for worker in self._workers)

    @property
    def dry_ns(self) -> int | None:
        return min((worker.state.dry_ns for worker in self._workers if worker.state.dry_ns is not None), default=None)

    @property
    def in_flight(self) -> int:
        return sum(worker.state.in_flight for worker in self._workers if worker.running)

    @property
    def use(self) -> ClientUse | None:
        uses = [worker.use for worker in self._workers if worker.use is not None]
        return ClientUse.of(uses, beside_s=self._cpu_s) if len(uses) == len(self._workers) else None

    async def prepare(self) -> None:
        for worker in self._workers:
            await worker.begin()
        await self._until(lambda worker: worker.ready, PREPARE_DEADLINE_S)
        for worker in self._workers:
            if not worker.ready:
                worker.fail(f"was not ready after {PREPARE_DEADLINE_S:g} s")

    def start(self) -> None:
        self._tell("start")

    def end_warmup(self) -> None:
        self._tell("end_warmup")

    def open_window(self, open_ns: int, close_ns: int | None) -> None:
        self._cpu_before_s = process_time()
        self._tell("open_window")

    def close_window(self) -> None:
        self._cpu_s = process_time() - self._cpu_before_s
        self._tell("close_window")

    def stop_feeding(self) -> None:
        self._tell("stop_feeding")

    async def drained(self) -> None:
        await self._until(lambda worker: worker.state.drained)

    async def close(self) -> None:
        """Raises what `on_exchange` raised."""
        self._tell("close")
        await self._until(lambda worker: not worker.running, CLOSE_DEADLINE_S)
        for worker in self._workers:
            worker.end()
        if self._error is not None:
            raise self._error

    def _tell(self, method: Method) -> None:
        """Every worker, once."""
        if method not in self._told:
            self._told.add(method)
            for worker in self._workers:
                worker.tell(method)

    async def _until(self, reached: Callable[[_WorkerProcess], bool], deadline_s: float | None = None) -> None:
        """Returns when every worker has reached something, or has ended, or the deadline has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while not all(reached(worker) or not worker.running for worker in self._workers):
                    self._changed.clear()
                    await self._changed.wait()

    def _on_ended(self, exchange: Exchange) -> None:
        if self._error is None:
            try:
                self._tally.add(exchange)
                self._on_exchange(exchange)
            except Exception as error:  # what it is shall be known when the cell closes, not in the event loop's log
                self._error = error


class _WorkerProcess:
    """One of them: its process, what it was told and what it last said."""

    def __init__(self, assignment: Assignment, on_ended: OnExchange, changed: asyncio.Event) -> None:
        self._assignment = assignment
        self._on_ended = on_ended
        self._changed = changed
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = False
        self.running = False
        self.ready = False
        self.state = WorkerState()
        self.use: ProcessUse | None = None
        self.failure: str | None = None

    async def begin(self) -> None:
        ours = self._spawn()
        self.running = True
        self._channel: Channel[Exchange | WorkerState | ProcessUse] = Channel(
            Exchange | WorkerState | ProcessUse, self._on_report, self._on_end
        )
        await self._channel.open(ours)
        secrets = tuple(Mask(self._assignment.api_key).secrets)
        self._channel.send(msgspec.structs.replace(self._assignment, secrets=secrets))

    def _spawn(self) -> socket.socket:
        """In a session of its own: Ctrl-C in the terminal reaches the parent alone, which then closes its workers."""
        ours, theirs = socket.socketpair()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            argv = [sys.executable, "-m", "loadgen.sweep.worker", str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(
                argv, env=without_secrets(os.environ, self._assignment.api_key),
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self._words, stderr=self._words,
                start_new_session=True,
            )  # fmt: skip
        return ours

    def tell(self, method: Method) -> None:
        self._closing = self._closing or method == "close"
        if self.running:
            self._channel.send(Command(method))

    def fail(self, what: str) -> None:
        """The worker is of no more use, for the first reason given."""
        share = self._assignment.share
        self.failure = self.failure or f"client worker {share.first + 1} of {share.of} {what}"

    def end(self) -> None:
        """Kills it where it runs."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._channel.close()
        self._words.close()

    def _on_report(self, report: Exchange | WorkerState | ProcessUse) -> None:
        match report:
            case Exchange():
                self._on_ended(report)
            case WorkerState():
                self.state, self.ready = report, True
            case ProcessUse():
                self.use = report
        self._changed.set()

    def _on_end(self) -> None:
        self.running = False
        self._changed.set()
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_DEADLINE_S)
        if not self._closing:
            status = self._process.returncode
            how = "closed its channel" if status is None else f"ended with {exit_words(status)}"
            self._words.seek(0)
            last = self._words.read().decode(errors="replace").strip().rpartition("\n")[2]
            self.fail(how + (f": {last}" if last else ""))
