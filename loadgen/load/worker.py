"""Worker: a client process of several, which drives its share of a cell's load as its parent commands.

All that it sends goes over one connection: ended requests, its state, and its clock where it is asked for.
A worker: `python -m loadgen.load.worker FD PARENT`.
Assignment: everything that a process needs to be a cell's load, or its share of one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Generic, Literal, TypeVar, cast

import msgspec
import uvloop

from loadgen.load.body import RequestMaker, RequestSettings
from loadgen.load.closedloop import Slot
from loadgen.load.compiled import compiled
from loadgen.load.exchange import Exchange, concealed
from loadgen.load.http import Endpoint, HttpSlot
from loadgen.load.load import WHOLE, ClosedLoad, Feed, LocalLoad, OnExchange, ProcessUse, Share
from loadgen.load.openai_sdk import SdkSlot, sdk_client
from loadgen.load.openload import OpenLoad
from loadgen.load.openloop import Arrivals, Schedule
from loadgen.power.sample import boot_id
from loadgen.processgroup import end_with
from loadgen.secret import Mask
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
        compiled()  # built now, where it has not been: not while requests wait
        endpoint = Endpoint(self.url, self.protocol.api, self.api_key)
        return lambda slot: HttpSlot(endpoint, slot, self.timeout_s)


M = TypeVar("M")
_LENGTH_BYTES = 4
Method = Literal["tell_clock", "start", "end_warmup", "open_window", "close_window", "stop_feeding", "close"]
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


class WorkerClock(msgspec.Struct, frozen=True, kw_only=True, tag="clock"):
    """The worker's answer to `tell_clock`."""

    monotonic_ns: int
    boot_id: str | None


Report = Exchange | WorkerState | ProcessUse | WorkerClock
"""What a worker sends."""


class Channel(asyncio.Protocol, Generic[M]):
    """One end. `send` never waits: what the other end does not take yet stays in this process's memory."""

    def __init__(self, kind: Any, on_message: Callable[[M], None], on_end: Callable[[], None]) -> None:
        """`kind`: the type of what comes in; `on_end`: the other end is closed, or its process gone."""
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._on_message = on_message
        self._on_end = on_end
        self._unread = bytearray()

    async def open(self, end: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if end.family == socket.AF_UNIX:
            await loop.create_unix_connection(lambda: self, sock=end)
        else:
            await loop.create_connection(lambda: self, sock=end)

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


TURN_S = 0.005


class Worker:
    """Does what the parent commands, and sends it every ended request and every change of state."""

    def __init__(self) -> None:
        self._channel = Channel[Assignment | Command](Assignment | Command, self._on_message, self._on_parent_gone)
        self._load: LocalLoad | None = None
        self._assigned = asyncio.Event()
        self._boot_id = boot_id()
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
        if message.method == "tell_clock":
            self._channel.send(WorkerClock(monotonic_ns=monotonic_ns(), boot_id=self._boot_id))
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
