"""Workers: a cell's load in several processes, seen from the one that runs the cell.

Each worker has a share of the slots and of the items. On one machine all stamp with CLOCK_MONOTONIC, one for all its
processes; elsewhere `set_clock` brings a worker's times to it. Ended requests come back over a socket.
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

from loadgen.load.exchange import Exchange
from loadgen.load.load import ClientNode, ClientUse, Load, OnExchange, ProcessUse, Share
from loadgen.load.worker import Assignment, Channel, Command, Method, Report, WorkerState
from loadgen.processgroup import exit_words
from loadgen.secret import Mask, without_secrets

PREPARE_DEADLINE_S = 120.0
CLOSE_DEADLINE_S = 30.0
CLOCK_EVERY_S = 10.0
"""Two quartz clocks drift apart by at most about 1 ms in between (100 ppm)."""
_EXIT_DEADLINE_S = 5.0


class Workers(Load):
    """A load of `count` processes, started for this cell."""

    def __init__(
        self,
        assignment: Assignment,
        count: int,
        on_exchange: OnExchange,
        make: MakeWorker | None = None,
    ) -> None:
        """No process is without a slot: a `count` above B counts as B. `make`: of a share's process; None: it runs on
        this machine."""
        super().__init__(on_exchange, assignment.drain_s)
        of = min(count, assignment.concurrency)
        self._changed = asyncio.Event()
        self._sent: set[Method] = set()
        self._error: Exception | None = None
        self._cpu_before_s = self._cpu_s = 0.0
        make = make or WorkerProcess
        self._clocks: asyncio.Task[None] | None = None
        self._workers = [
            make(msgspec.structs.replace(assignment, share=Share(first, of)), self._ended, self._changed)
            for first in range(of)
        ]

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

    @property
    def nodes(self) -> tuple[ClientNode, ...]:
        return tuple(worker.node for worker in self._workers if worker.node is not None)

    async def prepare(self) -> None:
        await asyncio.gather(*(worker.begin() for worker in self._workers))
        await self._until(lambda worker: worker.ready, PREPARE_DEADLINE_S)
        for worker in self._workers:
            if not worker.ready:
                worker.fail(f"was not ready after {PREPARE_DEADLINE_S:g} s")
        await self._set_clocks()
        self._clocks = asyncio.create_task(self._keep_clocks())

    async def _set_clocks(self) -> None:
        await asyncio.gather(*(worker.set_clock() for worker in self._workers if worker.running))

    async def _keep_clocks(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_EVERY_S)
            await self._set_clocks()

    def start(self) -> None:
        self._send("start")

    def end_warmup(self) -> None:
        self._send("end_warmup")

    def open_window(self, open_ns: int, close_ns: int | None) -> None:
        self._cpu_before_s = process_time()
        self._send("open_window")

    def close_window(self) -> None:
        self._cpu_s = process_time() - self._cpu_before_s
        self._send("close_window")

    def stop_feeding(self) -> None:
        self._send("stop_feeding")

    async def idle(self) -> None:
        await self._until(lambda worker: worker.state.drained)

    async def close(self) -> None:
        """Raises what `on_exchange` raised."""
        if self._clocks is not None:
            self._clocks.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._clocks
            await self._set_clocks()
        self._send("close")
        await self._until(lambda worker: not worker.running, CLOSE_DEADLINE_S)
        for worker in self._workers:
            worker.end()
        if self._error is not None:
            raise self._error

    def _send(self, method: Method) -> None:
        """To every worker, once."""
        if method not in self._sent:
            self._sent.add(method)
            for worker in self._workers:
                worker.send(method)

    async def _until(self, reached: Callable[[WorkerProcess], bool], deadline_s: float | None = None) -> None:
        """Returns when every worker has reached something, or has ended, or the deadline has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while not all(reached(worker) or not worker.running for worker in self._workers):
                    self._changed.clear()
                    await self._changed.wait()

    def _ended(self, exchange: Exchange) -> None:
        if self._error is None:
            try:
                super()._ended(exchange)
            except Exception as error:  # raised when the cell closes, not into the event loop's log
                self._error = error


class WorkerProcess:
    """One worker: its process, its last state and why it failed."""

    node: ClientNode | None = None
    """Where it runs, unless that is here."""

    def __init__(self, assignment: Assignment, on_ended: OnExchange, changed: asyncio.Event) -> None:
        self._assignment = assignment
        self._on_ended = on_ended
        self._changed = changed
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel[Report] | None = None
        self._closing = False
        self.running = False
        self.ready = False
        self.state = WorkerState()
        self.use: ProcessUse | None = None
        self.failure: str | None = None

    async def begin(self) -> None:
        """Starts it; where that fails, `failure` says why."""
        ours = await self._spawn()
        if ours is None:
            return
        self.running = True
        self._channel = Channel[Report](Report, self._on_report, self._on_end)
        await self._channel.open(ours)
        masked = tuple(Mask(self._assignment.api_key).secrets)
        self._channel.send(msgspec.structs.replace(self._assignment, masked=masked))

    async def _spawn(self) -> socket.socket | None:
        """Our end of the connection to a new process; None where it did not come, and `failure` says why."""
        return self._start()

    def _start(self) -> socket.socket:
        """In its own session: Ctrl-C in the terminal reaches the parent alone, which then closes its workers."""
        ours, theirs = socket.socketpair()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            self._process = subprocess.Popen(
                worker_argv(theirs), env=without_secrets(os.environ, self._assignment.api_key),
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
                start_new_session=True,
            )  # fmt: skip
        return ours

    async def set_clock(self) -> None:
        """From now on its times are on this machine's clock; those of a process here are."""

    def send(self, method: Method) -> None:
        self._closing = self._closing or method == "close"
        if self.running and self._channel is not None:
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
        if self._channel is not None:
            self._channel.close()
        self._output.close()

    def _on_report(self, report: Report) -> None:
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
        if not self._closing:
            self.fail(self._how_it_ended())

    def _how_it_ended(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_DEADLINE_S)
        self._output.seek(0)
        return ended_words(self._process.returncode, self._output.read())


MakeWorker = Callable[[Assignment, OnExchange, asyncio.Event], WorkerProcess]
"""Makes the process of a share, which hands over its ended requests and says when anything has changed."""


def worker_argv(end: socket.socket) -> list[str]:
    """The command of a worker on its end of a connection, which ends with this process."""
    return [sys.executable, "-m", "loadgen.load.worker", str(end.fileno()), str(os.getpid())]


def ended_words(status: int | None, output: bytes) -> str:
    """How a worker ended, with its last line; `status` None: it still runs."""
    how = "closed its channel" if status is None else f"ended with {exit_words(status)}"
    last = output.decode(errors="replace").strip().rpartition("\n")[2]
    return how + (f": {last}" if last else "")
