"""Workers: a cell's load in several processes, seen from the one that runs the cell, and from within a worker.

Each worker has a share of the slots and of the items, and all stamp with CLOCK_MONOTONIC, one for all processes of a
machine. Ended requests come back over a socket pair. A worker: `python -m loadgen.load.workers FD PARENT`.
Assignment: everything that a process needs to be a cell's load, or its share of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from time import monotonic_ns, process_time
from typing import Any, Generic, Literal, TypeVar, cast

import msgspec
import uvloop

from loadgen.load.body import RequestMaker, RequestSettings
from loadgen.load.closedloop import Slot
from loadgen.load.exchange import Exchange, concealed
from loadgen.load.http import Endpoint, HttpSlot
from loadgen.load.load import WHOLE, ClientUse, ClosedLoad, Feed, Load, LocalLoad, OnExchange, ProcessUse, Share
from loadgen.load.openai_sdk import SdkSlot, sdk_client
from loadgen.load.openload import OpenLoad
from loadgen.load.openloop import Arrivals, Schedule
from loadgen.processgroup import end_with, exit_words
from loadgen.secret import Mask, without_secrets
from loadgen.workload.item import Item


class Assignment(RequestSettings, frozen=True, kw_only=True, tag="assignment"):
    """Which server to ask what, how, and how many requests at a time."""

    url: str
    api_key: str | None
    masked: tuple[str, ...] = ()
    """Values that no row may hold, besides the key and those in this process's environment."""
    transport: str
    timeout_s: float
    items: tuple[Item, ...]
    warmup_items: tuple[Item, ...]
    concurrency: int
    """The slots of all processes together; in an open loop the most requests in flight."""
    requests: int | None
    duration_s: float | None = None
    """The window's length, where it is known."""
    arrivals: Arrivals | None = None
    """None: a closed loop."""
    arrival_seed: str = ""
    drain_s: float | None = None
    """As `--drain` gives it."""
    share: Share = WHOLE

    def load(self, on_exchange: OnExchange) -> LocalLoad:
        """The share's load, on the running event loop. Raises UsageError when the transport is not installed."""
        mask = Mask(self.api_key, *self.masked)
        maker, make_slot = self.maker(), self.slot_maker()

        def on_masked(exchange: Exchange) -> None:
            on_exchange(concealed(exchange, mask))

        if self.arrivals is None:
            feed = Feed(maker, self.items, self.warmup_items, self.concurrency, self.requests, self.share)
            slots = {slot: make_slot(slot) for slot in self.share.slots(self.concurrency)}
            return ClosedLoad(slots, feed, on_masked, self.drain_s)
        schedule = Schedule(maker, self.items, self.warmup_items, self.arrivals, self.arrival_seed, self.requests)
        window_s = self.duration_s if self.duration_s is not None else (self.requests or 0) / self.arrivals.rate_per_s
        return OpenLoad(make_slot, self.concurrency, schedule, on_masked, window_s=window_s, drain_s=self.drain_s)

    def maker(self) -> RequestMaker:
        """What makes the share's requests."""
        return RequestMaker(self, self.share.first)

    def slot_maker(self) -> Callable[[int], Slot]:
        """What makes its slots, by number; to be called on the running event loop."""
        if self.transport == "openai":
            client = sdk_client(self.url, api_key=self.api_key, timeout_s=self.timeout_s)
            return lambda slot: SdkSlot(client, self.protocol.api, slot)
        endpoint = Endpoint(self.url, self.protocol.api, self.api_key)
        return lambda slot: HttpSlot(endpoint, slot, self.timeout_s)


M = TypeVar("M")
_LENGTH_BYTES = 4
Method = Literal["start", "end_warmup", "open_window", "close_window", "stop_feeding", "close"]
_encode = msgspec.msgpack.Encoder().encode


class Command(msgspec.Struct, frozen=True, tag="command"):
    """What follows a worker's Assignment: the method of its load to call."""

    method: Method


class WorkerState(msgspec.Struct, frozen=True, kw_only=True, tag="state"):
    """A worker's load, sent whenever it changes."""

    steady: bool = False
    dry_ns: int | None = None
    in_flight: int = 0
    drained: bool = False


class Channel(asyncio.Protocol, Generic[M]):
    """One end. `send` never waits: what the other end does not take yet stays in this process's memory."""

    def __init__(self, kind: Any, on_message: Callable[[M], None], on_end: Callable[[], None]) -> None:
        """`kind`: the type of what comes in; `on_end`: the other end is closed, or its process gone."""
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._on_message = on_message
        self._on_end = on_end
        self._unread = bytearray()

    async def open(self, end: socket.socket) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=end)

    def send(self, message: msgspec.Struct) -> None:
        data = _encode(message)
        self._transport.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)

    def close(self) -> None:
        """After what was sent has left."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        start = 0
        while len(self._unread) >= start + _LENGTH_BYTES:
            body = start + _LENGTH_BYTES
            end = body + int.from_bytes(self._unread[start:body], "big")
            if len(self._unread) < end:
                break
            self._on_message(self._decode(memoryview(self._unread)[body:end]))
            start = end
        del self._unread[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end()


PREPARE_DEADLINE_S = 120.0
CLOSE_DEADLINE_S = 30.0
_EXIT_DEADLINE_S = 5.0


class Workers(Load):
    """A load of `count` processes, started for this cell."""

    def __init__(self, assignment: Assignment, count: int, on_exchange: OnExchange) -> None:
        """No process is without a slot: a `count` above B counts as B."""
        super().__init__(on_exchange, assignment.drain_s)
        of = min(count, assignment.concurrency)
        self._changed = asyncio.Event()
        self._sent: set[Method] = set()
        self._error: Exception | None = None
        self._cpu_before_s = self._cpu_s = 0.0
        self._workers = [
            _WorkerProcess(msgspec.structs.replace(assignment, share=Share(first, of)), self._ended, self._changed)
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

    async def prepare(self) -> None:
        for worker in self._workers:
            await worker.begin()
        await self._until(lambda worker: worker.ready, PREPARE_DEADLINE_S)
        for worker in self._workers:
            if not worker.ready:
                worker.fail(f"was not ready after {PREPARE_DEADLINE_S:g} s")

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

    async def _until(self, reached: Callable[[_WorkerProcess], bool], deadline_s: float | None = None) -> None:
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


class _WorkerProcess:
    """One worker: its process, its last state and why it failed."""

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
        kinds = Exchange | WorkerState | ProcessUse
        self._channel = Channel[Exchange | WorkerState | ProcessUse](kinds, self._on_report, self._on_end)
        await self._channel.open(ours)
        masked = tuple(Mask(self._assignment.api_key).secrets)
        self._channel.send(msgspec.structs.replace(self._assignment, masked=masked))

    def _spawn(self) -> socket.socket:
        """In its own session: Ctrl-C in the terminal reaches the parent alone, which then closes its workers."""
        ours, theirs = socket.socketpair()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            argv = [sys.executable, "-m", "loadgen.load.workers", str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(
                argv, env=without_secrets(os.environ, self._assignment.api_key),
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
                start_new_session=True,
            )  # fmt: skip
        return ours

    def send(self, method: Method) -> None:
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
        self._output.close()

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
            self._output.seek(0)
            last = self._output.read().decode(errors="replace").strip().rpartition("\n")[2]
            self.fail(how + (f": {last}" if last else ""))


TURN_S = 0.005


class Worker:
    """Does what the parent commands, and sends it every ended request and every change of state."""

    def __init__(self) -> None:
        self._channel = Channel[Assignment | Command](Assignment | Command, self._on_message, self._on_parent_gone)
        self._load: LocalLoad | None = None
        self._assigned = asyncio.Event()
        self._sent: WorkerState | None = None
        self._drained: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._parent_gone = asyncio.Event()

    async def run(self, end: socket.socket) -> None:
        await self._channel.open(end)
        await self._assigned.wait()
        assert self._load is not None
        gc.collect()
        gc.freeze()
        gc.disable()
        while not self._closing.is_set():
            self._send_state(self._load)
            await asyncio.sleep(TURN_S)
        await self._load.close()
        self._channel.close()
        await self._parent_gone.wait()

    def _on_message(self, message: Assignment | Command) -> None:
        if isinstance(message, Assignment):
            self._load = message.load(self._channel.send)
            self._assigned.set()
            return
        load = self._load
        assert load is not None
        match message.method:
            case "start":
                load.start()
                self._drained = asyncio.create_task(load.idle())
            case "open_window":
                load.open_window(monotonic_ns(), None)
            case "close_window":
                load.close_window()
                if load.process_use is not None:
                    self._channel.send(load.process_use)
            case "close":
                self._closing.set()
            case "end_warmup" | "stop_feeding" as method:
                getattr(load, method)()

    def _send_state(self, load: LocalLoad) -> None:
        state = WorkerState(
            steady=load.steady,
            dry_ns=load.dry_ns,
            in_flight=load.in_flight,
            drained=self._drained is not None and self._drained.done(),
        )
        if state != self._sent:
            self._sent = state
            self._channel.send(state)

    def _on_parent_gone(self) -> None:
        self._parent_gone.set()
        if not self._closing.is_set():
            os._exit(1)


def main() -> None:
    """Ends on the parent's command, or when the parent is gone."""
    fd, parent = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
    uvloop.run(Worker().run(socket.socket(fileno=fd)))


if __name__ == "__main__":
    main()
