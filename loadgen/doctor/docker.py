"""Docker: the engine, Compose, whether containers can have the GPU, and how safe the stack's settings are."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadgen.address import is_loopback
from loadgen.doctor.finding import Ask, Finding, Mode, State, absent, ask, judged
from loadgen.serving.compose import IMAGES
from loadgen.serving.recipe import data_dir

TIMEOUT_S = 10.0
COMPOSE_SINCE = (1, 28)
"""Profiles came with docker-compose 1.28."""
GPU_DEVICE = Path("/dev/nvidiactl")
_HOOK = "nvidia-container-runtime-hook"


def examine_docker(mode: Mode, run: Ask = ask) -> list[Finding]:
    """Engine, Compose and GPU runtime; only mode `docker` needs them, and is told about the stack's settings."""
    info = engine_info(run)
    found = [engine(mode, info)]
    if mode == "docker" or not isinstance(info, str):
        found.append(compose(mode, run))
    if not isinstance(info, str):
        found.append(gpu_runtime(mode, info))
    if mode == "docker":
        variables = stack_variables(os.environ)
        found += [images(variables), exposure(variables)]
    return found


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
        return judged(check, f"engine {info['ServerVersion']}")
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
            return Finding(check, state, busy, "ask again when this machine is less busy")
        version = re.match(r"v?(\d+)\.(\d+)\S*", answer.output.strip()) if answer and answer.status == 0 else None
        if version and (int(version[1]), int(version[2])) >= COMPOSE_SINCE:
            return Finding(check, "ok", f"`{command}` {version[0]}")
        seen = f"`{command}` {version[0]}: older than 1.28" if version else seen
    advice = "install the plugin docker-compose-plugin, or docker-compose 1.28 or newer"
    return absent(check, seen, advice, needed=mode == "docker")


def gpu_runtime(mode: Mode, info: Mapping[str, Any], *, gpu_here: bool | None = None) -> Finding:
    """NVIDIA's runtime, hook or CDI devices; without a GPU the simulated and cpu services need none of them."""
    check = "Docker GPU runtime"
    devices = [str(entry.get("ID")) for entry in info.get("DiscoveredDevices") or [] if isinstance(entry, dict)]
    gpus = [device for device in devices if device.startswith("nvidia.com/gpu")]
    if "nvidia" in (info.get("Runtimes") or {}):
        return judged(check, "runtime nvidia")
    if gpus:
        return judged(check, f"CDI devices {', '.join(gpus)}")
    if found := shutil.which(_HOOK):
        return judged(check, found)
    if not (GPU_DEVICE.exists() if gpu_here is None else gpu_here):
        seen = "none, and no NVIDIA GPU: only the simulated and cpu services can start"
        return Finding(check, "warning" if mode == "docker" else "not applicable", seen)
    advice = "install nvidia-container-toolkit, run `nvidia-ctk runtime configure --runtime=docker`, restart Docker"
    return absent(check, "none: containers cannot have the GPU", advice, needed=mode == "docker")


def stack_variables(environment: Mapping[str, str], folder: Path | None = None) -> dict[str, str]:
    """What Compose fills in: the environment, else `.env` of the stack's folder.

    That is `folder`, else the working directory if it holds compose.yaml, else that of the checkout or package.
    """
    folder = folder or (Path() if Path("compose.yaml").is_file() else data_dir() / "docker")
    try:
        lines = (folder / ".env").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs if name.strip()} | dict(environment)


def images(variables: Mapping[str, str]) -> Finding:
    """Whether each image that others publish is named by its digest: a tag can be moved to another image."""
    check = "Docker images"
    chosen = {name: variables.get(name) or image for name, image in IMAGES.items()}
    loose = {name: image for name, image in chosen.items() if not re.search(r"@sha256:[0-9a-f]{64}$", image)}
    if not loose:
        return judged(check, f"{len(chosen)} of {len(chosen)} named by digest")
    add = "add the digest that `docker buildx imagetools inspect {1}` shows: {0}={1}@sha256:..."
    advice = "; ".join(add.format(name, image.partition("@")[0]) for name, image in loose.items())
    return judged(check, f"without a digest: {', '.join(loose.values())}", advice)


def exposure(variables: Mapping[str, str]) -> Finding:
    """Who can reach the stack, and whether the secrets are given as the containers read them: as files."""
    check = "Docker network"
    address = variables.get("BIND_ADDRESS") or "127.0.0.1"
    files = [name for name in ("GRAFANA_PASSWORD_FILE", "API_KEY_FILE", "HF_TOKEN_FILE") if variables.get(name)]
    paths = {name: Path(variables[name]).expanduser() for name in files}
    wrong = [f"{name} {path}" for name, path in paths.items() if path.is_dir() or not path.exists()]
    if wrong:
        return Finding(check, "missing", f"not a file: {', '.join(wrong)}", "name a file that exists")
    if is_loopback(address.strip("[]")):
        if variables.get("HF_TOKEN") and "HF_TOKEN_FILE" not in files:
            advice = "for gated models, write the token to a file and give that as HF_TOKEN_FILE"
            return judged(check, "HF_TOKEN is not passed to containers", advice)
        return judged(check, f"ports on {address}: this machine only")
    if "GRAFANA_PASSWORD_FILE" not in files:
        seen = f"BIND_ADDRESS {address} without GRAFANA_PASSWORD_FILE: Grafana will not start"
        return Finding(check, "missing", seen, "name a file with a password in it")
    advice = "let a firewall admit only those who may use the servers and read the metrics; nothing is encrypted"
    return judged(check, f"ports on {address}: open to the network", advice)
