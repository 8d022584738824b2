"""RAPL: the energy counters of CPU packages, from the kernel's powercap tree."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadgen.errors import UsageError
from loadgen.power.sample import GpuInfo, PowerSample

POWERCAP = Path("/sys/class/powercap")
POWERCAP_VARIABLE = "LOADGEN_POWERCAP"
"""Names the tree where it is mounted elsewhere, as in a container."""
_PACKAGE = re.compile(r"intel-rapl:\d+")
"""A package's zone; those below it (core, dram) have a further number. AMD's packages have the same name."""
WRAP_MAX_W = 5000.0
"""A counter that would have used more power than this to wrap around did not wrap: no CPU package draws as much."""


@dataclass
class _Zone:
    folder: Path
    range_uj: int
    """Where energy_uj starts again at 0."""
    raw_uj: int
    read_ns: int
    """When raw_uj was read."""
    wrapped_uj: int = 0
    """What the wraps so far add to energy_uj."""

    def counter_j(self, clock_ns: Callable[[], int]) -> float:
        """The counter now, wraps added; a fall that was no wrap is read once more and then shown unchanged."""
        raw_uj, now_ns = _integer(self.folder / "energy_uj"), clock_ns()
        if raw_uj < self.raw_uj and not self._wrapped(raw_uj, now_ns):
            raw_uj, now_ns = _integer(self.folder / "energy_uj"), clock_ns()
        if raw_uj < self.raw_uj and self._wrapped(raw_uj, now_ns):
            self.wrapped_uj += self.range_uj
        self.raw_uj, self.read_ns = raw_uj, now_ns
        return (self.wrapped_uj + raw_uj) / 1e6

    def _wrapped(self, raw_uj: int, now_ns: int) -> bool:
        """Whether a fall to `raw_uj` is the counter's way past the end of its range."""
        used_uj = self.range_uj - self.raw_uj + raw_uj
        return used_uj < self.range_uj / 2 and used_uj * 1e3 <= WRAP_MAX_W * (now_ns - self.read_ns)

    def limits_w(self) -> dict[str, float]:
        """The power limits that can be read, by name (long_term, short_term, peak_power)."""
        limits_w: dict[str, float] = {}
        for name in sorted(self.folder.glob("constraint_*_name")):
            try:
                limit_uw = _integer(self.folder / name.name.replace("_name", "_power_limit_uw"))
                if limit_uw > 0:
                    limits_w[name.read_text().strip()] = limit_uw / 1e6
            except (OSError, ValueError):
                continue
        return limits_w


class RaplReader:
    """Packages as `rapl:package-<n>`, with a counter that does not fall when energy_uj wraps around; no power field.

    Where several packages have one name, the zone's folder is added: `rapl:package-0@intel-rapl:1`. A fall by less than
    half the range, or one that as a wrap would mean more than 5 kW, is a reset (the kernel module was loaded again) and
    stays visible as a fall. Two wraps between readings go unseen: at 500 W and a range of 262 kJ, one takes 9 minutes.
    """

    def __init__(self, root: Path | None = None, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """`root`: $LOADGEN_POWERCAP, else /sys/class/powercap.

        Raises UsageError when there is no package zone, or one that this user may not read.
        """
        root = root or Path(os.environ.get(POWERCAP_VARIABLE) or POWERCAP)
        self._clock_ns = clock_ns
        folders = [f for f in root.glob("intel-rapl:*") if _PACKAGE.fullmatch(f.name)]
        found: list[tuple[str, _Zone]] = []
        for folder in sorted(folders, key=lambda f: int(f.name.partition(":")[2])):
            try:
                name = (folder / "name").read_text().strip()
                if name.startswith("package"):
                    range_uj = _integer(folder / "max_energy_range_uj")
                    found.append((name, _Zone(folder, range_uj, _integer(folder / "energy_uj"), clock_ns())))
            except PermissionError as error:
                raise UsageError(
                    f"only root may read {error.filename}: run `loadgen exporter --source rapl` as root and use it "
                    "with --power exporter=URL, or choose --power none"
                ) from error
            except (OSError, ValueError) as error:
                raise UsageError(f"the RAPL zone {folder} cannot be read ({error}): choose --power none") from error
        times = Counter(name for name, _ in found)
        self._zones = {f"rapl:{name}{f'@{zone.folder.name}' * (times[name] > 1)}": zone for name, zone in found}
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
                scope="package",
                power_limit_enforced_w=zone.limits_w().get("long_term"),
                power_limit_max_w=max(zone.limits_w().values(), default=None),
                supported={"counter_j": True, "power_instant_w": False, "power_average_w": False},
            )
            for index, (uuid, zone) in enumerate(self._zones.items())
        ]

    def read(self, uuid: str, *, slow: bool) -> PowerSample:
        """The package's counter; `slow` adds its enforced limit."""
        zone = self._zones[uuid]
        counter_j: float | None = None
        errors: tuple[str, ...] = ()
        before_ns = self._clock_ns()
        try:
            counter_j = zone.counter_j(self._clock_ns)
        except (OSError, ValueError) as error:
            errors = (f"counter_j: {error}",)
        after_ns = self._clock_ns()
        return PowerSample(
            t_ns=(before_ns + after_ns) // 2,
            latency_ns=after_ns - before_ns,
            gpu=uuid,
            counter_j=counter_j,
            power_limit_w=zone.limits_w().get("long_term") if slow else None,
            errors=errors,
        )

    def close(self) -> None:
        """Nothing is held open."""


def _integer(path: Path) -> int:
    return int(path.read_text())
