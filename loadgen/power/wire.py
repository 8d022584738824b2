"""What an exporter and its readers say to each other: JSON by msgspec."""

from __future__ import annotations

import msgspec

from loadgen.power.calibration import Calibration
from loadgen.power.energy import WindowEnergy
from loadgen.power.sample import GpuInfo, PowerSample, SourceKind

PAGE_SAMPLES = 5000
"""Most samples in one answer; a full page says that there are more."""


class ClockReading(msgspec.Struct, frozen=True, kw_only=True):
    """GET /clock: the exporter's clocks at one instant."""

    monotonic_ns: int
    unix_ns: int
    boot_id: str | None
    """/proc/sys/kernel/random/boot_id: equal on both sides where CLOCK_MONOTONIC is shared."""


class Gpus(msgspec.Struct, frozen=True, kw_only=True):
    """GET /gpus: what is sampled."""

    source: SourceKind
    simulated: bool
    gpus: tuple[GpuInfo, ...]
    calibration: dict[str, Calibration | None] = {}
    """By UUID; None until enough was sampled."""
    latest: dict[str, PowerSample] = {}
    """By UUID: the newest full reading of each GPU, with its processes."""
    server_pid: int | None = None
    """The server whose GPUs these are, where it reads its sensors itself, as a simulated one does."""


class SamplePage(msgspec.Struct, frozen=True, kw_only=True):
    """GET /samples: a stretch of the exporter's samples, oldest first."""

    next: int
    """What to ask for next."""
    lost: int
    """Samples of this stretch that were gone before they were asked for."""
    samples: tuple[PowerSample, ...]
    more: bool = False
    """Further samples are there already."""


class Windows(msgspec.Struct, frozen=True, kw_only=True):
    """GET /window: one per GPU."""

    windows: tuple[WindowEnergy, ...]
