"""RAPL: the energy counters of CPU packages, from the kernel's powercap tree."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from loadgen.errors import UsageError
from loadgen.power.sample import GpuInfo, PowerSample, SourceKind

POWERCAP = Path("/sys/class/powercap")
POWERCAP_VARIABLE = "LOADGEN_POWERCAP"
"""Names the tree where it is mounted elsewhere, as in a container."""
_PACKAGE = re.compile(r"intel-rapl:\d+")
"""A package's zone; those below it (core, dram) have a further number. AMD's packages bear the same name."""


@dataclass
class _Zone:
    folder: Path
    range_uj: int
    """Where energy_uj starts again at 0."""
    raw_uj: int
    turned_uj: int = 0
    """What the turns so far add to energy_uj."""


class RaplReader:
    """Packages as `rapl:package-<n>`, with a counter that does not fall when energy_uj wraps around; no power field.

    A fall by less than half the range is no turn but a reset (the module loaded anew) and stays visible as a fall. Two
    turns between readings would go unseen: at 500 W and a range of 262 kJ one takes nine minutes.
    """

    kind: SourceKind = "rapl"

    def __init__(self, root: Path | None = None) -> None:
        """`root`: $LOADGEN_POWERCAP, else /sys/class/powercap.

        Raises UsageError when there is no package zone, or one that this user may not read.
        """
        root = root or Path(os.environ.get(POWERCAP_VARIABLE) or POWERCAP)
        self._zones: dict[str, _Zone] = {}
        folders = sorted(f for f in root.glob("intel-rapl:*") if _PACKAGE.fullmatch(f.name))
        for folder in folders:
            try:
                name = (folder / "name").read_text().strip()
                if name.startswith("package"):
                    self._zones[f"rapl:{name}"] = _Zone(
                        folder, _integer(folder / "max_energy_range_uj"), _integer(folder / "energy_uj")
                    )
            except PermissionError as error:
                raise UsageError(
                    f"{error.filename} may be read by root only: run `loadgen exporter --source rapl` as root and use "
                    "it with --power exporter=URL, or choose --power none"
                ) from error
            except (OSError, ValueError) as error:
                raise UsageError(f"the RAPL zone {folder} cannot be read ({error}): choose --power none") from error
        if not self._zones:
            raise UsageError(
                f"no RAPL package zone under {root}: load the kernel module intel_rapl_msr (a virtual machine has no "
                "such counter), or choose --power none"
            )

    def gpus(self) -> list[GpuInfo]:
        """One entry per package, in the order of their zones."""
        return [
            GpuInfo(
                uuid=uuid,
                index=index,
                name=f"CPU {uuid.removeprefix('rapl:')}",
                power_limit_enforced_w=_long_term_limit_w(zone.folder),
                supported={"counter_j": True, "power_instant_w": False, "power_average_w": False},
            )
            for index, (uuid, zone) in enumerate(self._zones.items())
        ]

    def read(self, uuid: str, *, slow: bool) -> PowerSample:
        """The package's counter; `slow` adds its enforced limit."""
        zone = self._zones[uuid]
        counter_j: float | None = None
        errors: tuple[str, ...] = ()
        before_ns = time.monotonic_ns()
        try:
            raw_uj = _integer(zone.folder / "energy_uj")
        except (OSError, ValueError) as error:
            after_ns = time.monotonic_ns()
            errors = (f"counter_j: {error}",)
        else:
            after_ns = time.monotonic_ns()
            if zone.raw_uj - raw_uj > zone.range_uj / 2:
                zone.turned_uj += zone.range_uj
            zone.raw_uj = raw_uj
            counter_j = (zone.turned_uj + raw_uj) / 1e6
        return PowerSample(
            t_ns=(before_ns + after_ns) // 2,
            latency_ns=after_ns - before_ns,
            gpu=uuid,
            counter_j=counter_j,
            power_limit_w=_long_term_limit_w(zone.folder) if slow else None,
            errors=errors,
        )

    def close(self) -> None:
        """Holds nothing open."""


def _integer(path: Path) -> int:
    return int(path.read_text())


def _long_term_limit_w(folder: Path) -> float | None:
    for name in sorted(folder.glob("constraint_*_name")):
        try:
            if name.read_text().strip() == "long_term":
                return _integer(folder / name.name.replace("_name", "_power_limit_uw")) / 1e6
        except (OSError, ValueError):
            return None
    return None
