"""The exporter: a sampler's readings over HTTP, raw for loadgen and as metrics for Prometheus.

`loadgen exporter` as a function: this machine's sensors, sampled and served until a signal comes.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Literal, Protocol

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from loadgen.address import NO_SNIFFING, HostCheck, http_url, listen
from loadgen.power.energy import MARGIN_S
from loadgen.power.exposition import PowerCollector
from loadgen.power.feed import boot_id
from loadgen.power.nvml import NvmlReader
from loadgen.power.rapl import RaplReader
from loadgen.power.sample import GpuInfo, PowerSample, SourceKind, UnreadableGpu
from loadgen.power.sampler import DARK_S, Sampler, SamplerStatistics, has_energy, select_gpus
from loadgen.power.trace import calibrate
from loadgen.power.wire import PAGE_SAMPLES, ClockReading, Gpus, NotCoveredError, SamplePage, Windows, window_energies
from loadgen.secret import visible

CALIBRATE_S = 30.0
"""Sensors are characterised by the samples of this last stretch,"""
CALIBRATE_MIN_S = 3.0
"""once there is this much of it."""
COUNT_EVERY_S = 30.0
"""How often samples are counted when nobody scrapes, well within the hour that the sampler remembers."""
LARGEST = 2**64 - 1
"""A number of a question has 64 bits at most."""
_encode = msgspec.json.encode


class Sampled(Protocol):
    """A running Sampler, as far as the exporter sees it."""

    period_s: float

    def since(self, sequence: int) -> tuple[int, int, Sequence[PowerSample]]:
        """(number to ask with next time, how many were too old to be kept, the samples from `sequence` on)."""
        ...

    def statistics(self) -> SamplerStatistics: ...


def application(sampler: Sampled, infos: Sequence[GpuInfo], source: SourceKind) -> web.Application:
    """The exporter's own aiohttp application: `/clock /gpus /samples /window /sampler /metrics /health`."""
    app = web.Application()
    add_routes(app, sampler, infos, source)
    return app


def guard(app: web.Application, listening: socket.socket, host: str) -> None:
    """Refuses, with 403, requests that `HostCheck` refuses; every answer carries `nosniff`. Before the app starts."""
    check = HostCheck(host, listening.getsockname()[0])

    @web.middleware
    async def checked(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        for header in request.headers.getall("Host", []):
            if (refusal := check.refusal(header)) is not None:
                raise web.HTTPForbidden(text=refusal)
        return await handler(request)

    async def marked(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(NO_SNIFFING)

    app.middlewares.append(checked)
    app.on_response_prepare.append(marked)


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

    def __init__(
        self, sampler: Sampled, infos: Sequence[GpuInfo], source: SourceKind, server_pid: int | None = None
    ) -> None:
        self._sampler = sampler
        self._server_pid = server_pid
        self._began_ns = time.monotonic_ns()
        self._infos = tuple(infos)
        self._source = source
        self._boot_id = boot_id()
        self._counted = 0
        self._collector = PowerCollector(infos, source)
        self._registry = CollectorRegistry()
        self._registry.register(self._collector)
        self._counting = asyncio.Lock()

    async def clock(self, _request: web.Request) -> web.Response:
        return _json(
            _encode(ClockReading(monotonic_ns=time.monotonic_ns(), unix_ns=time.time_ns(), boot_id=self._boot_id))
        )

    async def gpus(self, _request: web.Request) -> web.Response:
        return _json(await asyncio.to_thread(self._facts))

    async def samples(self, request: web.Request) -> web.Response:
        chosen = self._chosen(request)
        since = _whole(request, "since") if "since" in request.query else sys.maxsize
        return _json(await asyncio.to_thread(self._page, since, chosen))

    async def window(self, request: web.Request) -> web.Response:
        chosen = self._chosen(request)
        t0_ns, t1_ns = _whole(request, "t0"), _whole(request, "t1")
        if t0_ns >= t1_ns:
            raise web.HTTPBadRequest(text=f"t0={t0_ns} is not before t1={t1_ns}")
        try:
            energies = await asyncio.to_thread(self._energies, chosen, t0_ns, t1_ns)
        except NotCoveredError as error:
            raise web.HTTPConflict(text=str(error)) from None
        return _json(energies)

    async def sampler(self, _request: web.Request) -> web.Response:
        return _json(_encode(await asyncio.to_thread(self._sampler.statistics)))

    async def metrics(self, _request: web.Request) -> web.Response:
        async with self._counting:
            page = await asyncio.to_thread(self._exposition)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def health(self, _request: web.Request) -> web.Response:
        now_ns = time.monotonic_ns()
        dark_ns = now_ns - round(DARK_S * 1e9)
        samples = await asyncio.to_thread(self._after, dark_ns)
        if self._began_ns > dark_ns or any(s.t_ns >= dark_ns and has_energy(s) for s in samples):
            return web.Response()
        errors = "; ".join(dict.fromkeys(error for s in samples[-len(self._infos) :] for error in s.errors))
        said = f"no GPU gave its energy or power for {DARK_S:g} s" + (f" ({errors})" if errors else "")
        raise web.HTTPServiceUnavailable(text=said)

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
        asked = request.query["gpu"].split(",")
        for uuid in asked:
            if uuid not in known:
                raise web.HTTPBadRequest(text=f"gpu={_shown(uuid)} is not sampled here; there is {', '.join(known)}")
        return tuple(known[uuid] for uuid in dict.fromkeys(asked))

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

    def _facts(self) -> bytes:
        samples = self._after(time.monotonic_ns() - round(CALIBRATE_S * 1e9))
        calibrations = calibrate(samples)
        enough = {uuid: found for uuid, found in calibrations.items() if found.duration_s >= CALIBRATE_MIN_S}
        return _encode(
            Gpus(
                source=self._source,
                simulated=self._source == "simulated" or any(info.simulated for info in self._infos),
                gpus=self._infos,
                calibration={info.uuid: enough.get(info.uuid) for info in self._infos},
                latest={sample.gpu: sample for sample in samples if sample.processes is not None},
                server_pid=self._server_pid,
            )
        )

    def _page(self, since: int, chosen: Sequence[GpuInfo]) -> bytes:
        head, lost, samples = self._since(since)
        page = samples[:PAGE_SAMPLES]
        left = len(samples) - len(page)
        uuids = {info.uuid for info in chosen}
        kept = tuple(sample for sample in page if sample.gpu in uuids)
        return _encode(SamplePage(next=head - left, lost=lost, samples=kept, more=left > 0))

    def _energies(self, chosen: Sequence[GpuInfo], t0_ns: int, t1_ns: int) -> bytes:
        samples = self._after(t0_ns - round(MARGIN_S * 1e9))
        return _encode(Windows(windows=window_energies(samples, chosen, t0_ns, t1_ns, time.monotonic_ns())))

    def _count(self) -> None:
        self._counted, _, samples = self._since(self._counted)
        self._collector.add(samples)

    def _exposition(self) -> bytes:
        self._count()
        return generate_latest(self._registry)


def _whole(request: web.Request, name: str) -> int:
    text = request.query.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise web.HTTPBadRequest(text=f"{name}={_shown(text)} is not a whole number")
    if len(text) > len(str(LARGEST)) or int(text) > LARGEST:
        raise web.HTTPBadRequest(text=f"{name}={_shown(text)} is too large; the largest number is {LARGEST}, 64 bits")
    return int(text)


def _shown(asked: str) -> str:
    return visible(asked if len(asked) <= 60 else f"{asked[:60]}...")


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")


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
