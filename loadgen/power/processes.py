"""Processes on a GPU: NVML's lists, and what /proc says of each process."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

import pynvml

from loadgen.power.sample import GpuProcess

PROC = Path("/proc")
_Kind = Literal["compute", "graphics", "mps"]
_LISTS: dict[_Kind, str] = {
    "mps": "nvmlDeviceGetMPSComputeRunningProcesses",
    "compute": "nvmlDeviceGetComputeRunningProcesses",
    "graphics": "nvmlDeviceGetGraphicsRunningProcesses",
}
"""A process on several lists has the kind of the first: clients of the Multi-Process Service are on two."""
_VERSIONS = ("_v3", "_v2")
_UNKNOWN_LIST = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
_DEPTH = 64
"""Most ancestors that are followed."""

Lists = dict[_Kind, tuple[str, ...]]
"""Kind -> the functions to ask, the newest first; the next is for drivers that do not know the one before."""


def known_lists() -> Lists:
    """Every list that this nvidia-ml-py knows."""
    named = {kind: tuple(f"{name}{version}" for version in _VERSIONS) for kind, name in _LISTS.items()}
    return {kind: tuple(name for name in names if hasattr(pynvml, name)) for kind, names in named.items()}


def read_processes(handle: Any, lists: Lists) -> tuple[GpuProcess, ...] | None:
    """The processes on a device by `lists`, ascending by pid; None where it has no list at all.

    What the device or driver does not support is taken out of `lists`. Raises NVMLError for any other failure.
    """
    found: dict[int, GpuProcess] = {}
    for kind in tuple(lists):
        for entry in _listed(handle, kind, lists):
            pid = int(entry.pid)
            if pid not in found:
                name, lineage = seen_process(pid)
                memory = entry.usedGpuMemory
                found[pid] = GpuProcess(
                    pid=pid, kind=kind, memory_bytes=None if memory is None else int(memory), name=name, lineage=lineage
                )
    return tuple(found[pid] for pid in sorted(found)) if lists else None


def _listed(handle: Any, kind: _Kind, lists: Lists) -> list[Any]:
    while functions := lists[kind]:
        try:
            entries: list[Any] = getattr(pynvml, functions[0])(handle)
            return entries
        except pynvml.NVMLError as error:
            if error.value not in _UNKNOWN_LIST:
                raise
            lists[kind] = functions[1:]
    del lists[kind]
    return []


def seen_process(pid: int) -> tuple[str | None, tuple[int, ...]]:
    """A process's name and lineage (see GpuProcess); (None, ()) where /proc does not show it."""
    first = _stat(pid)
    if first is None:
        return None, ()
    name, parent, group, session = first
    lineage = list(dict.fromkeys((pid, group, session)))
    while parent > 0 and parent not in lineage[3:] and len(lineage) < _DEPTH:
        lineage.append(parent)
        above = _stat(parent)
        if above is None:
            break
        parent = above[1]
    return name, tuple(dict.fromkeys(lineage))


def _stat(pid: int) -> tuple[str, int, int, int] | None:
    """(name, parent, process group, session) of a process."""
    with contextlib.suppress(OSError, ValueError):
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        begin, end = text.index("("), text.rindex(")")
        _state, parent, group, session = text[end + 1 :].split()[:4]
        return text[begin + 1 : end], int(parent), int(group), int(session)
    return None
