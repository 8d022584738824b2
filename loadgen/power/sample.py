"""PowerSample and GpuInfo: what every power source gives; the reasons for which a GPU lowers its clocks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Protocol

import msgspec

from loadgen.bounds import Amount, Bytes, Nanoseconds, Text

Bits = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
SourceKind = Literal["nvml", "rapl", "simulated"]
Scope = Literal["gpu", "module", "package"]
"""What an energy counter counts: a GPU, the whole module of a superchip (GPU, CPU and their memory), a CPU package."""

GPU_LOST = "gpu: "
"""How the one entry in `errors` of a lost GPU's last sample begins; the rest says why."""


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process that NVML lists on a GPU."""

    pid: int
    kind: Literal["compute", "graphics", "mps"] = "compute"
    """NVML's list that it is on; `mps`: a client of the Multi-Process Service."""
    memory_bytes: Bytes | None = None
    """GPU memory; None where the driver does not report it."""
    name: str | None = None
    lineage: tuple[int, ...] = ()
    """Its process group, session and ancestors, nearest first; empty: the process cannot be seen from here, as in a
    container."""

    def __str__(self) -> str:
        memory = "unknown memory" if self.memory_bytes is None else f"{self.memory_bytes / 2**30:.1f} GiB"
        return f"process {self.pid} ({self.name or 'name not readable'}, {memory})"


class PowerSample(msgspec.Struct, frozen=True, kw_only=True, tag="power", gc=False):
    """One reading of one GPU (or CPU package). None: not supported, failed, or not due at this tick."""

    t_ns: Nanoseconds
    """CLOCK_MONOTONIC at the middle of the reading, on the machine that read."""
    latency_ns: Nanoseconds
    """How long the reading took."""
    gpu: str
    """UUID (NVML), `simulated-<name>` or `rapl:<zone>`."""
    counter_j: Amount | None = None
    """Energy since some past instant (NVML field 83, mJ / 1000); a staircase that only a reset lowers."""
    power_instant_w: Amount | None = None
    """NVML field 186."""
    power_average_w: Amount | None = None
    """NVML field 185: mean of about the last second."""
    temperature_c: Amount | None = None
    sm_clock_hz: Amount | None = None
    memory_clock_hz: Amount | None = None
    throttle_reasons: Bits | None = None
    """Bit mask of nvmlDeviceGetCurrentClocksEventReasons."""
    power_limit_w: Amount | None = None
    """Enforced limit."""
    memory_used_bytes: Bytes | None = None
    utilization: Amount | None = None
    """Share of NVML's last sampling period (a sixth of a second to a second) in which any kernel ran, 0 to 1."""
    processes: tuple[GpuProcess, ...] | None = None
    """Who uses the GPU: nvmlDeviceGetComputeRunningProcesses, GetGraphicsRunningProcesses and
    GetMPSComputeRunningProcesses."""
    errors: tuple[str, ...] = ()
    """`field: NVML_ERROR_...` of each field that failed at this tick other than by not being supported. The last sample
    of a lost GPU has `gpu: NVML_ERROR_GPU_IS_LOST` (GPU_LOST) instead, and no reading."""

    @property
    def has_energy(self) -> bool:
        """Whether the counter, instantaneous or average power was read."""
        return not (self.counter_j is None and self.power_instant_w is None and self.power_average_w is None)


READINGS = PowerSample.__struct_fields__[3:-2]
"""The fields that are measured: `counter_j` to `utilization`."""


class GpuInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change while a GPU is sampled."""

    uuid: Text
    index: int = 0
    name: Text = ""
    driver: Text | None = None
    vbios: Text | None = None
    power_limit_enforced_w: Amount | None = None
    power_limit_default_w: Amount | None = None
    power_limit_max_w: Amount | None = None
    memory_total_bytes: Bytes | None = None
    mig: bool = False
    """MIG mode: power and energy are the whole GPU's, including the other slices."""
    scope: Scope = "gpu"
    """What the energy counter counts. Power is the GPU's own in either scope."""
    supported: dict[Text, bool] = {}
    """Field of PowerSample -> whether this GPU has it."""
    simulated: bool = False

    @property
    def plausible_limit_w(self) -> float | None:
        """The limit that its power may not exceed: the enforced one; of a CPU package, which may exceed its long-term
        limit for a while, the highest."""
        return self.power_limit_max_w if self.scope == "package" else self.power_limit_enforced_w

    @property
    def mig_reason(self) -> str | None:
        """Why its energy cannot be attributed to one user; None where it can."""
        if not self.mig:
            return None
        return (
            f"{self.name} {self.uuid} is in MIG mode: its power and energy are the whole GPU's, including the other "
            "slices"
        )


_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str | None:
    """The id of this kernel's boot, None where the kernel does not tell it."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return None


class ClockOffset(msgspec.Struct, frozen=True, kw_only=True):
    """Another machine's clock, an exporter's or a client process's, minus ours."""

    offset_ns: int
    bound_ns: int
    """The true offset is within this of `offset_ns`: half the quickest exchange."""
    same_machine: bool
    """Both read one clock: the offset is exactly 0."""


class UnreadableGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU that is present but cannot be read: lost, or not for this user or container."""

    index: int
    code: str
    """NVML's: NVML_ERROR_GPU_IS_LOST, NVML_ERROR_NO_PERMISSION, ..."""
    uuid: str | None = None
    """None where not even that can be read."""

    def __str__(self) -> str:
        return f"GPU {self.index}{f' {self.uuid}' if self.uuid else ''} cannot be read ({self.code})"


class GpuLostError(Exception):
    """The GPU no longer answers (NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED)."""


class PowerReader(Protocol):
    """A machine's power sensors. Not thread-safe: one sampler owns it."""

    def gpus(self) -> list[GpuInfo]: ...

    def read(self, uuid: str, *, slow: bool) -> PowerSample:
        """One sample; `slow`: also clocks, temperature, throttle reasons, limit, memory. Raises GpuLostError."""
        ...

    def close(self) -> None: ...


SW_POWER_CAP = 0x04
HW_SLOWDOWN = 0x08
SW_THERMAL_SLOWDOWN = 0x20
HW_THERMAL_SLOWDOWN = 0x40
HW_POWER_BRAKE_SLOWDOWN = 0x80

NAMES = {
    0x01: "GpuIdle",
    0x02: "ApplicationsClocksSetting",
    SW_POWER_CAP: "SwPowerCap",
    HW_SLOWDOWN: "HwSlowdown",
    0x10: "SyncBoost",
    SW_THERMAL_SLOWDOWN: "SwThermalSlowdown",
    HW_THERMAL_SLOWDOWN: "HwThermalSlowdown",
    HW_POWER_BRAKE_SLOWDOWN: "HwPowerBrakeSlowdown",
    0x100: "DisplayClockSetting",
}
"""Bit of nvmlDeviceGetCurrentClocksEventReasons -> its name (nvmlClocksEventReason... without the prefix)."""

FOREIGN = HW_SLOWDOWN | SW_THERMAL_SLOWDOWN | HW_THERMAL_SLOWDOWN | HW_POWER_BRAKE_SLOWDOWN
"""Heat or the supply slowed the GPU: the window shows the cooling, not the precision."""


def throttle_names(mask: int) -> list[str]:
    """The names of the mask's bits, lowest first; an unknown bit as hexadecimal."""
    bits = [1 << i for i in range(mask.bit_length()) if mask >> i & 1]
    return [NAMES.get(bit, f"{bit:#x}") for bit in bits]
