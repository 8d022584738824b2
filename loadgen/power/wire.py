"""The JSON that an exporter sends, and the energies of a window from a sampler's recent samples."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter

import msgspec

from loadgen.power.energy import MARGIN_S, WindowEnergy, energy_of_window
from loadgen.power.sample import GpuInfo, PowerSample, SourceKind
from loadgen.power.trace import Calibration

PAGE_SAMPLES = 5000
"""Most samples in one response; a full page says that there are more."""


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
    """By UUID: the newest full reading, with the GPU's processes."""
    server_pid: int | None = None
    """The server whose GPUs these are, where it reads its own sensors, as a simulated one does."""


class SamplePage(msgspec.Struct, frozen=True, kw_only=True):
    """GET /samples: a stretch of the exporter's samples, oldest first."""

    next: int
    """What to ask for next."""
    lost: int
    """Samples of this stretch that were forgotten before this request."""
    samples: tuple[PowerSample, ...]
    more: bool = False
    """Further samples are there already."""


class Windows(msgspec.Struct, frozen=True, kw_only=True):
    """GET /window: one for each GPU."""

    windows: tuple[WindowEnergy, ...]


REACH_NS = 300_000_000
"""Samples must reach this far beyond an instant to bracket it between updates of the energy counter (each 0.1 s)."""
PATIENCE_NS = 5_000_000_000
"""A GPU that is not sampled this long after the window's end will not be: its window is invalid, not early."""


class NotCoveredError(Exception):
    """The window has not been sampled to its end yet; `str(error)` is one sentence."""


def window_energies(
    samples: Sequence[PowerSample], infos: Sequence[GpuInfo], t0_ns: int, t1_ns: int, now_ns: int
) -> tuple[WindowEnergy, ...]:
    """Energy of each GPU of `infos` over [t0_ns, t1_ns], in their order; `samples` are of any GPUs, oldest first.

    Raises NotCoveredError while samples that the window's end needs may still come.
    """
    margin_ns = round(MARGIN_S * 1e9)
    first = bisect_left(samples, t0_ns - margin_ns, key=attrgetter("t_ns"))
    behind = bisect_left(samples, t1_ns + margin_ns, key=attrgetter("t_ns"))
    of_gpu: dict[str, list[PowerSample]] = {info.uuid: [] for info in infos}
    for sample in samples[first:behind]:
        if sample.gpu in of_gpu:
            of_gpu[sample.gpu].append(sample)
    for uuid, own in of_gpu.items():
        if now_ns < t1_ns + PATIENCE_NS and (not own or own[-1].t_ns < t1_ns + REACH_NS):
            raise NotCoveredError(f"{uuid} is not sampled beyond t1={t1_ns} yet; ask again in a second")
    return tuple(_energy(info, of_gpu[info.uuid], t0_ns, t1_ns) for info in infos)


def _energy(info: GpuInfo, samples: Sequence[PowerSample], t0_ns: int, t1_ns: int) -> WindowEnergy:
    energy = energy_of_window(samples, t0_ns, t1_ns, limit_w=info.plausible_limit_w, scope=info.scope)
    energy = msgspec.structs.replace(energy, gpu=info.uuid)
    if info.mig_reason is None:
        return energy
    return msgspec.structs.replace(energy, verdict="invalid", reasons=(info.mig_reason, *energy.reasons))
