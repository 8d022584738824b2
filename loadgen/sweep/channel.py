"""Channel: messages between the process that runs a cell and a worker, over a socket pair."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar, cast

import msgspec

M = TypeVar("M")
_LENGTH_BYTES = 4
Method = Literal["start", "end_warmup", "open_window", "close_window", "stop_feeding", "close"]
_encode = msgspec.msgpack.Encoder().encode


class Command(msgspec.Struct, frozen=True, tag="command"):
    """What a worker is told after its Assignment: the method of its load to call."""

    method: Method


class WorkerState(msgspec.Struct, frozen=True, kw_only=True, tag="state"):
    """What a worker says of its load whenever it changes."""

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
