"""Who uses the GPUs of a sweep: before the first server starts, and which processes are a server's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from loadgen.errors import UsageError
from loadgen.power.owners import MPS_SERVER, Owners
from loadgen.power.processes import PROC
from loadgen.power.sample import GpuProcess, PowerSample

_LISTENING = "0A"
"""State of a socket in /proc/net/tcp."""


def server_processes(url: str) -> tuple[int, ...]:
    """The processes of this machine that listen on the URL's port, with the process group of each that is not
    loadgen's own; empty where none can be seen (another user's, or in a container)."""
    port = urlsplit(url).port
    if port is None:
        return ()
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    found: list[int] = []
    for pid in _processes() if inodes else ():
        with contextlib.suppress(OSError):
            links = (link.readlink() for link in (PROC / str(pid) / "fd").iterdir())
            if any(str(link) in inodes for link in links):
                found.append(pid)
                with contextlib.suppress(ProcessLookupError):
                    if (group := os.getpgid(pid)) != os.getpgid(0):
                        found.append(group)
    return tuple(dict.fromkeys(found))


def warnings_before(
    samples: Mapping[str, PowerSample], families: Iterable[int], *, running: bool, exclusive: bool
) -> list[str]:
    """What uses the GPUs before a sweep's first server starts, or, where its servers are `running`, beside them.

    `samples` are one full reading of each GPU; `families` the servers' processes, empty where they are not known. With
    `exclusive` another process raises UsageError, one sentence.
    """
    known = set(families)
    if running and not any(_belongs(p, known) for s in samples.values() for p in s.processes or ()):
        known = set()  # what listens is a proxy, or its processes are on no GPU
    warnings = []
    when = "beside the servers" if running else "before the first server starts"
    for gpu, sample in samples.items():
        listed = [p for p in sample.processes or () if not (p.name or "").startswith(MPS_SERVER)]
        others = [p for p in listed if not _belongs(p, known)]
        unseen = [p for p in others if running and not p.lineage]
        others = [p for p in others if p not in unseen]
        if running and not known:
            if listed:
                warnings.append(f"{gpu} is used by {_all(listed)}: taken for the servers', which cannot be told apart")
            continue
        if unseen:
            warnings.append(
                f"cannot tell whether {_all(unseen)} on {gpu} belongs to a server: it cannot be seen from here, as in "
                "a container"
            )
        if others and exclusive:
            raise UsageError(
                f"--exclusive: {gpu} is used {when} by {_all(others)}: stop that process or choose another GPU (--gpu)"
            )
        if others:
            drawing = all(process.kind == "graphics" for process in others)
            so = "the energy includes its share" if drawing else "energy is not valid while it runs"
            warnings.append(f"{gpu} is used {when} by {_all(others)}: {so} (--exclusive refuses this)")
        elif not running and not listed and sample.utilization:
            warnings.append(
                f"{gpu} is busy {when} ({sample.utilization:.0%} utilization), and no process is listed: another "
                "container or user may be using it"
            )
    return warnings


def owners_of(
    server: Iterable[int],
    peers: Iterable[int],
    before: Iterable[int],
    at_rest: Mapping[str, tuple[GpuProcess, ...]],
    *,
    certain: bool,
) -> Owners:
    """Whose the processes beside one server are; `at_rest` were there with the server up and nothing asked.

    `certain`: loadgen started the server and reads the sensors itself. Else `server` may be a proxy in front of it, or
    another container's process ids: it is believed only where one of its processes is on a GPU.
    """
    own = tuple(dict.fromkeys(server))
    listed = {process.pid: process for processes in at_rest.values() for process in processes}
    if not certain and not any(_belongs(process, own) for process in listed.values()):
        own = ()
    return Owners(
        server=own,
        peers=tuple(pid for pid in dict.fromkeys(peers) if pid not in own),
        before=tuple(dict.fromkeys(before)),
        at_rest=tuple(listed),
    )


def _belongs(process: GpuProcess, family: Iterable[int]) -> bool:
    return not {process.pid, *process.lineage}.isdisjoint(family)


def _all(processes: Iterable[GpuProcess]) -> str:
    return " and ".join(map(str, processes))


def _listening_inodes(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError, ValueError):
            for line in (PROC / "net" / name).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _processes() -> Iterator[int]:
    yield from (int(folder.name) for folder in Path(PROC).iterdir() if folder.name.isdigit())
