"""Whether a resumed run would measure the same thing on the same machine: data, servers, GPUs, host, client.

Each function compares what is there now with the run's manifest. What would mix two different things in one figure
raises UsageError, one sentence; what only might is returned as warnings, one sentence each.

Open files: every request in flight is one, and the soft limit of a shell (1024, or less) may be lower than B.

Crew: how many client processes share the slots of a cell.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from loadgen.errors import ServerError, UsageError
from loadgen.load.openloop import CLOSED
from loadgen.measure.observer import Observer
from loadgen.power.feed import PowerFacts
from loadgen.record.config import SweepConfig
from loadgen.record.manifest import Manifest
from loadgen.serving.facts import Target

Facts = Mapping[str, Any]
SERVER_FACTS = {
    "simulated": "simulated",
    "version": "version",
    "model": "model",
    "checkpoint_identity": "checkpoint",
    "max_model_len": "longest context",
    "kernels": "kernels",
}
"""What must not change about a server: field of its entry in the manifest -> how it is called."""


def require_same_data(manifest: Facts, now: Facts) -> None:
    """`now` is the manifest that a new run would have: the same questions, prompts and recipes."""
    for part in ("dataset", "protocol"):
        _require(f"the {part} {now[part]['name']}", "sha256", manifest[part]["sha256"], now[part]["sha256"])
    _require("the dataset", "number of items", manifest["dataset"]["items"], now["dataset"]["items"])
    for name, sha256 in manifest.get("recipes", {}).items():
        _require(f"the recipe {name}", "sha256", sha256, now["recipes"].get(name))


def require_same_power(manifest: Facts, now: Facts) -> None:
    """`now` is the manifest's `power` that a new run would have: the same sensors."""
    begun = manifest["power"]
    for name, called in (("kind", "source"), ("url", "URL"), ("gpus", "GPUs")):
        _require("power", called, begun.get(name), now.get(name), reason=now.get("reason"))


def require_same_server(manifest: Facts, target: Target, facts: Facts) -> None:
    """The server of a target is what it was when it was first measured in this run."""
    begun = next((entry for entry in manifest["servers"] if entry["name"] == target.name), None)
    if begun is None:
        return
    now = {**facts, "simulated": target.simulated, "model": target.model}
    for name, called in SERVER_FACTS.items():
        _require(f"target {target.name}", called, begun.get(name), now.get(name))
    if begun.get("argv") and facts.get("argv") and not target.simulated:
        _require(f"target {target.name}", "command", _arguments(begun["argv"]), _arguments(facts["argv"]))


def compare_gpus(manifest: Facts, target: str, facts: PowerFacts) -> list[str]:
    """The sensors beside a target: other GPUs are refused, another driver or limit is a warning."""
    begun = next((block for block in manifest.get("power_blocks", []) if block["target"] == target), None)
    if begun is None:
        return []
    before = {gpu["uuid"]: gpu for gpu in begun["gpus"]}
    _require(f"target {target}", "GPU", sorted(before), sorted(gpu.uuid for gpu in facts.gpus))
    warnings = []
    for gpu in facts.gpus:
        for name, called in (("driver", "driver"), ("power_limit_enforced_w", "power limit (W)")):
            was, is_now = before[gpu.uuid].get(name), getattr(gpu, name)
            if was != is_now:
                warnings.append(f"the {called} of {gpu.uuid} was {_shown(was)}, now {_shown(is_now)}")
    return warnings


def compare_machines(manifest: Facts, *, client: Facts, host: Facts, serves: bool) -> list[str]:
    """Client and host. `serves`: the servers run on this host and are measured; then its CPU must be the same."""
    cpu, cpu_now = manifest["host"].get("cpu"), host.get("cpu")
    if serves:
        _require("this machine", "CPU", cpu, cpu_now)
    warnings = [] if cpu == cpu_now else [f"the client's CPU was {_shown(cpu)}, now {_shown(cpu_now)}"]
    begun, now = _versions(manifest["client"]), _versions(client)
    changed = [name for name in begun | now if begun.get(name) != now.get(name)]
    return warnings + [
        f"the client's {name} was {_shown(begun.get(name))}, now {_shown(now.get(name))}" for name in changed
    ]


def _versions(client: Facts) -> dict[str, str]:
    return {"loadgen": client["loadgen"], "Python": client.get("python", ""), **client.get("packages", {})}


def _require(what: str, called: str, begun: Any, now: Any, *, reason: str | None = None) -> None:
    if _plain(begun) == _plain(now):
        return
    why = f" ({reason})" if reason else ""
    raise UsageError(
        f"--resume: {called} of {what} was {_shown(begun)} when the run was begun and is {_shown(now)} now{why}; "
        "restore it, or start a new run"
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return "not known" if value is None else str(value)


def _arguments(argv: Sequence[str]) -> list[str]:
    """Without the command's own path and the port, which is another at every start."""
    port = argv.index("--port") if "--port" in argv else len(argv)
    return [*argv[1:port], *argv[port + 2 :]]


BESIDE_CONNECTIONS = 64
"""Open files of a client process beside its connections: journal, scrapes of /metrics, logs, libraries."""


def files_needed(config: SweepConfig) -> int:
    """The most open files of one client process: its share of the largest B, and what it needs beside them."""
    return math.ceil(max(config.concurrency) / (config.workers or 1)) + BESIDE_CONNECTIONS


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


SURE_TOKENS_PER_S = {"raw": 25_600, "openai": 2_560}
"""Rates that one process takes on any core of the last ten years; up to them nothing is tried."""


def crew_of(config: SweepConfig, manifest: Manifest, observer: Observer) -> dict[int, int]:
    """Processes for each B: `--workers`, or one, or what a short selftest at that B says where one may not do.

    The rate is not known before the first cell: a token to every stream each 10 ms is assumed, faster than servers of
    7B models decode at such a B. One answer holds for the whole run, all targets and later sessions, so that no target
    has another client than its reference; it is in the manifest. An open loop is one process's.
    """
    if config.arrival != CLOSED:
        return dict.fromkeys(config.concurrency, 1)
    client = manifest.content["client"]
    known: dict[str, int] = client.get("workers", {})
    crew = {}
    for b in config.concurrency:
        crew[b] = known.get(str(b)) or config.workers or _tried(b, config.transport, manifest, observer)
        client["workers"] = {str(level): count for level, count in crew.items()}
    manifest.write()
    return crew


def _tried(b: int, transport: str, manifest: Manifest, observer: Observer) -> int:
    from loadgen.clienttest.selftest import ITL_MS, fewest_workers  # it drives cells of its own, and analyses them

    rate = 1e3 * b / ITL_MS
    if rate <= SURE_TOKENS_PER_S[transport]:
        return 1
    observer.note(f"selftest at B = {b}, {rate:,.0f} tokens/s: is one client process enough? (--workers N says it)")
    try:
        workers, trials = fewest_workers(b, rate, transport)
    except ServerError as error:
        observer.warn(f"the selftest at B = {b} came to nothing ({error}); one client process is used")
        return 1
    manifest.content["client"].setdefault("selftest", []).extend(msgspec.to_builtins(trials))
    tried = "; ".join(f"{t.workers}: {', '.join(t.faults) or f'{t.cpu_share:.0%} of a core'}" for t in trials)
    observer.note(f"B = {b} is driven by {workers} client process{'es' * (workers > 1)} ({tried})")
    return workers
