"""The exporter: a sampler's readings over HTTP, raw for loadgen and as metrics for Prometheus.

`loadgen exporter` as a function: this machine's sensors, sampled and served until a signal comes.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from loadgen.power.energy import MARGIN_S
from loadgen.power.nvml import NvmlReader
from loadgen.power.rapl import RaplReader
from loadgen.power.sample import GpuInfo, PowerSample, SourceKind, UnreadableGpu, boot_id
from loadgen.power.sampler import DARK_S, Sampler, SamplerStatistics, dark_reason, select_gpus
from loadgen.power.trace import calibrate
from loadgen.power.wire import (
    PAGE_SAMPLES,
    ClockReading,
    Gpus,
    NotCoveredError,
    PowerCollector,
    SamplePage,
    Windows,
    window_energies,
)
from loadgen.secret import visible
from loadgen.webserver import http_url, listen, metrics_page, serve

HISTORY_S = 3600.0
CALIBRATE_S = 30.0
CALIBRATE_MIN_S = 3.0
"""Sensors are characterised by the samples of the last CALIBRATE_S, once there are CALIBRATE_MIN_S of them."""
COUNT_EVERY_S = 30.0
"""How often samples are counted without scrapes, well within the hour that the sampler remembers."""
LARGEST = 2**64 - 1
"""A number in a query has 64 bits at most."""


class Sampled(Protocol):
    """A running Sampler, as far as the exporter sees it."""

    period_s: float

    def since(self, sequence: int) -> tuple[int, int, Sequence[PowerSample]]: ...

    def statistics(self) -> SamplerStatistics: ...


def application(sampler: Sampled, infos: Sequence[GpuInfo], source: SourceKind) -> web.Application:
    """The exporter's own aiohttp application: `/clock /gpus /samples /window /sampler /metrics /health`."""
    app = web.Application()
    add_routes(app, sampler, infos, source)
    return app


def add_routes(
    app: web.Application,
    sampler: Sampled,
    infos: Sequence[GpuInfo],
    source: SourceKind,
    *,
    prefix: str = "",
    server_pid: int | None = None,
) -> None:
    """Serve the same below `prefix` of another application; `sampler` samples exactly the GPUs of `infos`, which are
    those of the server `server_pid` where that is known."""
    handlers = _Handlers(sampler, infos, source, server_pid)
    for name in ("clock", "gpus", "samples", "window", "sampler", "metrics", "health"):
        app.router.add_get(f"{prefix}/{name}", getattr(handlers, name))
    app.cleanup_ctx.append(handlers.counting)


class _Handlers:
    """Reading and encoding happen in threads: the event loop and the sampler's thread are never held up."""

    def __init__(self, sampler: Sampled, infos: Sequence[GpuInfo], source: SourceKind, server_pid: int | None) -> None:
        self._sampler = sampler
        self._infos = tuple(infos)
        self._source = source
        self._server_pid = server_pid
        self._began_ns = time.monotonic_ns()
        self._boot_id = boot_id()
        self._counted = 0
        self._collector = PowerCollector(infos, source)
        self._registry = CollectorRegistry()
        self._registry.register(self._collector)
        self._counting = asyncio.Lock()

    async def clock(self, _request: web.Request) -> web.Response:
        return _json(ClockReading(monotonic_ns=time.monotonic_ns(), unix_ns=time.time_ns(), boot_id=self._boot_id))

    async def gpus(self, _request: web.Request) -> web.Response:
        return await asyncio.to_thread(self._facts)

    async def samples(self, request: web.Request) -> web.Response:
        chosen = self._chosen(request)
        since = _whole(request, "since") if "since" in request.query else sys.maxsize
        return await asyncio.to_thread(self._page, since, chosen)

    async def window(self, request: web.Request) -> web.Response:
        chosen = self._chosen(request)
        t0_ns, t1_ns = _whole(request, "t0"), _whole(request, "t1")
        if t0_ns >= t1_ns:
            raise web.HTTPBadRequest(text=f"t0={t0_ns} is not before t1={t1_ns}")
        try:
            return await asyncio.to_thread(self._energies, chosen, t0_ns, t1_ns)
        except NotCoveredError as error:
            raise web.HTTPConflict(text=str(error)) from None

    async def sampler(self, _request: web.Request) -> web.Response:
        return _json(await asyncio.to_thread(self._sampler.statistics))

    async def metrics(self, _request: web.Request) -> web.Response:
        async with self._counting:
            await asyncio.to_thread(self._count)
            return await asyncio.to_thread(metrics_page, self._registry)

    async def health(self, _request: web.Request) -> web.Response:
        dark_ns = time.monotonic_ns() - round(DARK_S * 1e9)
        samples = await asyncio.to_thread(self._after, dark_ns)
        if self._began_ns > dark_ns or any(s.t_ns >= dark_ns and s.has_energy for s in samples):
            return web.Response()
        raise web.HTTPServiceUnavailable(text=dark_reason(samples[-len(self._infos) :], DARK_S))

    async def counting(self, _app: web.Application) -> AsyncIterator[None]:
        """Counts samples now and then, whether or not somebody scrapes."""

        async def count() -> None:
            while True:
                await asyncio.sleep(COUNT_EVERY_S)
                async with self._counting:
                    await asyncio.to_thread(self._count)

        task = asyncio.create_task(count())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    def _chosen(self, request: web.Request) -> tuple[GpuInfo, ...]:
        if "gpu" not in request.query:
            return self._infos
        known = {info.uuid: info for info in self._infos}
        asked = dict.fromkeys(request.query["gpu"].split(","))
        for uuid in asked:
            if uuid not in known:
                raise web.HTTPBadRequest(
                    text=f"gpu={_shown(uuid)} is not sampled by this exporter; it samples {', '.join(known)}"
                )
        return tuple(known[uuid] for uuid in asked)

    def _since(self, sequence: int) -> tuple[int, int, Sequence[PowerSample]]:
        try:
            return self._sampler.since(sequence)
        except RuntimeError as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from None

    def _after(self, t_ns: int) -> Sequence[PowerSample]:
        """At least all samples from `t_ns` on that are kept, without copying the whole hour."""
        ticks = (time.monotonic_ns() - t_ns) / 1e9 / self._sampler.period_s + 2
        head, _, _ = self._since(sys.maxsize)
        return self._since(max(0, head - math.ceil(ticks) * len(self._infos)))[2]

    def _facts(self) -> web.Response:
        samples = self._after(time.monotonic_ns() - round(CALIBRATE_S * 1e9))
        enough = {uuid: found for uuid, found in calibrate(samples).items() if found.duration_s >= CALIBRATE_MIN_S}
        return _json(
            Gpus(
                source=self._source,
                simulated=self._source == "simulated" or any(info.simulated for info in self._infos),
                gpus=self._infos,
                calibration={info.uuid: enough.get(info.uuid) for info in self._infos},
                latest={sample.gpu: sample for sample in samples if sample.processes is not None},
                server_pid=self._server_pid,
            )
        )

    def _page(self, since: int, chosen: Sequence[GpuInfo]) -> web.Response:
        head, lost, samples = self._since(since)
        page = samples[:PAGE_SAMPLES]
        left = len(samples) - len(page)
        uuids = {info.uuid for info in chosen}
        kept = tuple(sample for sample in page if sample.gpu in uuids)
        return _json(SamplePage(next=head - left, lost=lost, samples=kept, more=left > 0))

    def _energies(self, chosen: Sequence[GpuInfo], t0_ns: int, t1_ns: int) -> web.Response:
        samples = self._after(t0_ns - round(MARGIN_S * 1e9))
        return _json(Windows(windows=window_energies(samples, chosen, t0_ns, t1_ns, time.monotonic_ns())))

    def _count(self) -> None:
        self._counted, _, samples = self._since(self._counted)
        self._collector.add(samples)


def _whole(request: web.Request, name: str) -> int:
    text = request.query.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise web.HTTPBadRequest(text=f"{name}={_shown(text)} is not a whole number")
    if len(text) > len(str(LARGEST)) or int(text) > LARGEST:
        raise web.HTTPBadRequest(text=f"{name}={_shown(text)} is too large; the largest number is {LARGEST}, 64 bits")
    return int(text)


def _shown(asked: str) -> str:
    return visible(asked if len(asked) <= 60 else f"{asked[:60]}...")


def _json(content: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")


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

    `gpus` are UUIDs; None for those of CUDA_VISIBLE_DEVICES or the only one (RAPL: every package). Raises UsageError,
    one sentence, when there are no such sensors or the address is taken.
    """
    with listen(host, port) as listening:
        reader = NvmlReader() if source == "nvml" else RaplReader()
        nvml = reader if isinstance(reader, NvmlReader) else None
        try:
            infos = _chosen(reader.gpus(), nvml.unreadable if nvml else (), gpus, source)
            names = ", ".join(f"{info.name} {info.uuid}" for info in infos)
            ready = f"{source} exporter ready on {http_url(host, port)}: {names}, sampled every {period_s * 1e3:g} ms"
            reopen = nvml.reopen if nvml else None
            uuids = [info.uuid for info in infos]
            with Sampler(reader, uuids, period_s=period_s, history_s=HISTORY_S, reopen=reopen, say=say) as sampler:
                app = application(sampler, infos, source)
                asyncio.run(serve(app, listening, host=host, on_ready=lambda: say(ready), shutdown_timeout=0.5))
        finally:
            reader.close()


def _chosen(
    infos: Sequence[GpuInfo], unreadable: Sequence[UnreadableGpu], asked: Sequence[str] | None, source: str
) -> list[GpuInfo]:
    if source == "rapl" and asked is None:
        return list(infos)
    visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES") if source == "nvml" else None
    order = os.environ.get("CUDA_DEVICE_ORDER")
    uuids = select_gpus(infos, asked=asked, visible=visible_devices, order=order, unreadable=unreadable)
    return [info for info in infos if info.uuid in uuids]
