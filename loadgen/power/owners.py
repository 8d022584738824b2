"""Owners: whose the processes on a GPU are, and what that means for the joules of a window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from loadgen.power.sample import GpuProcess, Scope
from loadgen.power.trace import PowerTrace

UNLISTED_BYTES = 2 * 2**30
"""GPU memory in use from which on an empty list of processes is not believed."""
IDLE_READINGS = 3
"""Fewest readings of utilization that say that a GPU was not used."""
MPS_SERVER = "nvidia-cuda-mps"
"""How the name of the Multi-Process Service's own processes begins: they work for its clients."""

Owner = Literal["server", "peer", "unknown", "other"]


class Owners(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the processes on the GPUs of one server before its first window."""

    server: tuple[int, ...] = ()
    """Processes of which the server is made, or whose descendants, session or group it is; empty: not known."""
    peers: tuple[int, ...] = ()
    """The same of the sweep's other servers, which are not asked while this one is measured."""
    before: tuple[int, ...] = ()
    """Processes that used a GPU before the server was started."""
    at_rest: tuple[int, ...] = ()
    """Processes that used a GPU when the server was up and nothing had been asked yet."""

    def of(self, process: GpuProcess) -> Owner:
        """Whose a process is. A process that cannot be seen is the server's or not: nobody can tell, unless it was
        there before the server or came later."""
        family = {process.pid, *process.lineage}
        if family.intersection(self.server):
            return "server"
        if family.intersection(self.peers):
            return "peer"
        if process.pid in self.before or process.pid not in self.at_rest:
            return "other"
        if process.lineage:
            return "other" if self.server else "server"
        return "unknown"


class Uses(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes on a window's GPUs say of its energy, a sentence each."""

    foreign: tuple[str, ...] = ()
    """Somebody else's work is in the joules."""
    unsure: tuple[str, ...] = ()
    """It may be, or a GPU was not used at all."""


def uses_in(
    traces: Sequence[PowerTrace], t0_ns: int, t1_ns: int, owners: Owners | None, scopes: Mapping[str, Scope]
) -> Uses:
    """Of the GPUs whose traces these are, over [t0_ns, t1_ns]. CPU packages have no list of processes."""
    foreign: list[str] = []
    unsure: list[str] = []
    gpus = [trace for trace in traces if scopes.get(trace.gpu, "gpu") != "package"]
    for trace in gpus:
        if owners is not None:
            _judge(trace, t0_ns, t1_ns, owners, foreign, unsure)
    idle = [trace.gpu for trace in gpus if _was_idle(trace.between(t0_ns, t1_ns))]
    if idle and len(idle) == len(gpus):
        foreign.append(
            f"{_named(idle)} idle for the whole window: the server does not run there, name its GPUs (--gpu)"
        )
    elif idle:
        unsure.append(
            f"{_named(idle)} idle for the whole window, and the energy includes that: leave out of --gpu what the "
            "server does not use"
        )
    return Uses(foreign=tuple(foreign), unsure=tuple(unsure))


def _judge(trace: PowerTrace, t0_ns: int, t1_ns: int, owners: Owners, foreign: list[str], unsure: list[str]) -> None:
    lists = _lists(trace, t0_ns, t1_ns)
    if not lists:
        unsure.append(f"cannot tell who uses {trace.gpu}: the driver lists no processes")
        return
    listed = {process.pid: process for processes in lists for process in processes}
    whose = {pid: owners.of(process) for pid, process in listed.items() if not _is_mps_server(process)}
    for pid, owner in whose.items():
        process = listed[pid]
        if owner == "other" and process.kind == "graphics":
            unsure.append(f"{process} draws on {trace.gpu}: the energy includes its share")
        elif owner == "other":
            foreign.append(f"{process} used {trace.gpu} and is not the server's: the energy includes its share")
        elif owner == "peer":
            unsure.append(f"{process} of another target is on {trace.gpu}: the energy includes its power at rest")
        elif owner == "unknown":
            unsure.append(f"cannot tell whether {process} on {trace.gpu} is the server's: it cannot be seen from here")
    used = trace.between(t0_ns, t1_ns).memory_used_bytes
    most = float(np.nanmax(used)) if not np.isnan(used).all() else 0.0
    if not whose and most > UNLISTED_BYTES:
        unsure.append(
            f"cannot tell who uses {trace.gpu}: {most / 2**30:.1f} GiB are in use and no process is listed (in a "
            "container NVML lists only what the container may see)"
        )


def _lists(trace: PowerTrace, t0_ns: int, t1_ns: int) -> list[tuple[GpuProcess, ...]]:
    """The lists read inside the window and the last one before it, which held until then."""
    before: tuple[GpuProcess, ...] | None = None
    inside = []
    for t_ns, processes in zip(trace.t_ns.tolist(), trace.processes, strict=True):
        if processes is None or t_ns > t1_ns:
            continue
        if t_ns < t0_ns:
            before = processes
        else:
            inside.append(processes)
    return inside or ([before] if before is not None else [])


def _was_idle(inside: PowerTrace) -> bool:
    read = inside.utilization[~np.isnan(inside.utilization)]
    return bool(read.size >= IDLE_READINGS and (read == 0).all())


def _is_mps_server(process: GpuProcess) -> bool:
    return (process.name or "").startswith(MPS_SERVER)


def _named(gpus: Iterable[str]) -> str:
    names = list(gpus)
    return f"{' and '.join(names)} {'was' if len(names) == 1 else 'were'}"
