"""The compose project: docker/compose.yaml and docker/models/*.env as text, and a copy of the project in a folder."""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from loadgen import __version__
from loadgen.errors import UsageError
from loadgen.serving.launch import plan_launch, plan_simulated
from loadgen.serving.recipe import PACKAGE, Recipe, data_dir, load_models, load_recipes
from loadgen.serving.requirements import GIB, Sizing

Service = dict[str, Any]
MODEL = "mistralai/Mistral-7B-Instruct-v0.3"
"""The 16-bit model that is served by default."""
DEFAULT = ("fp16", "awq", "gptq", "bnb-nf4")
"""The services of a plain `docker compose up`, and the simulated ones."""
SERVICES = (*DEFAULT, "bf16", "bnb-int8", "fp8", "int8")
"""The recipes that have a service; the others run by `loadgen serve`."""
ON_CPU = ("bf16", "bnb-nf4", "int8")
"""Recipes that run on any x86-64 CPU."""
PORT = 8000
"""The port of every server inside the network."""
MAX_NUM_SEQS = 256
KV_CACHE_BYTES = 8 * 2**30
"""The same for every precision: 65,536 tokens of a 7B model with 8 key-value heads in 16 bits."""
GPU_MEMORY_UTILIZATION = "0.1"
"""vLLM needs this share of the GPU free to start, and ignores it otherwise when the size of the KV cache is set
(`request_memory` in its v1/worker/utils.py). Low if the project was not sized; else what the server needs."""
ONE_GPU, OTHERS = "gpu", "gpus"
"""Profiles: servers that fit on the GPUs together, and the others, for one at a time or a GPU each."""
CPU_ROOT = "/opt/loadgen-cpu"
"""The environment of `loadgen cpu-env` in the image of docker/vllm-cpu.Dockerfile."""
VLLM_VERSION = "0.31.0"
"""The newest whose image has a public digest and tag. The recipes hold for vLLM 0.26 to 0.33."""
VLLM_IMAGE = f"vllm/vllm-openai:v{VLLM_VERSION}@sha256:c1c9f6fd5c109ba7f0546a59f5b2f15fb87f64c77782e90a27b648b42a8e67c3"
VLLM = f"${{VLLM_IMAGE:-{VLLM_IMAGE}}}"
OWN_IMAGE = f"${{LOADGEN_IMAGE:-vllm-loadgen:{__version__}}}"
EXPORTER_IMAGE = f"${{EXPORTER_IMAGE:-vllm-loadgen-exporter:{__version__}}}"
CPU_IMAGE = f"${{VLLM_CPU_IMAGE:-vllm-loadgen-cpu:{__version__}}}"
PYTHON_IMAGE = "python:3.12.13-slim-bookworm@sha256:4766d8b510c428e595d74b9cc5bbb2fae8e26316fffb4adc89908d79aacd58a2"
BUILD_ARGS = {
    "PYTHON_IMAGE": f"${{PYTHON_IMAGE:-{PYTHON_IMAGE}}}",
    "PIP_INDEX_URL": "${PIP_INDEX_URL:-}",
    "PIP_EXTRA_INDEX_URL": "${PIP_EXTRA_INDEX_URL:-}",
    "PIP_NO_INDEX": "${PIP_NO_INDEX:-}",
}
"""pip ignores empty ones."""


def variable(name: str) -> str:
    """The prefix of a service's variables: BNB_NF4 for bnb-nf4."""
    return name.upper().replace("-", "_")


def checkpoint_of(recipe: Recipe, model: str) -> tuple[str, tuple[str, ...]]:
    """The recipe's checkpoint for the 16-bit `model`, and the arguments that quantize it while loading.

    Without a checkpoint: a name that no server can load, so that no other model is served.
    """
    try:
        checkpoint = recipe.checkpoint_for(model)
    except UsageError:
        return f"set-{variable(recipe.name)}_CHECKPOINT", ()
    return checkpoint, recipe.in_flight_args if checkpoint == model else ()


def gpu_server(recipe: Recipe, port: int) -> Service:
    """vLLM from its image, planned as `loadgen serve` plans it; published on `port` of the host's loopback."""
    prefix, own = variable(recipe.name), recipe.checkpoint == "own"
    checkpoint, in_flight = checkpoint_of(recipe, MODEL)
    served = f"${{{prefix}_CHECKPOINT:-{checkpoint}}}"
    more = shlex.join(in_flight) if own else ""
    launch = plan_launch(
        recipe, model=MODEL if own else served, checkpoint=served if own else None, port=PORT, device="cuda",
        max_num_seqs=MAX_NUM_SEQS, vllm="vllm", host="0.0.0.0",
        extra_args=(
            "--kv-cache-memory-bytes", f"${{KV_CACHE_BYTES:-{KV_CACHE_BYTES}}}",
            "--gpu-memory-utilization", f"${{{prefix}_GPU_MEMORY_UTILIZATION:-{GPU_MEMORY_UTILIZATION}}}",
            "${VLLM_ARGS:-}", f"${{{prefix}_ARGS:-{more}}}",
        ),
    )  # fmt: skip
    with_plugin = {
        "image": f"${{VLLM_BNB_IMAGE:-vllm-loadgen-bnb:{VLLM_VERSION}}}",
        "build": _build("vllm-bnb", {"VLLM_IMAGE": VLLM, "BNB_PACKAGES": "${BNB_PACKAGES:-}"}),
    }
    return {
        **(with_plugin if recipe.backend == "bitsandbytes" else {"image": VLLM}),
        "profiles": [f"${{{prefix}_PROFILE:-{_profile(recipe.name)}}}", recipe.name],
        "entrypoint": with_key("VLLM_API_KEY", "vllm", "serve"),
        "command": _command(_with_variable(launch.argv[2:], "--max-num-seqs", "MAX_NUM_SEQS")),
        "environment": launch.env
        | API_KEY
        | {"HF_TOKEN_PATH": "/run/secrets/hf_token", "HF_HUB_OFFLINE": "${HF_HUB_OFFLINE:-0}"},
        "secrets": ["hf_token", "api_key"],
        "volumes": ["${HF_CACHE:-hf-cache}:/root/.cache/huggingface:z", "vllm-cache:/root/.cache/vllm", START],
        "shm_size": "${SHM_SIZE:-8gb}",
        **UNPRIVILEGED,
        "cap_add": ["DAC_OVERRIDE"],
        "ports": [_published(prefix, port)],
        "healthcheck": _health("python3", f"http://127.0.0.1:{PORT}/health", start="${START_PERIOD:-45m}"),
        "deploy": _gpu(f"${{{prefix}_GPU:-0}}", ["gpu"]),
    }


def _profile(name: str) -> str:
    """The profile of a service in a project that was not sized: one server is up, the four are measured."""
    return ONE_GPU if name == DEFAULT[0] else OTHERS if name in DEFAULT else "more"


def cpu_server(recipe: Recipe, port: int) -> Service:
    """Real vLLM of `loadgen cpu-env`, with the image's tiny model, or one of the user's in /models."""
    prefix, own = variable(f"cpu-{recipe.name}"), recipe.checkpoint == "own"
    served = f"${{{prefix}_MODEL:-models/tiny{f'-{recipe.name}' if own else ''}}}"
    vllm = f"{CPU_ROOT}/venv/bin/vllm"
    launch = plan_launch(
        recipe, model="models/tiny" if own else served, checkpoint=served if own else None, port=PORT, device="cpu",
        max_num_seqs=MAX_NUM_SEQS, vllm=vllm, host="0.0.0.0", extra_args=("${VLLM_ARGS:-}",),
    )  # fmt: skip
    return {
        "image": CPU_IMAGE,
        "build": _build("vllm-cpu", BUILD_ARGS),
        "profiles": ["cpu"],
        "entrypoint": with_key("VLLM_API_KEY", vllm, "serve"),
        "working_dir": CPU_ROOT,
        "command": _command(_with_variable(launch.argv[2:], "--max-num-seqs", "MAX_NUM_SEQS")),
        "environment": {**launch.env, **API_KEY, "HF_HUB_OFFLINE": "1"},
        "secrets": ["api_key"],
        "volumes": ["${CPU_MODELS:-cpu-models}:/models:ro,z", START],
        "shm_size": "1gb",
        **HARDENED,
        "ports": [_published(prefix, port)],
        "healthcheck": _health(f"{CPU_ROOT}/venv/bin/python", f"http://127.0.0.1:{PORT}/health", start="15m"),
    }


def simulated_server(precision: str, port: int) -> Service:
    """`loadgen simulate` with its power below /power; SIMULATED, nothing is measured."""
    launch = plan_simulated(precision, port=PORT, extra_args=("--host", "0.0.0.0", "${SIM_ARGS:-}"))
    return {
        **own_image(),
        "profiles": ["simulated"],
        "command": _command(launch.argv[3:]),
        **HARDENED,
        "ports": [_published(variable(f"sim-{precision}"), port)],
        "healthcheck": _health("python", f"http://127.0.0.1:{PORT}/health", start="1m"),
    }


def exporter(profiles: Sequence[str]) -> Service:
    """`loadgen exporter`: NVML's power and energy of one GPU, or of those that its variables name."""
    return {
        "image": EXPORTER_IMAGE,
        "build": _build("exporter", BUILD_ARGS),
        "profiles": list(profiles),
        "command": "exporter --host 0.0.0.0 --port 9401 ${EXPORTER_ARGS:-}",
        **HARDENED,
        "ports": ["${BIND_ADDRESS:-127.0.0.1}:${EXPORTER_PORT:-9401}:9401"],
        "healthcheck": _health("python", "http://127.0.0.1:9401/health", start="30s"),
        "deploy": _gpu("${EXPORTER_GPU:-0}", ["gpu", "utility"]),
    }


def own_image() -> Service:
    """The image with all of loadgen, and its build."""
    return {"image": OWN_IMAGE, "build": _build("loadgen", BUILD_ARGS)}


UNPRIVILEGED: Service = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
"""For every image. vLLM's runs as root and also needs DAC_OVERRIDE, to write to a cache that belongs to a user."""
HARDENED: Service = {"read_only": True, "tmpfs": ["/tmp"], **UNPRIVILEGED}
"""For images that write only to their volumes and /tmp and do not run as root: all but vLLM's."""
API_KEY = {"API_KEY_FILE": "/run/secrets/api_key"}
START = "./start.sh:/opt/start.sh:ro,z"
OFTEN = {"interval": "5s", "timeout": "5s", "retries": 6}


def with_key(name: str, *command: str) -> list[str]:
    """The entrypoint that runs `command` with the API key of the secret file in the variable `name`."""
    return ["/bin/sh", "/opt/start.sh", name, *command]


def _build(name: str, arguments: dict[str, str]) -> Service:
    return {"context": "..", "dockerfile": f"docker/{name}.Dockerfile", "args": dict(arguments)}


def _published(prefix: str, port: int) -> str:
    return f"${{BIND_ADDRESS:-127.0.0.1}}:${{{prefix}_PORT:-{port}}}:{PORT}"


def _health(python: str, url: str, *, start: str) -> Service:
    """Python instead of curl, which images may lack; failures during the start period do not count."""
    probe = f"import urllib.request; urllib.request.urlopen('{url}', timeout=4)"
    return {"test": ["CMD", python, "-c", probe], **OFTEN, "start_period": start}


def _gpu(device: str, capabilities: list[str]) -> Service:
    reserved = {"driver": "nvidia", "device_ids": [device], "capabilities": capabilities}
    return {"resources": {"reservations": {"devices": [reserved]}}}


def _with_variable(argv: Sequence[str], option: str, name: str) -> list[str]:
    """The arguments with the value of `option` replaced by a variable with this default."""
    place = argv.index(option) + 1
    return [*argv[:place], f"${{{name}:-{argv[place]}}}", *argv[place + 1 :]]


def _command(argv: Sequence[str]) -> str:
    """One string, which compose splits after it has replaced variables: an empty one leaves no argument."""
    return " ".join(word if word.startswith("${") else shlex.quote(word) for word in argv)


PROMETHEUS_IMAGE = "prom/prometheus:v3.5.3@sha256:ddc2493835a1509976d5e4e0c94199c4f843ce1f42dd6bcfc8231ba734a93ff7"
GRAFANA_IMAGE = "grafana/grafana:12.4.10@sha256:c132a683b2430fff9115a29b2a79c8ab97540cdcc90846e3c81878c778ca3596"
IMAGES = {
    "VLLM_IMAGE": VLLM_IMAGE,
    "PROMETHEUS_IMAGE": PROMETHEUS_IMAGE,
    "GRAFANA_IMAGE": GRAFANA_IMAGE,
    "PYTHON_IMAGE": PYTHON_IMAGE,
}
"""Images of other publishers, by the variable that replaces them."""
SECRETS = ("hf_token", "api_key", "grafana_password")
"""Contents of the files that variables name (HF_TOKEN_FILE, ...); empty without one."""
HEADER = """\
# Generated from servers/*.toml by `python docker/generate.py`; a test fails when it is stale. Do not edit: every choice
# is a variable (docs/docker.md), set in the shell, in docker/.env or with --env-file models/NAME.env.
#
#   loadgen sweep --compose                           one server after another: fp16, awq, gptq, bnb-nf4
#   docker compose up                                 what fits on the GPU together, exporter, Prometheus, Grafana
#   COMPOSE_PROFILES=gpu,gpus docker compose up       all four at once: for a GPU each
#   COMPOSE_PROFILES=fp16,awq docker compose up       two of them
#   COMPOSE_PROFILES=simulated docker compose up      SIMULATED servers: no GPU, nothing is measured
#   COMPOSE_PROFILES=cpu docker compose up            real vLLM on this machine's CPU, tiny models
#   docker compose run --rm loadgen sweep --target fp16=http://fp16:8000 --power exporter=http://exporter:9401
#
# For Compose v2 and docker-compose 1.29.

"""


def compose_file() -> str:
    """docker/compose.yaml: a service per recipe, planned as `loadgen serve` plans it, and their monitoring."""
    recipes = load_recipes()
    services = {name: gpu_server(recipes[name], 8001 + index) for index, name in enumerate(SERVICES)}
    services |= {f"sim-{name}": simulated_server(name, 8101 + index) for index, name in enumerate(DEFAULT)}
    services |= {f"cpu-{name}": cpu_server(recipes[name], 8201 + index) for index, name in enumerate(ON_CPU)}
    services |= {"exporter": exporter([ONE_GPU, OTHERS, *SERVICES]), "prometheus": _prometheus()}
    services |= {"grafana": _grafana(), "loadgen": _loadgen()}
    volumes = ("hf-cache", "vllm-cache", "cpu-models", "prometheus", "grafana-data", "runs", "cache")
    project = {
        "services": services,
        "volumes": {name: {} for name in volumes},
        "secrets": {name: {"file": f"${{{variable(name)}_FILE:-./no-secret}}"} for name in SECRETS},
    }
    return HEADER + yaml.dump(project, Dumper=_Plain, sort_keys=False, width=118)


def environment_file(model: str) -> str:
    """docker/models/NAME.env: each recipe's checkpoint for the 16-bit `model`, and its arguments (`checkpoint_of`)."""
    lines = [
        f"# {model}: generated from servers/*.toml by `python docker/generate.py`, do not edit.",
        f"#   docker compose --env-file models/{environment_name(model)} up",
        "COMPOSE_PROFILES=gpu",
    ]
    recipes = load_recipes()
    for name in sorted(SERVICES):
        recipe = recipes[name]
        checkpoint, in_flight = checkpoint_of(recipe, model)
        if checkpoint in recipe.unverified_checkpoints.values():
            lines.append(f"# not verified: {checkpoint} is a guess from its siblings' names")
        lines.append(f"{variable(name)}_CHECKPOINT={checkpoint}")
        if recipe.checkpoint == "own" and in_flight:
            lines.append(f"{variable(name)}_ARGS={shlex.join(in_flight)}")
    return "\n".join(lines) + "\n"


def sized_environment(model: str, sizing: Sizing, checkpoints: Mapping[str, str]) -> str:
    """docker/.env for these GPUs: batch sizes, KV cache, each server's share of a GPU, and the model's checkpoints.

    `checkpoints` replaces those of the recipes.
    """
    total = min(sizing.gpus)
    levels = ",".join(map(str, sizing.concurrency))
    lines = [
        f"# Written by `loadgen compose` for {model}: {len(sizing.gpus)} GPU(s) of {total / GIB:.1f} GiB, B up to "
        f"{max(sizing.concurrency)}, requests of at most {sizing.tokens} tokens.",
        f"COMPOSE_PROFILES={ONE_GPU}",
        f"CONCURRENCY={levels}",
        f"MAX_NUM_SEQS={max(MAX_NUM_SEQS, *sizing.concurrency)}",
        f"KV_CACHE_BYTES={sizing.kv_cache_bytes}",
    ]
    for name in SERVICES:
        prefix, need = variable(name), sizing.needs.get(name)
        if need is None:
            lines.append(f"{prefix}_PROFILE=more")
            continue
        gpus = sizing.placed.get(name)
        lines.append(f"{prefix}_PROFILE={OTHERS if gpus is None else ONE_GPU}")
        lines.append(f"{prefix}_GPU={','.join(map(str, gpus or range(sizing.shared[name])))}")
        lines.append(f"{prefix}_GPU_MEMORY_UTILIZATION={math.ceil(need / total * 100) / 100:.2f}")
    given = {f"{variable(name)}_CHECKPOINT": checkpoint for name, checkpoint in checkpoints.items()}
    sharing = {f"{variable(name)}_ARGS": _shared(sizing, name) for name in sizing.needs if sizing.shared[name] > 1}
    for line in environment_file(model).splitlines()[3:]:
        name = line.partition("=")[0]
        lines.append(f"{name}={given[name]}" if name in given else f"{line} {sharing.pop(name, '')}".rstrip())
    lines += [f"{name}={words}" for name, words in sharing.items()]
    return "\n".join(lines) + "\n"


def _shared(sizing: Sizing, name: str) -> str:
    """The arguments of a server whose model several GPUs share; they come last and so win."""
    kept = round(sizing.kv_cache_bytes * sizing.kv_shares[name])
    return f"--tensor-parallel-size {sizing.shared[name]} --kv-cache-memory-bytes {kept}"


def environment_name(model: str) -> str:
    """The file name of a model's environment file."""
    return f"{model.rpartition('/')[2].lower()}.env"


def generated_files() -> dict[str, str]:
    """Every generated file's text, by its path below docker/."""
    environments = {f"models/{environment_name(model)}": environment_file(model) for model in load_models()}
    return {"compose.yaml": compose_file(), **environments}


class _Plain(yaml.SafeDumper):
    """Without anchors: every service is written out in full."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _prometheus() -> Service:
    """Always up. The `loadgen` service shares its network, so `loadgen` is its own host."""
    return {
        "image": f"${{PROMETHEUS_IMAGE:-{PROMETHEUS_IMAGE}}}",
        "command": (
            "--config.file=/etc/prometheus/prometheus.yaml --storage.tsdb.path=/prometheus "
            "--storage.tsdb.retention.time=${PROMETHEUS_RETENTION:-30d}"
        ),
        "volumes": ["./prometheus:/etc/prometheus:ro,z", "prometheus:/prometheus"],
        "extra_hosts": ["loadgen:127.0.0.1", "host.docker.internal:host-gateway"],
        **HARDENED,
        "ports": ["${BIND_ADDRESS:-127.0.0.1}:${PROMETHEUS_PORT:-9090}:9090"],
        "healthcheck": {
            "test": ["CMD", "promtool", "query", "instant", "http://127.0.0.1:9090", "vector(1)"],
            **OFTEN,
            "start_period": "1m",
        },
    }


def _grafana() -> Service:
    return {
        "image": f"${{GRAFANA_IMAGE:-{GRAFANA_IMAGE}}}",
        "depends_on": ["prometheus"],
        "entrypoint": ["/bin/sh", "/opt/start.sh", "/run.sh"],
        "environment": {
            "BIND_ADDRESS": "${BIND_ADDRESS:-127.0.0.1}",
            "GRAFANA_PASSWORD_FILE": "/run/secrets/grafana_password",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_PLUGINS_PREINSTALL_DISABLED": "true",
        },
        "secrets": ["grafana_password"],
        "volumes": [
            "./grafana/provisioning:/etc/grafana/provisioning:ro,z",
            "./grafana/start.sh:/opt/start.sh:ro,z",
            "../dashboards:/var/lib/grafana/dashboards/loadgen:ro,z",
            "grafana-data:/var/lib/grafana",
        ],
        **HARDENED,
        "ports": ["${BIND_ADDRESS:-127.0.0.1}:${GRAFANA_PORT:-3000}:3000"],
    }


def _loadgen() -> Service:
    """For `docker compose run loadgen ...`: `up` does not start it."""
    return {
        **own_image(),
        "profiles": ["loadgen"],
        "network_mode": "service:prometheus",
        "user": "${LOADGEN_USER:-10001:10001}",
        "entrypoint": with_key("LOADGEN_API_KEY", "loadgen"),
        "environment": API_KEY,
        "secrets": ["api_key"],
        "command": "--help",
        "volumes": ["${LOADGEN_RUNS:-runs}:/runs:z", "${LOADGEN_CACHE:-cache}:/cache:z", START],
        **HARDENED,
    }


DATA = ("docker", "dashboards", "servers", "pyproject.toml", "README.md", "LICENSE", ".dockerignore")
"""The files and folders of the project's root that images need, besides the package."""
LEFT_OUT = shutil.ignore_patterns("__pycache__", "_data")


def write_project(folder: Path, *, force: bool = False) -> list[Path]:
    """Write docker/, dashboards/, servers/ and loadgen's source into `folder`, which is made if it does not exist.

    Returns the top-level paths written. With `force`, files of the project are replaced; others are never changed.
    Raises UsageError when one of them exists already without `force`, or the folder cannot be written.
    """
    source = data_dir()
    if folder.resolve() in (source.resolve(), PACKAGE.parent.resolve()):
        raise UsageError(f"--dir {folder} is the project's own folder; name another folder")
    taken = [name for name in (*DATA, "loadgen") if (folder / name).exists()]
    if taken and not force:
        raise UsageError(f"{folder} already holds {', '.join(taken)}; name another folder with --dir, or add --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [_copy(source / name, folder / name) for name in DATA]
        return [*written, _copy(PACKAGE, folder / "loadgen")]
    except OSError as error:
        raise UsageError(f"--dir {folder} cannot be written: {error}; name another folder") from error


def _copy(source: Path, target: Path) -> Path:
    if source.is_dir():
        shutil.copytree(source, target, ignore=LEFT_OUT, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
    return target
