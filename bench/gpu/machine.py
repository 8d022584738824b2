"""Machine: what an offline machine has, so that only what it lacks is fetched for it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from loadgen.errors import UsageError

_GPU_QUERY = "name,uuid,driver_version,memory.total,power.limit"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What matters for what is fetched and installed."""

    python: str
    """Version, as 3.12.3."""
    processor: str
    """As `uname -m` says."""
    glibc: str
    """Version; wheels are built for one."""
    packages: dict[str, str]
    """Distribution (normalized name) -> version, as this Python sees them."""
    gpus: tuple[str, ...] = ()
    """A line of nvidia-smi each."""
    cpus: int | None = None
    memory_bytes: int | None = None
    free_bytes: dict[str, int] | None = None
    """Folder -> free space."""


def look() -> Machine:
    """This machine, seen by the Python that runs this."""
    packages = {normalized(found.metadata["Name"]): found.version for found in metadata.distributions()}
    return Machine(
        python=platform.python_version(),
        processor=platform.machine(),
        glibc=platform.libc_ver()[1],
        packages=dict(sorted(packages.items())),
        gpus=_gpus(),
        cpus=os.cpu_count(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_bytes={folder: shutil.disk_usage(folder).free for folder in ("/tmp", "/dev/shm") if Path(folder).is_dir()},
    )


def read_machine(path: Path) -> Machine:
    """What `look` printed there. Raises UsageError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Machine(**content | {"gpus": tuple(content.get("gpus", ()))})
    except OSError:
        raise UsageError(f"{path} cannot be read; make it there with `python3 -m bench.gpu look`") from None
    except (ValueError, TypeError, AttributeError):
        raise UsageError(f"{path} is not what `look` prints; make it anew there") from None


def to_json(machine: Machine) -> str:
    return json.dumps(asdict(machine), indent=1) + "\n"


def normalized(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _gpus() -> tuple[str, ...]:
    if not shutil.which("nvidia-smi"):
        return ()
    command = ["nvidia-smi", f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return tuple(asked.stdout.strip().splitlines()) if asked.returncode == 0 else ()
