"""PowerSample and GpuInfo: what every power source gives, real or simulated, near or far."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

SourceKind = Literal["nvml", "rapl", "simulated"]

GPU_LOST = "gpu: "
"""How the one entry in `errors` of a lost GPU's last sample begins; the rest says why."""


class PowerSample(msgspec.Struct, frozen=True, kw_only=True, tag="power", gc=False):
    """One reading of one GPU (or CPU package). None: not supported, failed, or not due at this tick."""

    t_ns: int
    """CLOCK_MONOTONIC at the middle of the reading, on the machine that read."""
    latency_ns: int
    """How long the reading took."""
    gpu: str
    """UUID (NVML), `simulated-<name>` or `rapl:<zone>`."""
    counter_j: float | None = None
    """Energy since some past instant (NVML field 83, mJ / 1000); a staircase that only a reset lowers."""
    power_instant_w: float | None = None
    """NVML field 186."""
    power_average_w: float | None = None
    """NVML field 185: mean of about the last second."""
    temperature_c: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    throttle_reasons: int | None = None
    """Bit mask of nvmlDeviceGetCurrentClocksEventReasons."""
    power_limit_w: float | None = None
    """Enforced limit."""
    memory_used_bytes: int | None = None
    utilization: float | None = None
    """Share of NVML's last sampling period (a sixth of a second to a second) in which any kernel ran, 0 to 1."""
    errors: tuple[str, ...] = ()
    """`field: NVML_ERROR_...` of each field that failed at this tick other than by not being supported.

    The last sample of a lost GPU has `gpu: NVML_ERROR_GPU_IS_LOST` (GPU_LOST) instead, and no reading.
    """


class GpuInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change while a GPU is sampled."""

    uuid: str
    index: int
    name: str
    driver: str | None = None
    vbios: str | None = None
    power_limit_enforced_w: float | None = None
    power_limit_default_w: float | None = None
    power_limit_max_w: float | None = None
    memory_total_bytes: int | None = None
    mig: bool = False
    """MIG mode: power and energy are the whole GPU's, whoever uses the other slices."""
    supported: dict[str, bool] = {}
    """Field of PowerSample -> whether this GPU has it."""
    simulated: bool = False


class GpuLostError(Exception):
    """The GPU no longer answers (NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED)."""


class PowerReader(Protocol):
    """A machine's power sensors. Not thread-safe: one sampler owns it."""

    kind: SourceKind

    def gpus(self) -> list[GpuInfo]: ...

    def read(self, uuid: str, *, slow: bool) -> PowerSample:
        """One sample; `slow` asks for clocks, temperature, throttle reasons, limit and memory too.

        Raises GpuLostError when the GPU is gone for good.
        """
        ...

    def close(self) -> None: ...
