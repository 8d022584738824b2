"""Docker: the engine, Compose, and whether containers can have the GPU."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadgen.doctor.finding import Finding, Mode, State, absent
from loadgen.doctor.program import Ask, ask

TIMEOUT_S = 10.0
COMPOSE_SINCE = (1, 28)
"""Profiles came with docker-compose 1.28."""
GPU_DEVICE = Path("/dev/nvidiactl")
_HOOK = "nvidia-container-runtime-hook"


def examine_docker(mode: Mode, run: Ask = ask) -> list[Finding]:
    """Engine, Compose and GPU runtime; only mode `docker` needs them."""
    info = engine_info(run)
    found = [engine(mode, info)]
    if isinstance(info, str):
        return found if mode != "docker" else [*found, compose(mode, run)]
    return [*found, compose(mode, run), gpu_runtime(mode, info)]


def engine_info(run: Ask = ask) -> dict[str, Any] | str:
    """What `docker info` says of a running engine; else why there is none, in words."""
    answer = run(["docker", "info", "--format", "{{json .}}"], TIMEOUT_S)
    if answer is None:
        return "no docker command"
    try:
        info = json.loads(answer.output)
    except ValueError:
        return answer.last_words
    if not isinstance(info, dict) or not info.get("ServerVersion"):
        told = info.get("ServerErrors") if isinstance(info, dict) else None
        return str(told[0]) if told else answer.last_words
    return info


def engine(mode: Mode, info: dict[str, Any] | str) -> Finding:
    """The engine's version, or what is in the way."""
    check = "Docker"
    if not isinstance(info, str):
        return Finding(check=check, state="ok", seen=f"engine {info['ServerVersion']}")
    if info == "no docker command":
        advice = "install Docker; a sweep with --serve or --target needs none"
    elif "permission denied" in info.lower():
        advice = "let root add you to the group docker (`usermod -aG docker $USER`), then log in again"
    else:
        advice = "start the engine: `systemctl start docker`"
    return absent(check, info, advice, needed=mode == "docker")


def compose(mode: Mode, run: Ask = ask) -> Finding:
    """`docker compose`, else `docker-compose` from 1.28 on."""
    check = "Docker Compose"
    seen = "neither `docker compose` nor `docker-compose`"
    for command, arguments in (("docker compose", ["docker", "compose"]), ("docker-compose", ["docker-compose"])):
        answer = run([*arguments, "version", "--short"], TIMEOUT_S)
        if answer and answer.status is None:
            state: State = "warning" if mode == "docker" else "not applicable"
            busy = f"`{command}` did not answer within {TIMEOUT_S:.0f} s"
            return Finding(check=check, state=state, seen=busy, advice="ask again when this machine is less busy")
        version = re.match(r"v?(\d+)\.(\d+)\S*", answer.output.strip()) if answer and answer.status == 0 else None
        if version and (int(version[1]), int(version[2])) >= COMPOSE_SINCE:
            return Finding(check=check, state="ok", seen=f"`{command}` {version[0]}")
        seen = f"`{command}` {version[0]}: older than 1.28" if version else seen
    advice = "install the plugin docker-compose-plugin, or docker-compose 1.28 or newer"
    return absent(check, seen, advice, needed=mode == "docker")


def gpu_runtime(mode: Mode, info: Mapping[str, Any], *, gpu_here: bool | None = None) -> Finding:
    """NVIDIA's runtime, hook or CDI devices; without a GPU the simulated and cpu services need none of them."""
    check = "Docker GPU runtime"
    devices = [str(entry.get("ID")) for entry in info.get("DiscoveredDevices") or [] if isinstance(entry, dict)]
    gpus = [device for device in devices if device.startswith("nvidia.com/gpu")]
    if "nvidia" in (info.get("Runtimes") or {}):
        return Finding(check=check, state="ok", seen="runtime nvidia")
    if gpus:
        return Finding(check=check, state="ok", seen=f"CDI devices {', '.join(gpus)}")
    if found := shutil.which(_HOOK):
        return Finding(check=check, state="ok", seen=found)
    if gpu_here is None:
        gpu_here = GPU_DEVICE.exists()
    if not gpu_here:
        seen = "none, and no NVIDIA GPU: only the simulated and cpu services can start"
        return Finding(check=check, state="warning" if mode == "docker" else "not applicable", seen=seen)
    advice = "install nvidia-container-toolkit, run `nvidia-ctk runtime configure --runtime=docker`, restart Docker"
    return absent(check, "none: containers cannot have the GPU", advice, needed=mode == "docker")
