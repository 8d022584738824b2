"""`loadgen exporter` as a function: this machine's sensors, sampled and served until a signal comes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Literal

from aiohttp import web

from loadgen.address import http_url, listen
from loadgen.power.exporter import application, guard
from loadgen.power.nvml import NvmlReader
from loadgen.power.rapl import RaplReader
from loadgen.power.sample import GpuInfo, UnreadableGpu
from loadgen.power.sampler import Sampler
from loadgen.power.selection import select_gpus

HISTORY_S = 3600.0


def run_exporter(
    host: str,
    port: int,
    *,
    source: Literal["nvml", "rapl"],
    gpus: Sequence[str] | None,
    period_s: float,
    say: Callable[[str], object],
) -> None:
    """Serves until SIGINT or SIGTERM; `say` gets one line once it answers.

    `gpus` are UUIDs; None for those of CUDA_VISIBLE_DEVICES or the only one there is (RAPL: every package). Raises
    UsageError, one sentence, when there are no such sensors or the address is taken.
    """
    listening = listen(host, port)
    with listening:
        reader = NvmlReader() if source == "nvml" else RaplReader()
        try:
            unreadable = reader.unreadable if isinstance(reader, NvmlReader) else ()
            infos = _chosen(reader.gpus(), unreadable, gpus, source)
            names = ", ".join(f"{info.name} {info.uuid}" for info in infos)
            ready = f"{source} exporter ready on {http_url(host, port)}: {names}, sampled each {period_s * 1e3:g} ms"
            reopen = reader.reopen if isinstance(reader, NvmlReader) else None
            uuids = [info.uuid for info in infos]
            with Sampler(reader, uuids, period_s=period_s, history_s=HISTORY_S, reopen=reopen, say=say) as sampler:
                app = application(sampler, infos, source)
                guard(app, listening, host)
                asyncio.run(_serve(app, listening, on_ready=lambda: say(ready)))
        finally:
            reader.close()


def _chosen(
    infos: Sequence[GpuInfo], unreadable: Sequence[UnreadableGpu], asked: Sequence[str] | None, source: str
) -> list[GpuInfo]:
    if source == "rapl" and asked is None:
        return list(infos)
    uuids = select_gpus(
        infos,
        asked=asked,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES") if source == "nvml" else None,
        order=os.environ.get("CUDA_DEVICE_ORDER"),
        unreadable=unreadable,
    )
    return [info for info in infos if info.uuid in uuids]


async def _serve(app: web.Application, listening: socket.socket, *, on_ready: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        on_ready()
        await stop.wait()
    finally:
        await runner.cleanup()
