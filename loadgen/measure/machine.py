"""Whether a resumed run would measure the same thing on the same machine: data, servers, GPUs, host, client.

Each function compares what is there now with the run's manifest. What would mix two different things in one figure
raises UsageError, one sentence; what only might is returned as warnings, one sentence each.

Open files: every request in flight is one, and the soft limit of a shell (1024, or less) may be lower than B.

Workers: how many client processes share the slots of a cell.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from loadgen import __version__
from loadgen.errors import ServerError, UsageError
from loadgen.guardian import PROC
from loadgen.load.clockreading import read_clocks
from loadgen.load.openloop import CLOSED
from loadgen.measure.observer import Observer
from loadgen.power.feed import PowerFacts
from loadgen.power.sample import boot_id
from loadgen.record.cell import SweepConfig
from loadgen.record.manifest import (
    ClientRecord,
    ClockAnchor,
    DatasetRecord,
    HostRecord,
    Manifest,
    ManifestFile,
    PowerPlan,
    ProtocolRecord,
    ServerRecord,
)

VECTORS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd")
"""Flags of /proc/cpuinfo that decide how fast a CPU multiplies which numbers."""
_PACKAGES = ("aiohttp", "httptools", "msgspec", "numpy", "openai", "pandas", "pyarrow", "uvloop")
OLD_SERVERS_S = 30.0


def clock_anchor() -> ClockAnchor:
    """The same instant on CLOCK_MONOTONIC and on the wall clock."""
    now = read_clocks()
    return ClockAnchor(monotonic_ns=now.monotonic_ns, unix_ns=now.realtime_ns, uncertainty_ns=2 * now.error_ns)


def host_record() -> HostRecord:
    """This machine."""
    return HostRecord(
        system=platform.platform(),
        cpu=_cpu_line("model name") or platform.processor() or None,
        cpu_vectors=tuple(sorted(set(_cpu_line("flags").split()).intersection(VECTORS))),
        cpus=os.cpu_count(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load_average_1min=os.getloadavg()[0],
    )


def client_record() -> ClientRecord:
    """Versions of everything that touches a time stamp."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return ClientRecord(loadgen=__version__, python=sys.version.split()[0], packages=versions)


def _cpu_line(name: str) -> str:
    """The first CPU's line of /proc/cpuinfo; empty where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""


def begin_session(file: ManifestFile, warning: str | None = None) -> None:
    """The first session of a run, a resumed one, or, with a `warning`, one after a server died."""
    file.begin(client_record(), host_record(), boot_id(), clock_anchor())
    if warning is not None:
        file.warn(warning)


def await_old_servers(servers: Sequence[ServerRecord]) -> list[str]:
    """Waits for the servers of a session that was killed; they stop on their own and free their memory.

    Returns the names of those that still run after half a minute.
    """
    deadline_s = time.monotonic() + OLD_SERVERS_S
    while True:
        living = [server.name for server in servers if _is_living(server)]
        if not living or time.monotonic() >= deadline_s:
            return living
        time.sleep(0.1)


def _is_living(server: ServerRecord) -> bool:
    """Its process id may be another's by now: of its command, the port is its own."""
    argv = server.argv or ()
    if server.pid is None or "--port" not in argv[:-1]:
        return False
    try:
        words = (PROC / str(server.pid) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return False
    return ("--port", argv[argv.index("--port") + 1]) in itertools.pairwise(words)


SERVER_FACTS = {
    "simulated": "simulated",
    "version": "version",
    "model": "model",
    "checkpoint_identity": "checkpoint",
    "max_model_len": "longest context",
    "kernels": "kernels",
}
"""What must not change about a server: field of its entry in the manifest -> how it is called."""


def require_same_data(
    begun: Manifest, dataset: DatasetRecord, protocol: ProtocolRecord, recipes: Mapping[str, str]
) -> None:
    """The questions, prompts and recipes are those that the run was begun with."""
    _require(f"the dataset {dataset.name}", "sha256", begun.dataset.sha256, dataset.sha256)
    _require(f"the protocol {protocol.name}", "sha256", begun.protocol.sha256, protocol.sha256)
    _require("the dataset", "number of items", begun.dataset.items, dataset.items)
    for name, sha256 in begun.recipes.items():
        _require(f"the recipe {name}", "sha256", sha256, recipes.get(name))


def require_same_power(begun: PowerPlan, now: PowerPlan) -> None:
    """The sensors are those that the run was begun with."""
    for name, called in (("kind", "source"), ("url", "URL"), ("gpus", "GPUs")):
        _require("power", called, getattr(begun, name), getattr(now, name), reason=now.reason)


def require_same_server(manifest: Manifest, server: ServerRecord) -> None:
    """The server of a target is what it was when it was first measured in this run."""
    begun = next((earlier for earlier in manifest.servers if earlier.name == server.name), None)
    if begun is None:
        return
    what = f"target {server.name}"
    for name, called in SERVER_FACTS.items():
        _require(what, called, getattr(begun, name), getattr(server, name))
    if begun.argv and server.argv and not server.simulated:
        _require(what, "command", _arguments(begun.argv), _arguments(server.argv))


def compare_gpus(manifest: Manifest, target: str, facts: PowerFacts) -> list[str]:
    """The sensors of a target: other GPUs are refused, another driver or limit is a warning."""
    begun = next((block for block in manifest.power_blocks if block.target == target), None)
    if begun is None:
        return []
    before = {gpu.uuid: gpu for gpu in begun.gpus}
    _require(f"target {target}", "GPU", sorted(before), sorted(gpu.uuid for gpu in facts.gpus))
    warnings = []
    for gpu in facts.gpus:
        for name, called in (("driver", "driver"), ("power_limit_enforced_w", "power limit (W)")):
            was, is_now = getattr(before[gpu.uuid], name), getattr(gpu, name)
            if was != is_now:
                warnings.append(f"the {called} of {gpu.uuid} was {_shown(was)}, now {_shown(is_now)}")
    return warnings


def compare_machines(begun: Manifest, *, client: ClientRecord, host: HostRecord, serves: bool) -> list[str]:
    """Client and host. `serves`: the servers run on this host and are measured; then its CPU must be the same."""
    cpu, cpu_now = begun.host.cpu, host.cpu
    if serves:
        _require("this machine", "CPU", cpu, cpu_now)
    warnings = [] if cpu == cpu_now else [f"the client's CPU was {_shown(cpu)}, now {_shown(cpu_now)}"]
    before, now = _versions(begun.client), _versions(client)
    changed = [name for name in before | now if before.get(name) != now.get(name)]
    return warnings + [
        f"the client's {name} was {_shown(before.get(name))}, now {_shown(now.get(name))}" for name in changed
    ]


def _versions(client: ClientRecord) -> dict[str, str]:
    return {"loadgen": client.loadgen, "Python": client.python, **client.packages}


def _require(what: str, called: str, begun: Any, now: Any, *, reason: str | None = None) -> None:
    if begun == now:
        return
    why = f" ({reason})" if reason else ""
    raise UsageError(
        f"--resume: {called} of {what} was {_shown(begun)} when the run was begun and is {_shown(now)} now{why}; "
        "restore it, or start a new run"
    )


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return "not known" if value is None else str(value)


def _arguments(argv: Sequence[str]) -> list[str]:
    """Without the command's own path and the port, which is another at every start."""
    port = argv.index("--port") if "--port" in argv else len(argv)
    return [*argv[1:port], *argv[port + 2 :]]


BESIDE_CONNECTIONS = 64
"""Open files of a client process besides its connections: journal, scrapes of /metrics, logs, libraries."""


def files_needed(config: SweepConfig) -> int:
    """The most open files of one client process: its share of the largest B, and what it needs besides."""
    return math.ceil(max(config.concurrency) / (config.client_processes or 1)) + BESIDE_CONNECTIONS


def allow_open_files(config: SweepConfig) -> None:
    """Raises this process's soft limit of open files as far as the sweep needs; its children inherit it.

    Raises UsageError where the hard limit is lower than that.
    """
    needed = files_needed(config)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        b = max(config.concurrency)
        raise UsageError(
            f"--concurrency {b} needs {needed} open files, and this process may open {hard} (ulimit -Hn); raise that "
            f"limit, or lower --concurrency to {max(1, hard - BESIDE_CONNECTIONS)} or less"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


ITL_S = 0.01
"""Between two tokens of a stream, of the servers for which the client is sized."""
SURE_TOKENS_PER_S = {"raw": 25_600, "openai": 2_560}
"""Rates that one process takes on any core of the last ten years; up to them nothing is tried."""


def client_workers(config: SweepConfig, file: ManifestFile, observer: Observer) -> dict[int, int]:
    """Processes for each B: `--workers`, or one, or what a short selftest at that B says where one may not do.

    The rate is not known before the first cell: a token to every stream each 10 ms is assumed, faster than servers of
    7B models decode at such a B. One answer holds for the whole run, all targets and later sessions, so that no target
    has another client than its reference; it is in the manifest. An open loop is one process's. In a search only
    the largest B is tried.
    """
    if config.arrival != CLOSED:
        return dict.fromkeys(config.concurrency, 1)
    known = file.manifest.client.workers
    workers: dict[int, int] = {}
    for b in config.concurrency[-1:] if config.find else config.concurrency:
        workers[b] = known.get(str(b)) or config.client_processes or _tried(b, config.transport, file, observer)
    stored = {str(b): count for b, count in workers.items()}
    file.change(client=msgspec.structs.replace(file.manifest.client, workers=stored))
    if config.find:
        low, high = config.concurrency[0], config.concurrency[-1]
        sure = int(SURE_TOKENS_PER_S[config.transport] * ITL_S)
        return {b: workers[high] if b > sure else config.client_processes or 1 for b in range(low, high + 1)}
    return workers


def _tried(b: int, transport: str, file: ManifestFile, observer: Observer) -> int:
    from loadgen.clienttest.selftest import ITL_MS, fewest_workers  # it runs its own cells and analyses them

    rate = 1e3 * b / ITL_MS
    if rate <= SURE_TOKENS_PER_S[transport]:
        return 1
    observer.note(f"selftest at B = {b}, {rate:,.0f} tokens/s: is one client process enough? (--workers N says it)")
    try:
        workers, trials = fewest_workers(b, rate, transport)
    except ServerError as error:
        observer.warn(f"the selftest at B = {b} failed ({error}); one client process is used")
        return 1
    client = file.manifest.client
    known = (*client.selftest, *msgspec.to_builtins(trials))
    file.change(client=msgspec.structs.replace(client, selftest=known))
    tried = "; ".join(f"{t.workers}: {', '.join(t.faults) or f'{t.cpu_share:.0%} of a core'}" for t in trials)
    observer.note(f"B = {b} is driven by {workers} client process{'es' * (workers > 1)} ({tried})")
    return workers
