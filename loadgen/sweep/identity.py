"""Whether a resumed run would measure the same thing on the same machine: data, servers, GPUs, host, client.

Each function compares what is there now with the run's manifest. What would mix two different things in one figure
raises UsageError, one sentence; what only might is returned as warnings, one sentence each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.errors import UsageError
from loadgen.power.feed import PowerFacts
from loadgen.serving.target import Target

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
