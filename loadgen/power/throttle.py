"""Throttle: the reasons for which a GPU lowers its clocks, and what each means for a measurement."""

from __future__ import annotations

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


def names(mask: int) -> list[str]:
    """The names of the mask's bits, lowest first; a bit without one by its number."""
    bits = [1 << i for i in range(mask.bit_length()) if mask >> i & 1]
    return [NAMES.get(bit, f"{bit:#x}") for bit in bits]
