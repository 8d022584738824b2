"""A worker: one of several client processes that share a cell's slots. `python -m loadgen.sweep.worker FD PARENT`."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from time import monotonic_ns

import uvloop

from loadgen.orphan import end_with
from loadgen.sweep.assignment import Assignment
from loadgen.sweep.channel import Channel, Command, WorkerState
from loadgen.sweep.load import LocalLoad

TURN_S = 0.005


class Worker:
    """Does what the parent says, and tells it of every ended request and every change of state."""

    def __init__(self) -> None:
        self._channel: Channel[Assignment | Command] = Channel(
            Assignment | Command, self._on_message, self._on_parent_gone
        )
        self._load: LocalLoad | None = None
        self._assigned = asyncio.Event()
        self._told: WorkerState | None = None
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
            self._tell_state(self._load)
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
                self._drained = asyncio.create_task(load.drained())
            case "end_warmup":
                load.end_warmup()
            case "open_window":
                load.open_window(monotonic_ns(), None)
            case "close_window":
                load.close_window()
                if load.process_use is not None:
                    self._channel.send(load.process_use)
            case "stop_feeding":
                load.stop_feeding()
            case "close":
                self._closing.set()

    def _tell_state(self, load: LocalLoad) -> None:
        state = WorkerState(
            steady=load.steady,
            dry_ns=load.dry_ns,
            in_flight=load.in_flight,
            drained=self._drained is not None and self._drained.done(),
        )
        if state != self._told:
            self._told = state
            self._channel.send(state)

    def _on_parent_gone(self) -> None:
        self._parent_gone.set()
        if not self._closing.is_set():
            os._exit(1)


def main() -> None:
    """Ends when the parent says so or is gone."""
    fd, parent = int(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
    uvloop.run(Worker().run(socket.socket(fileno=fd)))


if __name__ == "__main__":
    main()
