"""The HTTP servers of loadgen's own: which Host headers they answer to, and how long they serve."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from loadgen.address import NO_SNIFFING, HostCheck


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


async def serve(
    app: web.Application, listening: socket.socket, *, host: str, on_ready: Callable[[], object], **runner: Any
) -> None:
    """Serves on `listening`, opened for `host`, until SIGINT or SIGTERM. `runner`: options of aiohttp's AppRunner."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await _serve_until(stop, app, listening, host=host, on_ready=on_ready, **runner)


async def _serve_until(
    stop: asyncio.Event,
    app: web.Application,
    listening: socket.socket,
    *,
    host: str,
    on_ready: Callable[[], object] = lambda: None,
    **runner: Any,
) -> None:
    guard(app, listening, host)
    running = web.AppRunner(app, access_log=None, **runner)
    await running.setup()
    try:
        await web.SockSite(running, listening).start()
        on_ready()
        await stop.wait()
    finally:
        await running.cleanup()


class MetricsServer:
    """A registry's metrics, served on `listening`, opened for `host`, by a thread until close()."""

    def __init__(self, registry: CollectorRegistry, listening: socket.socket, *, host: str) -> None:
        async def page(_request: web.Request) -> web.Response:
            return metrics_page(registry)

        app = web.Application()
        app.router.add_get("/metrics", page)
        self.address: tuple[Any, ...] = listening.getsockname()
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        serving = _serve_until(self._stop, app, listening, host=host, shutdown_timeout=0.5)
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(serving,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


def metrics_page(registry: CollectorRegistry) -> web.Response:
    """The registry's metrics in Prometheus's text format 0.0.4."""
    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
