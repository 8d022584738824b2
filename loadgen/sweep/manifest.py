"""manifest.json: what was run, by what, on what; rewritten whole (and atomically) as facts come in."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import Any

import msgspec

from loadgen._version import __version__
from loadgen.power.feed import PowerFacts
from loadgen.power.rest import Rest
from loadgen.serving.target import Target

SCHEMA = 1
VECTORS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd")
"""Flags of /proc/cpuinfo that decide how fast a CPU multiplies which numbers."""
_PACKAGES = ("aiohttp", "httptools", "msgspec", "numpy", "openai", "pandas", "pyarrow", "uvloop")


class Manifest:
    """The manifest of a running sweep."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self._path = path
        self.content = content

    def add_server(self, repeat: int, target: Target, facts: dict[str, Any]) -> None:
        """A server came up: who it is and, if loadgen launched it, its argv, version and kernels."""
        self.content["servers"].append({"repeat": repeat, **msgspec.to_builtins(target), **facts})
        self.write()

    def add_idle(self, rest: Rest) -> None:
        """Power (W) and sensors before the first server started."""
        self.content["power"] |= {"idle_w": rest.power_w, "idle_calibration": msgspec.to_builtins(rest.calibration)}
        self.write()

    def add_power(self, repeat: int, target: str, facts: PowerFacts, rest: Rest) -> dict[str, Any]:
        """The sensors beside one server: GPUs, clock offset, and calibration and power (W) at rest, model loaded."""
        self.content["gpu"] = self.content["gpu"] or msgspec.to_builtins(facts.gpus)
        entry = {"repeat": repeat, "target": target, **msgspec.to_builtins(facts), "rest_w": rest.power_w}
        entry |= {"calibration": msgspec.to_builtins(rest.calibration)}
        self.content.setdefault("power_blocks", []).append(entry)
        self.write()
        return entry

    def add_failure(self, repeat: int, target: str, error: str) -> None:
        """A server failed and its cells of this repeat are missing."""
        self.content["failures"].append({"repeat": repeat, "target": target, "error": error})
        self.write()

    def close(self) -> None:
        """A second clock anchor shows the wall clock's drift over the run."""
        self.content["clock_anchors"].append(clock_anchor())
        self.write()

    def write(self) -> None:
        text = msgspec.json.format(msgspec.json.encode(self.content), indent=2)
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(text + b"\n")
        partial.replace(self._path)


def clock_anchor() -> dict[str, int]:
    """The same instant on CLOCK_MONOTONIC and on the wall clock, and how far apart the two readings may be."""
    before_ns = monotonic_ns()
    wall_ns = time_ns()
    after_ns = monotonic_ns()
    return {"monotonic_ns": (before_ns + after_ns) // 2, "unix_ns": wall_ns, "uncertainty_ns": after_ns - before_ns}


def host_facts() -> dict[str, Any]:
    """The machine the client ran on."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_line("model name") or platform.processor() or None,
        "cpu_vectors": sorted(set(_cpu_line("flags").split()).intersection(VECTORS)),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_1min": os.getloadavg()[0],
    }


def client_facts() -> dict[str, Any]:
    """Versions of everything that touches a stamp."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"loadgen": __version__, "python": sys.version.split()[0], "packages": versions}


def _cpu_line(name: str) -> str:
    """The first CPU's line of /proc/cpuinfo, empty where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""
