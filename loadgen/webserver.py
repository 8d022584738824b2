"""Web servers of loadgen's own: which Host headers they answer to, and how long they serve; their addresses.

Addresses: URLs and listening sockets of a host and port, IPv6 included; the Host headers that servers accept.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loadgen.errors import UsageError
from loadgen.secret import visible

if TYPE_CHECKING:
    from aiohttp import web
    from prometheus_client import CollectorRegistry

NO_SNIFFING = {"X-Content-Type-Options": "nosniff"}
"""Browsers then believe a response's Content-Type (WHATWG Fetch, section 3.6)."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@,\s]+)(?::[0-9]{1,5})?")
"""RFC 9110, section 7.2: a name or an address, and perhaps a port."""
_SERVICE = re.compile(r"[a-z][a-z0-9_-]*")


def http_url(host: str, port: int) -> str:
    """`http://host:port`, an IPv6 address in brackets."""
    return f"http://{host_port(host, port)}"


def host_port(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    host = _bare(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_on_loopback(url: str) -> bool:
    """Whether the URL's host is loopback's. Names below `localhost` may be resolved elsewhere."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return is_loopback(host) and not host.endswith(".localhost")


def listen(host: str, port: int, *, backlog: int = 128) -> socket.socket:
    """A listening socket; `::` is every address of the machine, of IPv4 too where the system allows it. Raises
    UsageError when the address cannot be taken."""
    host = _bare(host)
    try:
        if ":" not in host:
            return socket.create_server((host, port), backlog=backlog)
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number and number > 0 else getattr(error, "strerror", None) or str(error)
        where = host_port(host, port)
        raise UsageError(f"cannot listen on {where} ({reason}); choose another --port or --host") from None


class HostCheck:
    """The Host headers that a server of loadgen answers to.

    Any web site can point its own name to 127.0.0.1 and have the browser send requests there (DNS rebinding), with the
    site's name in the Host header. A server on loopback therefore answers only to loopback's names, to the name that it
    listens on, and to names without a dot, which no web site has (a service in a Compose project). Elsewhere it answers
    to every name.
    """

    def __init__(self, host: str, address: str) -> None:
        """`host` as the user gave it, `address` the IP address that the socket is bound to."""
        self._host = _bare(host).lower()
        self._checks = is_loopback(address)

    def refusal(self, header: str | None) -> str | None:
        """Why a request with this Host header (None: without one) is refused; None where it is not."""
        if not self._checks or header is None:
            return None
        found = _HOST.fullmatch(header)
        name = _bare(found[1]).lower().removesuffix(".") if found else ""
        if name and (name == self._host or is_loopback(name) or _SERVICE.fullmatch(name)):
            return None
        return f"Host {visible(header[:80])!r} is refused: this server listens on loopback only; use 127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether an IP address or a name is loopback's: 127.0.0.0/8, ::1, localhost (RFC 6761, section 6.3)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _bare(host: str) -> str:
    """An IPv6 address without the brackets that it has in a URL."""
    return host.removeprefix("[").removesuffix("]")


def guard(app: web.Application, listening: socket.socket, host: str) -> None:
    """Refuses, with 403, requests that `HostCheck` refuses; every answer carries `nosniff`. Before the app starts."""
    from aiohttp import web  # here, as below: who only needs an address does not wait for it

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
    from aiohttp import web

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
        from aiohttp import web

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
    from aiohttp import web
    from prometheus_client import generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
