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
from loadgen.errors import UsageError
from loadgen.folder import Folder, read_json
from loadgen.power.clock import boot_id
from loadgen.power.feed import PowerFacts
from loadgen.power.owners import Owners
from loadgen.power.rest import Rest
from loadgen.serving.target import Target
from loadgen.sweep.manifestshape import ManifestShape
from loadgen.sweep.plan import Cell, check_size
from loadgen.visible import said

SCHEMA = 1
FILE = "manifest.json"
VECTORS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd")
"""Flags of /proc/cpuinfo that decide how fast a CPU multiplies which numbers."""
_PACKAGES = ("aiohttp", "httptools", "msgspec", "numpy", "openai", "pandas", "pyarrow", "uvloop")


class Manifest:
    """The manifest of a running sweep."""

    def __init__(self, run_dir: Path, content: dict[str, Any]) -> None:
        self.run_dir = run_dir
        self.content = content
        self.session = 0
        """Which of the run's sessions this is, from 1; set by `begin`."""

        self.resumed = False
        """This process did not begin the run."""

    def begin(self) -> None:
        """A session begins: the first, or one that resumes. Monotonic stamps of two sessions may be of two boots."""
        self.resumed = bool(self.content.get("sessions"))
        self._begin()

    def relaunch(self, why: str) -> None:
        """A server died and is launched again: with it begins a session, since its counters and its power do."""
        self._begin()
        self.warn(why)

    def _begin(self) -> None:
        sessions = self.content.setdefault("sessions", [])
        self.session = len(sessions) + 1
        about = {"session": self.session, "boot_id": boot_id(), "client": client_facts(), "host": host_facts()}
        sessions.append(about | {"warnings": []})
        self._anchor()
        self.write()

    def warn(self, sentence: str) -> None:
        """What is different in this session from the ones before."""
        self.content["sessions"][-1]["warnings"].append(sentence)
        self.write()

    def set_aside(self, cell: Cell, path: Path, why: str) -> None:
        """An unfinished cell is measured again; the file of its first attempt is to be found at `path`."""
        name = str(path.relative_to(self.run_dir))
        attempts = [entry for entry in self.content.get("attempts", []) if entry["file"] != name]
        attempts.append({"cell": cell.label, "file": name, "why": why, "resumed_in_session": self.session})
        self.content["attempts"] = attempts
        self.write()

    def add_server(self, repeat: int, target: Target, facts: dict[str, Any]) -> None:
        """A server came up: who it is and, if loadgen launched it, its argv, version and kernels."""
        entry = {"repeat": repeat, "session": self.session, **msgspec.to_builtins(target), **facts}
        self.content["servers"].append(entry)
        self.write()

    def add_idle(self, rest: Rest) -> None:
        """Power (W) and sensors before this session's first server started."""
        idle = {"idle_w": rest.power_w, "idle_calibration": msgspec.to_builtins(rest.calibration)}
        self.content["sessions"][-1] |= idle
        self.content["power"] = idle | self.content["power"]
        self.write()

    def add_power(self, repeat: int, target: str, facts: PowerFacts, rest: Rest, owners: Owners) -> dict[str, Any]:
        """The sensors beside one server: GPUs, clock offset, calibration and power (W) at rest with the model loaded,
        and whose the processes on the GPUs are."""
        self.content["gpu"] = self.content["gpu"] or msgspec.to_builtins(facts.gpus)
        entry = {"repeat": repeat, "target": target, "session": self.session}
        entry |= msgspec.to_builtins(facts) | {"rest_w": rest.power_w}
        entry |= {"calibration": msgspec.to_builtins(rest.calibration), "owners": msgspec.to_builtins(owners)}
        self.content.setdefault("power_blocks", []).append(entry)
        self.write()
        return entry

    def add_failure(self, repeat: int, target: str, error: str) -> None:
        """A server failed and its cells of this repeat are missing."""
        failure = {"repeat": repeat, "target": target, "session": self.session, "error": error}
        self.content["failures"].append(failure)
        self.write()

    def close(self) -> None:
        """A second clock anchor shows the wall clock's drift over the session."""
        self._anchor()
        self.write()

    def _anchor(self) -> None:
        self.content.setdefault("clock_anchors", []).append({"session": self.session, **clock_anchor()})

    def write(self) -> None:
        text = msgspec.json.format(msgspec.json.encode(self.content), indent=2)
        Folder(self.run_dir).write(FILE, text + b"\n", durable=True)


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """The manifest's content. Raises UsageError if there is none, it is of another schema, or it lacks what every
    report needs."""
    path = run_dir / FILE
    try:
        content: dict[str, Any] = read_json(run_dir, FILE, dict[str, Any])
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{run_dir} is no run directory: it has no manifest.json") from None
    except ValueError as error:
        raise UsageError(f"{path} is no manifest ({said(error)}); name a run directory of loadgen sweep") from None
    Folder(run_dir).check()
    if content.get("schema") != SCHEMA:
        raise UsageError(f"{path} has schema {content.get('schema')}, this version reads {SCHEMA}")
    try:
        shape = msgspec.convert(content, ManifestShape)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path} is not as loadgen sweep wrote it ({said(error)}); put that file back") from None
    config, sessions = shape.config, max(1, len(shape.sessions))
    check_size(str(path), len(config.targets), max(1, len(config.concurrency)), config.repeats, sessions)
    return content


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
