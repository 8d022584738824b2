"""The simulated GPU beside the engine: the power of its steps, sampled and served as an exporter does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import msgspec
from aiohttp import web

from loadgen.power.exporter import add_routes
from loadgen.power.faults import Fault
from loadgen.power.sample import GpuInfo
from loadgen.power.sampler import Sampler
from loadgen.power.simulated import PowerCurve, Sensors, SimulatedReader
from loadgen.serving.simulated.cost import Gpu

PREFIX = "/power"


class GpuOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the GPU is called and how it shows itself."""

    preset: str
    sensors: Sensors = Sensors()
    faults: tuple[Fault, ...] = ()
    time_scale: float = 1.0
    """How many times faster than modelled; only named here, the GPU given is scaled already."""


class SimulatedGpu:
    """Give it the power of each step through `curve`; it serves `/power/clock`, `/gpus`, `/samples`, ..."""

    def __init__(self, gpu: Gpu, options: GpuOptions, *, memory_used_bytes: Callable[[], int], seed: int) -> None:
        self.curve = PowerCurve(gpu.idle_w, time.monotonic_ns())
        scale = "" if options.time_scale == 1 else f", time and power x {options.time_scale:g}"
        self.info = GpuInfo(
            uuid=f"SIMULATED-{options.preset}",
            index=0,
            name=f"SIMULATED {gpu.name}{scale}",
            power_limit_enforced_w=gpu.limit_w,
            power_limit_default_w=gpu.limit_w,
            power_limit_max_w=gpu.limit_w,
            memory_total_bytes=int(gpu.memory_bytes),
            simulated=True,
        )
        self._reader = SimulatedReader(
            self.curve,
            self.info,
            sensors=options.sensors,
            faults=options.faults,
            memory_used_bytes=memory_used_bytes,
            seed=seed,
        )

    def add_to(self, app: web.Application) -> None:
        """Serve below /power of the application; samples are taken while it runs."""
        infos: Sequence[GpuInfo] = self._reader.gpus()
        sampler = Sampler(self._reader, [self.info.uuid])
        add_routes(app, sampler, infos, "simulated", prefix=PREFIX, server_pid=os.getpid())

        async def start(_app: web.Application) -> None:
            sampler.start()

        async def stop(_app: web.Application) -> None:
            sampler.stop()

        app.on_startup.append(start)
        app.on_cleanup.append(stop)
