"""A stub of NVIDIA's library with GPUs whose power is known, for the real nvidia-ml-py to load (see nvml_stub.c)."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from programs import compiler

SOURCE = Path(__file__).with_name("nvml_stub.c")


def build_stub(folder: Path) -> Path:
    """Compiles libnvidia-ml.so.1 into `folder` and returns its path."""
    library = folder / "libnvidia-ml.so.1"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler(), *flags, "-o", str(library), str(SOURCE)], check=True)
    return library


def uuid_of(index: int) -> str:
    return f"GPU-5709b000-0000-0000-0000-{index:012d}"


@dataclass(frozen=True)
class Curve:
    """The power of the stub's GPUs over CLOCK_MONOTONIC: `swing_w` more in the first half of each swing period."""

    base_w: int = 300
    swing_w: int = 0
    swing_period_ms: int = 1000
    counter_period_ms: int = 100

    def environment(self, library: Path, **settings: object) -> dict[str, str]:
        """This process's environment, with the stub in front of any real library; `settings` are NVML_STUB_*."""
        own = {
            "BASE_W": self.base_w,
            "SWING_W": self.swing_w,
            "SWING_PERIOD_MS": self.swing_period_ms,
            "COUNTER_PERIOD_MS": self.counter_period_ms,
            **settings,
        }
        paths = [str(library.parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        stub = {f"NVML_STUB_{name}": str(value) for name, value in own.items()}
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths), **stub}

    def energy_j(self, t0_ns: int, t1_ns: int, *, index: int = 0) -> float:
        """Energy of GPU `index` between two instants of CLOCK_MONOTONIC."""
        return self._since_boot_j(t1_ns, index) - self._since_boot_j(t0_ns, index)

    def _since_boot_j(self, t_ns: int, index: int) -> float:
        period_ns = self.swing_period_ms * 1_000_000
        periods, rest_ns = divmod(t_ns, period_ns)
        high_ns = periods * (period_ns // 2) + min(rest_ns, period_ns // 2)
        return ((self.base_w + 100 * index) * t_ns + self.swing_w * high_ns) / 1e9
