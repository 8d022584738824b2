"""Examination: everything the doctor looks at, each check within its own time; here Docker and the stack's settings,
datasets, proxies, ports, Prometheus and Grafana.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen.doctor.finding import Ask, Finding, Mode, State, absent, ask, judged
from loadgen.doctor.hardware import client_timing, clock_source, cpu_flags, cpu_library, disk, examine_gpus, seen_gpus
from loadgen.doctor.vllm import VERSION_TIMEOUT_S, examine_checkpoints, examine_vllm
from loadgen.errors import UsageError
from loadgen.secret import Mask
from loadgen.serving.compose import IMAGES, KV_CACHE_BYTES, MODEL, variable
from loadgen.serving.facts import get, get_object, proxies_named
from loadgen.serving.process import port_is_free
from loadgen.serving.project import Project
from loadgen.serving.recipe import data_dir, load_recipe, load_recipes
from loadgen.serving.requirements import BESIDE_BYTES, GIB, USABLE, size_of
from loadgen.webserver import is_loopback
from loadgen.workload.dataset import FILES
from loadgen.workload.published import CacheState, PublishedFile, state_of

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
        project = Project.found(stack_folder())
        variables = project.variables
        found += [images(variables), exposure(variables), memory(project), cache_owner(variables)]
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


def stack_folder() -> Path:
    """The working directory if it holds compose.yaml, else docker/ of the checkout or package."""
    return Path() if Path("compose.yaml").is_file() else data_dir() / "docker"


def memory(project: Project, totals: Sequence[int] | None = None) -> Finding:
    """What the servers that `docker compose up` starts need, by estimate, of the bytes that each GPU has.

    `totals` are NVML's where they are not given.
    """
    check, variables = "Docker GPU memory", project.variables
    size = size_of(variables.get("FP16_CHECKPOINT") or MODEL)
    if size is None:
        return Finding(check, "not applicable", "the size of the model FP16_CHECKPOINT is not known here")
    kept = variables.get("KV_CACHE_BYTES") or str(KV_CACHE_BYTES)
    if not kept.isdigit():
        return Finding(check, "missing", f"KV_CACHE_BYTES is {kept!r}", "give a number of bytes")
    needs: dict[str, dict[str, float]] = {}
    for service in project.of_profiles(project.profiles):
        if service.device == "cuda":
            gpus = (variables.get(f"{variable(service.name)}_GPU") or "0").split(",")
            need = size.weight_bytes(load_recipe(service.recipe)) / len(gpus) + BESIDE_BYTES
            for gpu in gpus:
                needs.setdefault(gpu, {})[service.name] = need + int(kept) * size.kv_share(len(gpus))
    if not needs:
        return Finding(check, "not applicable", "COMPOSE_PROFILES starts no server on a GPU")
    totals = _gpu_bytes() if totals is None else totals
    seen, over = [], False
    for gpu, servers in sorted(needs.items()):
        need, total = sum(servers.values()), totals[int(gpu)] if gpu.isdigit() and int(gpu) < len(totals) else 0
        over = over or 0 < total * USABLE < need
        of_total = f" of {total / GIB:.1f}" if total else ""
        verb = "needs" if len(servers) == 1 else "need"
        seen.append(f"GPU {gpu}: {', '.join(servers)} {verb} {need / GIB:.1f}{of_total} GiB")
    if not totals:
        return Finding(check, "not applicable", f"{'; '.join(seen)}; there is no GPU here")
    one = "`loadgen sweep --compose` starts one server at a time"
    sized = f"{one}; `loadgen compose --force --dir DIR` sizes the project's .env for this GPU"
    return Finding(check, "missing", "; ".join(seen), sized) if over else judged(check, "; ".join(seen))


def _gpu_bytes() -> list[int]:
    try:
        return [gpu.info.memory_total_bytes or 0 for gpu in seen_gpus()[0]]
    except UsageError:
        return []


def cache_owner(variables: Mapping[str, str], user: int | None = None) -> Finding:
    """Whether files of the shared cache HF_CACHE belong to another user, as those that a container wrote do."""
    check, named = "Docker cache", variables.get("HF_CACHE") or ""
    if not named.startswith(("/", ".", "~")):
        return judged(check, f"volume {named or 'hf-cache'}")
    folder, me = Path(named).expanduser(), os.getuid() if user is None else user
    try:
        foreign = [path for path in (folder, *folder.glob("*"), *folder.glob("hub/*")) if path.lstat().st_uid != me]
    except OSError as error:
        return judged(check, f"HF_CACHE {folder}: {error.strerror}", "name a folder that you can read")
    if not foreign or not me:
        return judged(check, str(folder))
    advice = f"containers write as root; take the files back: `sudo chown -R $(id -u):$(id -g) {folder}`"
    return judged(check, f"{foreign[0]} belongs to another user, and {len(foreign) - 1} more", advice)


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


def dataset(
    mode: Mode, name: str, files: Sequence[PublishedFile], state: Callable[[PublishedFile], CacheState] = state_of
) -> Finding:
    """A dataset's files by their sha256; a simulated sweep asks the shipped sample unless told otherwise."""
    check = f"dataset {name}"
    states = {file.name: state(file) for file in files}
    seen = ", ".join(f"{file} {found}" for file, found in states.items())
    if all(found == "cached" for found in states.values()):
        return judged(check, f"{seen}, sha256 as pinned")
    advice = f"`loadgen data fetch {name}` downloads it, or name your copy with --data-file"
    if mode == "simulated" and "damaged" not in states.values():
        return Finding(check, "not applicable", f"{seen}; the sample is shipped", advice)
    return judged(check, seen, advice)


def proxies() -> Finding:
    """HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, upper or lower case, and what they are used for."""
    used = "for downloads only; servers, exporters and Prometheus are reached directly"
    seen = f"{named}: {used}" if (named := ", ".join(map(Mask(), proxies_named()))) else "the environment names none"
    return judged("proxy", seen)


SERVERS = (range(8000, 8011),)
CONTAINERS = (*SERVERS, range(8101, 8105), range(8201, 8204))
"""What docker/compose.yaml publishes servers on: GPU, simulated, CPU."""
OTHERS = {9401: "exporter", 9402: "sweep's /metrics", 9090: "Prometheus", 3000: "Grafana"}


def ports(mode: Mode, is_free: Callable[[str, int], bool] = port_is_free, host: str = "127.0.0.1") -> Finding:
    """Which of the ports are taken on the loopback address."""
    spans = CONTAINERS if mode == "docker" else SERVERS
    roles = {port: "server" for span in spans for port in span} | OTHERS
    taken = [f"{port} ({role})" for port, role in roles.items() if not is_free(host, port)]
    if not taken:
        servers = ", ".join(f"{span[0]}-{span[-1]}" for span in spans)
        others = ", ".join(map(str, OTHERS))
        return judged("ports", f"{servers}, {others} are free")
    advice = "fine if that is this project's stack; else stop what is listening (`ss -ltnp`) or choose other ports"
    return judged("ports", f"taken: {', '.join(taken)}", advice)


PROMETHEUS = "http://127.0.0.1:9090"
GRAFANA = "http://127.0.0.1:3000"


def prometheus(url: str = PROMETHEUS, body: Callable[[str], bytes | None] = get) -> Finding:
    """GET /-/ready, at most 5 s."""
    base = url.rstrip("/")
    if body(f"{base}/-/ready") is not None:
        return judged("Prometheus", f"{base} is ready")
    advice = "a sweep runs without; for live figures start the stack's prometheus, or give yours with --prometheus URL"
    return judged("Prometheus", f"{base} does not answer", advice)


def grafana(url: str = GRAFANA, answer: Callable[[str], dict[str, Any]] = get_object) -> Finding:
    """GET /api/health, at most 5 s."""
    base = url.rstrip("/")
    health = answer(f"{base}/api/health")
    if health.get("database") == "ok":
        return judged(
            "Grafana", f"{base} is healthy" + (f", version {health['version']}" if "version" in health else "")
        )
    if health:
        return judged("Grafana", f"{base} says {health}", "see Grafana's log")
    advice = "a sweep runs without; for dashboards start the stack's grafana, or give yours with --grafana URL"
    return judged("Grafana", f"{base} does not answer", advice)


LIMIT_S = 60.0


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, in a fixed order."""

    mode: Mode
    findings: tuple[Finding, ...]

    @property
    def can_run(self) -> bool:
        """Whether a sweep could run in this mode: nothing is missing."""
        return all(finding.state != "missing" for finding in self.findings)


class Check(msgspec.Struct, frozen=True):
    """One look, which may take at most `limit_s`."""

    name: str
    look: Callable[[], Sequence[Finding]]
    needed: bool = False
    """A look that fails is `missing`, else a `warning`."""
    limit_s: float = LIMIT_S


def examine(
    mode: Mode,
    *,
    model: str | None = None,
    vllm: str | None = None,
    prometheus_url: str = PROMETHEUS,
    grafana_url: str = GRAFANA,
) -> Examination:
    """Look at this machine for sweeps of `mode`, and at `model`'s checkpoints (default: those of every known model).

    Changes nothing and needs no root. Raises UsageError for a recipe file that is not valid.
    """
    recipes = load_recipes()
    timing = client_timing()
    checks = [
        Check("GPU driver", lambda: examine_gpus(mode), needed=mode == "gpu"),
        Check("CPU flags", lambda: [cpu_flags(mode, recipes), cpu_library(mode)]),
        Check("vLLM", lambda: examine_vllm(mode, vllm), mode in ("cpu", "gpu"), VERSION_TIMEOUT_S + LIMIT_S),
        Check("Docker", lambda: examine_docker(mode), needed=mode == "docker"),
        Check("ports", lambda: [ports(mode)]),
        Check("disk", lambda: [disk(mode, model, recipes)]),
        Check("hub", lambda: examine_checkpoints(mode, model, recipes)),
        Check("datasets", lambda: [dataset(mode, name, files) for name, files in FILES.items()]),
        Check("Prometheus", lambda: [prometheus(prometheus_url)]),
        Check("Grafana", lambda: [grafana(grafana_url)]),
        Check("proxy", lambda: [proxies()]),
        Check("clock", lambda: [clock_source()]),
    ]
    return Examination(mode=mode, findings=(*look_at_once(checks), timing))


def look_at_once(checks: Sequence[Check]) -> list[Finding]:
    """The findings of all checks, in their order; one that fails or does not end in time is a finding too."""
    looks = [(check, _Look(check.look), time.monotonic() + check.limit_s) for check in checks]
    return [finding for check, look, end_s in looks for finding in look.findings(check, end_s)]


class _Look(threading.Thread):
    """A check in its own thread, which does not keep the program from ending."""

    def __init__(self, look: Callable[[], Sequence[Finding]]) -> None:
        super().__init__(daemon=True)
        self._look = look
        self._found: Sequence[Finding] | None = None
        self._error = ""
        self.start()

    def run(self) -> None:
        try:
            self._found = self._look()
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"

    def findings(self, check: Check, end_s: float) -> Sequence[Finding]:
        self.join(max(0.0, end_s - time.monotonic()))
        if self._found is not None:
            return self._found
        seen = self._error or f"no answer within {check.limit_s:g} s"
        return [Finding(check.name, "missing" if check.needed else "warning", seen, "look at it by hand")]
