"""docker/compose.yaml and docker/models/*.env as text."""

from __future__ import annotations

import shlex

import yaml

from loadgen.serving.compose.servers import (
    API_KEY,
    DEFAULT,
    HARDENED,
    ON_CPU,
    PYTHON_IMAGE,
    START,
    VLLM_IMAGE,
    Service,
    checkpoint_of,
    cpu_server,
    exporter,
    gpu_server,
    own_image,
    simulated_server,
    variable,
    with_key,
)
from loadgen.serving.families import load_models
from loadgen.serving.recipe import load_recipes

PROMETHEUS_IMAGE = "prom/prometheus:v3.5.3@sha256:ddc2493835a1509976d5e4e0c94199c4f843ce1f42dd6bcfc8231ba734a93ff7"
GRAFANA_IMAGE = "grafana/grafana:12.4.10@sha256:c132a683b2430fff9115a29b2a79c8ab97540cdcc90846e3c81878c778ca3596"
IMAGES = {
    "VLLM_IMAGE": VLLM_IMAGE,
    "PROMETHEUS_IMAGE": PROMETHEUS_IMAGE,
    "GRAFANA_IMAGE": GRAFANA_IMAGE,
    "PYTHON_IMAGE": PYTHON_IMAGE,
}
"""The images that others publish, by the variable that names another."""
SECRETS = ("hf_token", "api_key", "grafana_password")
"""Each the content of the file that a variable names (HF_TOKEN_FILE, ...), empty without one."""
HEADER = """\
# Generated from servers/*.toml by `python docker/generate.py`; a test fails when it is stale. Do not edit: every choice
# is a variable (docs/docker.md), set in the shell, in docker/.env or with --env-file models/NAME.env.
#
#   docker compose up                                 fp16, awq, gptq, bnb-nf4, exporter, Prometheus, Grafana
#   COMPOSE_PROFILES=fp16,awq docker compose up       two of them
#   COMPOSE_PROFILES=simulated docker compose up      SIMULATED servers: no GPU, nothing is measured
#   COMPOSE_PROFILES=cpu docker compose up            real vLLM on this machine's CPU, tiny models
#   docker compose run --rm loadgen sweep --target fp16=http://fp16:8000 --power exporter=http://exporter:9401
#
# For Compose v2 and docker-compose 1.29.

"""


def compose_file() -> str:
    """docker/compose.yaml: every recipe a service, planned as `loadgen serve` plans it, and what watches them."""
    recipes = load_recipes()
    names = [*DEFAULT, *(name for name in recipes if name not in DEFAULT)]
    services = {name: gpu_server(recipes[name], 8001 + index) for index, name in enumerate(names)}
    services |= {f"sim-{name}": simulated_server(name, 8101 + index) for index, name in enumerate(DEFAULT)}
    services |= {f"cpu-{name}": cpu_server(recipes[name], 8201 + index) for index, name in enumerate(ON_CPU)}
    services |= {
        "exporter": exporter(["gpu", *names]),
        "prometheus": _prometheus(),
        "grafana": _grafana(),
        "loadgen": _loadgen(),
    }
    volumes = ("hf-cache", "vllm-cache", "cpu-models", "prometheus", "grafana-data", "runs", "cache")
    project = {
        "services": services,
        "volumes": {name: {} for name in volumes},
        "secrets": {name: {"file": f"${{{variable(name)}_FILE:-./no-secret}}"} for name in SECRETS},
    }
    return HEADER + yaml.dump(project, Dumper=_Plain, sort_keys=False, width=118)


def environment_file(model: str) -> str:
    """docker/models/NAME.env: what each recipe serves for the 16-bit `model`, and what quantizes it while loading.

    A recipe without a checkpoint for the model gets a name that no server can load, never another model's.
    """
    lines = [
        f"# {model}: generated from servers/*.toml by `python docker/generate.py`, do not edit.",
        f"#   docker compose --env-file models/{environment_name(model)} up",
        "COMPOSE_PROFILES=gpu",
    ]
    for name, recipe in load_recipes().items():
        checkpoint, in_flight = checkpoint_of(recipe, model)
        if checkpoint in recipe.unverified_checkpoints.values():
            lines.append(f"# not verified: {checkpoint} is expected by its siblings' names")
        lines.append(f"{variable(name)}_CHECKPOINT={checkpoint}")
        if recipe.checkpoint == "own" and in_flight:
            lines.append(f"{variable(name)}_ARGS={shlex.join(in_flight)}")
    return "\n".join(lines) + "\n"


def environment_name(model: str) -> str:
    """The file name of a model's environment file."""
    return f"{model.rpartition('/')[2].lower()}.env"


def generated_files() -> dict[str, str]:
    """Every generated file's text, by its path below docker/."""
    environments = {f"models/{environment_name(model)}": environment_file(model) for model in load_models()}
    return {"compose.yaml": compose_file(), **environments}


class _Plain(yaml.SafeDumper):
    """Without anchors: what a service is stands in one place."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _prometheus() -> Service:
    """Always up. A sweep in the `loadgen` service shares its network, so `loadgen` is this very host to it."""
    return {
        "image": f"${{PROMETHEUS_IMAGE:-{PROMETHEUS_IMAGE}}}",
        "command": (
            "--config.file=/etc/prometheus/prometheus.yaml --storage.tsdb.path=/prometheus "
            "--storage.tsdb.retention.time=${PROMETHEUS_RETENTION:-30d}"
        ),
        "volumes": ["./prometheus:/etc/prometheus:ro", "prometheus:/prometheus"],
        "extra_hosts": ["loadgen:127.0.0.1", "host.docker.internal:host-gateway"],
        **HARDENED,
        "ports": ["${BIND_ADDRESS:-127.0.0.1}:${PROMETHEUS_PORT:-9090}:9090"],
        "healthcheck": {
            "test": ["CMD", "promtool", "query", "instant", "http://127.0.0.1:9090", "vector(1)"],
            "interval": "5s", "timeout": "5s", "retries": 6, "start_period": "1m",
        },
    }  # fmt: skip


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
            "./grafana/provisioning:/etc/grafana/provisioning:ro",
            "./grafana/start.sh:/opt/start.sh:ro",
            "../dashboards:/var/lib/grafana/dashboards/loadgen:ro",
            "grafana-data:/var/lib/grafana",
        ],
        **HARDENED,
        "ports": ["${BIND_ADDRESS:-127.0.0.1}:${GRAFANA_PORT:-3000}:3000"],
    }


def _loadgen() -> Service:
    """For `docker compose run loadgen ...`: `up` leaves it alone."""
    return {
        **own_image(),
        "profiles": ["loadgen"],
        "network_mode": "service:prometheus",
        "user": "${LOADGEN_USER:-10001:10001}",
        "entrypoint": with_key("LOADGEN_API_KEY", "loadgen"),
        "environment": API_KEY,
        "secrets": ["api_key"],
        "command": "--help",
        "volumes": ["${LOADGEN_RUNS:-runs}:/runs", "${LOADGEN_CACHE:-cache}:/cache", START],
        **HARDENED,
    }
