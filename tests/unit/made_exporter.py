"""Exporters over samples that a test made, served for real on a port of their own."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from aiohttp import web

from loadgen.power.sample import GpuInfo, PowerSample
from loadgen.power.sampler import SamplerStatistics
from loadgen.webserver import guard

GPU = "GPU-0a"
OTHER = "GPU-1b"
FIELDS = (
    "counter_j", "power_instant_w", "power_average_w", "temperature_c", "sm_clock_hz", "memory_clock_hz",
    "throttle_reasons", "power_limit_w", "memory_used_bytes", "utilization",
)  # fmt: skip


def info(uuid: str = GPU, index: int = 0, *, lacks: Sequence[str] = (), **more: object) -> GpuInfo:
    supported = {field: field not in lacks for field in FIELDS}
    return GpuInfo(uuid=uuid, index=index, name="Made GPU", supported=supported, **more)


def sample(t_ns: int, gpu: str = GPU, **readings: object) -> PowerSample:
    return PowerSample(t_ns=t_ns, latency_ns=100_000, gpu=gpu, **readings)


def steady(t0_ns: int, t1_ns: int, watts: float = 200.0, gpu: str = GPU) -> list[PowerSample]:
    """A sample each 25 ms; the counter rises each 100 ms."""
    return [
        sample(
            t_ns, gpu, power_instant_w=watts, counter_j=watts * ((t_ns - t0_ns) // 100_000_000) * 0.1 + 1000.0
        )
        for t_ns in range(t0_ns, t1_ns, 25_000_000)
    ]  # fmt: skip


class MadeSampler:
    """What a Sampler remembers, given by the test; `forgotten` samples came before them."""

    period_s = 0.025

    def __init__(self, samples: Sequence[PowerSample] = (), forgotten: int = 0) -> None:
        self.samples = list(samples)
        self.forgotten = forgotten
        self.failure: str | None = None

    def since(self, sequence: int) -> tuple[int, int, list[PowerSample]]:
        if self.failure is not None:
            raise RuntimeError(self.failure)
        head = self.forgotten + len(self.samples)
        first = min(max(sequence, self.forgotten), head)
        return head, max(0, self.forgotten - sequence), self.samples[first - self.forgotten :]

    def statistics(self) -> SamplerStatistics:
        return SamplerStatistics(
            period_s=self.period_s, ticks=len(self.samples), ticks_missed=0, lateness_ms_p50=0.1, lateness_ms_p99=0.4,
            lateness_ms_max=0.5, slow_reads={}, lost={},
        )  # fmt: skip


@contextmanager
def served(app: web.Application, port: int = 0) -> Iterator[str]:
    """The URL under which `app` answers, from an event loop in a thread of its own."""
    listening = socket.create_server(("127.0.0.1", port))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    loop = asyncio.new_event_loop()
    guard(app, listening, "127.0.0.1")
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        await web.SockSite(runner, listening).start()

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield url
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def get(url: str) -> tuple[int, bytes]:
    """Status and body of a GET."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def response(url: str, **headers: str) -> http.client.HTTPResponse:
    """The answer to a GET with these headers, whatever its status."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    connection.request("GET", url.removeprefix(f"http://{parts.netloc}"), headers=headers)
    return connection.getresponse()


def wait_for(condition: object, what: str, timeout_s: float = 10.0) -> None:
    """Returns as soon as `condition()` holds; fails the test when it does not."""
    deadline_s = time.monotonic() + timeout_s
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.01)
