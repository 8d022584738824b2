"""Backlog: ended streams that wait to be read, and rows of requests that were never sent."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from loadgen.client.exchange import Exchange, Raw, read_exchange

IDLE_S = 0.005
"""How long the reader sleeps when nothing waits."""
MOST_BYTES = 4 << 30


class Backlog:
    """Reads ended streams in their order and hands each on, a turn of the event loop or more after its end.

    Bytes come first: one stream is read per turn, so that what arrives meanwhile waits for one parse at most. Where
    streams end faster than that, they wait in memory; from `most_bytes` on reading comes first.
    """

    def __init__(self, on_exchange: Callable[[Exchange], None], most_bytes: int | None = None) -> None:
        """Without `most_bytes`: a quarter of the memory that is free now, at most 4 GiB."""
        self._on_exchange = on_exchange
        self._most_bytes = min(free_bytes() // 4, MOST_BYTES) if most_bytes is None else most_bytes
        self._unread: deque[Raw | Exchange] = deque()
        self._unread_bytes = 0

    def __len__(self) -> int:
        return len(self._unread)

    def add(self, ended: Raw | Exchange) -> None:
        self._unread.append(ended)
        self._unread_bytes += _size_bytes(ended)

    async def read_on(self) -> None:
        """Reads what comes, until it is cancelled."""
        while True:
            if not self._unread:
                await asyncio.sleep(IDLE_S)
                continue
            self._read_one()
            while self._unread_bytes > self._most_bytes:
                self._read_one()
            await asyncio.sleep(0)

    def read_all(self) -> None:
        """Reads what waits, now."""
        while self._unread:
            self._read_one()

    def _read_one(self) -> None:
        ended = self._unread.popleft()
        self._unread_bytes -= _size_bytes(ended)
        self._on_exchange(ended if isinstance(ended, Exchange) else read_exchange(ended))


def _size_bytes(ended: Raw | Exchange) -> int:
    return 0 if isinstance(ended, Exchange) else ended.size_bytes


def free_bytes() -> int:
    """Memory that can be had now, caches that would give way among it; where Linux does not tell, what nothing uses."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
