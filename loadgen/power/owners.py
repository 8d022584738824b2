"""Owners: who the processes on a GPU belong to, and what that means for the energy of a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from loadgen.power.sample import GpuProcess, Scope
from loadgen.power.trace import PowerTrace

UNLISTED_BYTES = 2 * 2**30
"""With more GPU memory in use than this, an empty list of processes is not believed."""
IDLE_READINGS = 3
"""Fewest readings of 0% utilization that show that a GPU was not used."""
MPS_SERVER = "nvidia-cuda-mps"
"""Names of the Multi-Process Service's own processes begin so: they work for its clients."""

Owner = Literal["server", "peer", "unknown", "other"]


class Owners(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the processes on the GPUs of one server before its first window."""

    server: tuple[int, ...] = ()
    """Processes of which the server is made, or whose descendants, session or group it is; empty: not known."""
    peers: tuple[int, ...] = ()
    """The same of the sweep's other servers, which get no requests while this one is measured."""
    before: tuple[int, ...] = ()
    """Processes that used a GPU before the server was started."""
    at_rest: tuple[int, ...] = ()
    """Processes that used a GPU when the server was up and had not had a request."""

    def of(self, process: GpuProcess) -> Owner:
        """Who a process belongs to: unknown if it cannot be seen and was first listed with the server at rest."""
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
    """What the processes on a window's GPUs mean for its energy, a sentence each."""

    foreign: tuple[str, ...] = ()
    """Another user's work is in the joules."""
    unsure: tuple[str, ...] = ()
    """It may be, or a GPU was not used at all."""


def uses_in(
    traces: Sequence[PowerTrace], t0_ns: int, t1_ns: int, owners: Owners | None, scopes: Mapping[str, Scope]
) -> Uses:
    """The uses of the GPUs whose traces these are, over [t0_ns, t1_ns]. CPU packages have no list of processes."""
    foreign: list[str] = []
    unsure: list[str] = []
    gpus = [trace for trace in traces if scopes.get(trace.gpu, "gpu") != "package"]
    for trace in gpus:
        if owners is not None:
            _judge(trace, t0_ns, t1_ns, owners, foreign, unsure)
    idle = [trace.gpu for trace in gpus if _was_idle(trace.between(t0_ns, t1_ns))]
    named = f"{' and '.join(idle)} {'was' if len(idle) == 1 else 'were'} idle for the whole window"
    if idle and len(idle) == len(gpus):
        foreign.append(f"{named}: the server does not run there, name its GPUs (--gpu)")
    elif idle:
        unsure.append(f"{named}, and the energy includes that: omit from --gpu what the server does not use")
    return Uses(foreign=tuple(foreign), unsure=tuple(unsure))


def _judge(trace: PowerTrace, t0_ns: int, t1_ns: int, owners: Owners, foreign: list[str], unsure: list[str]) -> None:
    lists = _lists(trace, t0_ns, t1_ns)
    if not lists:
        unsure.append(f"cannot tell who uses {trace.gpu}: the driver lists no processes")
        return
    listed = {process.pid: process for processes in lists for process in processes}
    listed = {pid: process for pid, process in listed.items() if not (process.name or "").startswith(MPS_SERVER)}
    for process in listed.values():
        owner = owners.of(process)
        if owner == "other" and process.kind == "graphics":
            unsure.append(f"{process} draws graphics on {trace.gpu}: the energy includes its share")
        elif owner == "other":
            foreign.append(f"{process} used {trace.gpu} and is not the server's: the energy includes its share")
        elif owner == "peer":
            unsure.append(f"{process} of another target is on {trace.gpu}: the energy includes its idle power")
        elif owner == "unknown":
            unsure.append(f"cannot tell whether {process} on {trace.gpu} is the server's: it cannot be seen from here")
    used = trace.between(t0_ns, t1_ns).memory_used_bytes
    most = float(np.nanmax(used)) if not np.isnan(used).all() else 0.0
    if not listed and most > UNLISTED_BYTES:
        unsure.append(
            f"cannot tell who uses {trace.gpu}: {most / 2**30:.1f} GiB are in use and no process is listed (in a "
            "container NVML lists only what the container may see)"
        )


def _lists(trace: PowerTrace, t0_ns: int, t1_ns: int) -> list[tuple[GpuProcess, ...]]:
    """The lists read inside the window; if there is none, the last one before it, which held until then."""
    read = [
        (t_ns, processes)
        for t_ns, processes in zip(trace.t_ns.tolist(), trace.processes, strict=True)
        if processes is not None and t_ns <= t1_ns
    ]
    return [processes for t_ns, processes in read if t_ns >= t0_ns] or [processes for _, processes in read[-1:]]


def _was_idle(inside: PowerTrace) -> bool:
    read = inside.utilization[~np.isnan(inside.utilization)]
    return bool(read.size >= IDLE_READINGS and (read == 0).all())
