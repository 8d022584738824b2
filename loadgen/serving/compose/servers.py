"""Compose services that answer questions: vLLM on GPUs, vLLM on the CPU, simulated."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from loadgen._version import __version__
from loadgen.errors import UsageError
from loadgen.serving.launch import plan_launch, plan_simulated
from loadgen.serving.recipe import Recipe

Service = dict[str, Any]
MODEL = "mistralai/Mistral-7B-Instruct-v0.3"
"""The 16-bit model that is served where no checkpoint is named."""
DEFAULT = ("fp16", "awq", "gptq", "bnb-nf4")
"""What a plain `docker compose up` serves, and what is simulated."""
ON_CPU = ("bf16", "bnb-nf4", "int8")
"""What any x86-64 CPU runs."""
PORT = 8000
"""Where every server listens inside the network."""
MAX_NUM_SEQS = 256
KV_CACHE_BYTES = 8 * 2**30
"""The same for every precision: 65,536 tokens of a 7B model with 8 key-value heads in 16 bits."""
GPU_MEMORY_UTILIZATION = "0.1"
"""vLLM refuses to start unless this share of the GPU is free, and else ignores it when the KV cache has a set size
(`request_memory` in its v1/worker/utils.py). Low, so that the last of several servers on one GPU starts, too."""
CPU_ROOT = "/opt/loadgen-cpu"
"""Where docker/vllm-cpu.Dockerfile puts the environment of `loadgen cpu-env`."""
VLLM_VERSION = "0.33.0"
"""The newest whose flags, log and metrics were read; that of `loadgen cpu-env` is older, see there."""
VLLM_IMAGE = f"vllm/vllm-openai:v{VLLM_VERSION}"
"""Without a digest: none was published beside this tag where it could be read."""
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
"""An empty one is as good as none to pip."""


def variable(name: str) -> str:
    """The prefix of a service's variables: BNB_NF4 for bnb-nf4."""
    return name.upper().replace("-", "_")


def checkpoint_of(recipe: Recipe, model: str) -> tuple[str, tuple[str, ...]]:
    """What the recipe serves for the 16-bit `model`, and the arguments that quantize it while loading.

    Where there is nothing to serve: a name that no server can load, so that it is never another model.
    """
    try:
        checkpoint = recipe.checkpoint_for(model)
    except UsageError:
        return f"set-{variable(recipe.name)}_CHECKPOINT", ()
    return checkpoint, recipe.in_flight_args if checkpoint == model else ()


def gpu_server(recipe: Recipe, port: int) -> Service:
    """vLLM from its image, planned as `loadgen serve` plans it; published on `port` of the host's loopback."""
    prefix = variable(recipe.name)
    checkpoint, in_flight = checkpoint_of(recipe, MODEL)
    served = f"${{{prefix}_CHECKPOINT:-{checkpoint}}}"
    own = recipe.checkpoint == "own"
    more = shlex.join(in_flight) if own else ""
    launch = plan_launch(
        recipe, model=MODEL if own else served, checkpoint=served if own else None, port=PORT, device="cuda",
        max_num_seqs=MAX_NUM_SEQS, vllm="vllm", host="0.0.0.0",
        extra_args=(
            "--kv-cache-memory-bytes", f"${{KV_CACHE_BYTES:-{KV_CACHE_BYTES}}}",
            "--gpu-memory-utilization", f"${{GPU_MEMORY_UTILIZATION:-{GPU_MEMORY_UTILIZATION}}}",
            "${VLLM_ARGS:-}", f"${{{prefix}_ARGS:-{more}}}",
        ),
    )  # fmt: skip
    profiles = ["gpu", recipe.name] if recipe.name in DEFAULT else [recipe.name]
    return {
        **(_bitsandbytes() if recipe.backend == "bitsandbytes" else {"image": VLLM}),
        "profiles": profiles,
        "entrypoint": with_key("VLLM_API_KEY", "vllm", "serve"),
        "command": _command(_with_variable(launch.argv[2:], "--max-num-seqs", "MAX_NUM_SEQS")),
        "environment": {
            **launch.env,
            **API_KEY,
            "HF_TOKEN_PATH": "/run/secrets/hf_token",
            "HF_HUB_OFFLINE": "${HF_HUB_OFFLINE:-0}",
        },
        "secrets": ["hf_token", "api_key"],
        "volumes": ["${HF_CACHE:-hf-cache}:/root/.cache/huggingface", "vllm-cache:/root/.cache/vllm", START],
        "shm_size": "${SHM_SIZE:-8gb}",
        **UNPRIVILEGED,
        "cap_add": ["DAC_OVERRIDE"],
        "ports": [_published(prefix, port)],
        "healthcheck": _health("python3", f"http://127.0.0.1:{PORT}/health", start="${START_PERIOD:-45m}"),
        "deploy": _gpu(f"${{{prefix}_GPU:-0}}", ["gpu"]),
    }


def cpu_server(recipe: Recipe, port: int) -> Service:
    """Real vLLM of `loadgen cpu-env`, with a tiny model that lies in the image, or one of the user's in /models."""
    own = recipe.checkpoint == "own"
    prefix = variable(f"cpu-{recipe.name}")
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
        "volumes": ["${CPU_MODELS:-cpu-models}:/models:ro", START],
        "shm_size": "1gb",
        **HARDENED,
        "ports": [_published(prefix, port)],
        "healthcheck": _health(f"{CPU_ROOT}/venv/bin/python", f"http://127.0.0.1:{PORT}/health", start="15m"),
    }


def simulated_server(precision: str, port: int) -> Service:
    """`loadgen simulate` with its power below /power; SIMULATED, nothing is measured."""
    prefix = variable(f"sim-{precision}")
    launch = plan_simulated(precision, port=PORT, extra_args=("--host", "0.0.0.0", "${SIM_ARGS:-}"))
    return {
        **own_image(),
        "profiles": ["simulated"],
        "command": _command(launch.argv[3:]),
        **HARDENED,
        "ports": [_published(prefix, port)],
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
    """The image with all of loadgen, and how it is built."""
    return {"image": OWN_IMAGE, "build": _build("loadgen", BUILD_ARGS)}


UNPRIVILEGED: Service = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
"""For every image. vLLM's runs as root: it also needs DAC_OVERRIDE, to write to a cache that belongs to a user."""
HARDENED: Service = {"read_only": True, "tmpfs": ["/tmp"], **UNPRIVILEGED}
"""For images that write to their volumes and /tmp only, and do not run as root: all but vLLM's."""
API_KEY = {"API_KEY_FILE": "/run/secrets/api_key"}
START = "./start.sh:/opt/start.sh:ro"


def with_key(name: str, *command: str) -> list[str]:
    """The entrypoint that runs `command` with the API key of the secret file in the variable `name`."""
    return ["/bin/sh", "/opt/start.sh", name, *command]


def _bitsandbytes() -> Service:
    image = f"${{VLLM_BNB_IMAGE:-vllm-loadgen-bnb:{VLLM_VERSION}}}"
    return {
        "image": image,
        "build": _build("vllm-bnb", {"VLLM_IMAGE": VLLM, "BNB_PACKAGES": "${BNB_PACKAGES:-}"}),
    }


def _build(name: str, arguments: dict[str, str]) -> Service:
    return {"context": "..", "dockerfile": f"docker/{name}.Dockerfile", "args": dict(arguments)}


def _published(prefix: str, port: int) -> str:
    return f"${{BIND_ADDRESS:-127.0.0.1}}:${{{prefix}_PORT:-{port}}}:{PORT}"


def _health(python: str, url: str, *, start: str) -> Service:
    """Python instead of curl, which images may lack; failures during the start period do not count."""
    probe = f"import urllib.request; urllib.request.urlopen('{url}', timeout=4)"
    often = {"interval": "5s", "timeout": "5s", "retries": 6}
    return {"test": ["CMD", python, "-c", probe], **often, "start_period": start}


def _gpu(device: str, capabilities: list[str]) -> Service:
    reserved = {"driver": "nvidia", "device_ids": [device], "capabilities": capabilities}
    return {"resources": {"reservations": {"devices": [reserved]}}}


def _with_variable(argv: Sequence[str], option: str, name: str) -> list[str]:
    """The arguments with the value of `option` as the variable's default."""
    place = argv.index(option) + 1
    return [*argv[:place], f"${{{name}:-{argv[place]}}}", *argv[place + 1 :]]


def _command(argv: Sequence[str]) -> str:
    """One string, which compose splits after it has filled in the variables: an empty one leaves no argument."""
    return " ".join(word if word.startswith("${") else shlex.quote(word) for word in argv)
