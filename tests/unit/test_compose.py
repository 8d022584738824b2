"""docker/compose.yaml follows from the recipes, and is what it says to be about ports, privileges and fairness."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from programs import program

from loadgen.serving.compose import (
    DEFAULT,
    KV_CACHE_BYTES,
    MODEL,
    ON_CPU,
    PORT,
    PYTHON_IMAGE,
    SERVICES,
    environment_file,
    environment_name,
    generated_files,
    sized_environment,
)
from loadgen.serving.launch import plan_launch
from loadgen.serving.recipe import load_models, load_recipe
from loadgen.serving.requirements import GIB, fit, size_of

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_compose", DOCKER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    """The services as they are written."""
    services: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    return services


@pytest.fixture(scope="module")
def services(raw: dict[str, Any]) -> dict[str, Any]:
    """The services as compose sees them when no variable is set."""
    return filled(raw, {})


def filled(node: Any, variables: dict[str, str]) -> Any:
    """Compose's ${NAME:-default}, as deep as the node goes."""
    if isinstance(node, str):
        return VARIABLE.sub(lambda found: variables.get(found[1]) or found[2], node)
    if isinstance(node, list):
        return [filled(item, variables) for item in node]
    return {key: filled(item, variables) for key, item in node.items()} if isinstance(node, dict) else node


def argv(service: dict[str, Any]) -> list[str]:
    return shlex.split(service["command"])


def without(arguments: list[str], *options: str) -> list[str]:
    """The arguments less these options and their values."""
    dropped = {place for option in options for place in (arguments.index(option), arguments.index(option) + 1)}
    return [word for place, word in enumerate(arguments) if place not in dropped]


def test_what_is_committed_is_what_the_recipes_say(generate: ModuleType) -> None:
    assert generate.stale_files() == [], "stale: run `python docker/generate.py`"


def test_a_changed_recipe_and_a_forgotten_file_are_noticed(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "DOCKER", tmp_path)
    generate.write()
    assert generate.stale_files() == []
    compose = tmp_path / "compose.yaml"
    compose.write_text(compose.read_text(encoding="utf-8").replace("--dtype float16", "--dtype bfloat16", 1))
    (tmp_path / "models" / "forgotten.env").touch()
    assert generate.stale_files() == ["compose.yaml", "models/forgotten.env"]
    generate.write()
    assert generate.stale_files() == []


def test_every_recipe_is_a_service_with_the_command_that_loadgen_serve_plans(services: dict[str, Any]) -> None:
    for name in SERVICES:
        service = services[name]
        served = argv(service)[0]
        launch = plan_launch(
            load_recipe(name), model=MODEL, checkpoint=None if served == MODEL else served, port=PORT, device="cuda",
            max_num_seqs=256, vllm="vllm", host="0.0.0.0",
        )  # fmt: skip
        assert service["entrypoint"][:3] == ["/bin/sh", "/opt/start.sh", "VLLM_API_KEY"]
        assert [
            *service["entrypoint"][3:],
            *without(argv(service), "--kv-cache-memory-bytes", "--gpu-memory-utilization"),
        ] == [*launch.argv]
        assert service["environment"].items() >= launch.env.items()


def test_a_plain_up_serves_one_precision_and_the_four_have_the_models_checkpoints(services: dict[str, Any]) -> None:
    assert (DOCKER / ".env").read_text(encoding="utf-8").splitlines()[-1] == "COMPOSE_PROFILES=gpu"
    of = {
        profile: [name for name, service in services.items() if profile in service.get("profiles", [])]
        for profile in ("gpu", "gpus")
    }
    assert of == {"gpu": ["fp16", "exporter"], "gpus": ["awq", "gptq", "bnb-nf4", "exporter"]}
    served = {name: argv(services[name])[0] for name in DEFAULT}
    assert served == {name: load_recipe(name).checkpoint_for(MODEL) for name in DEFAULT}
    assert {name for name, service in services.items() if "profiles" not in service} == {"prometheus", "grafana"}


def test_a_sized_project_starts_what_fits_and_gives_each_server_its_share(raw: dict[str, Any]) -> None:
    """48 GiB hold FP16 of a 7B model with a KV cache for B = 128, and nothing beside it."""
    size = size_of(MODEL)
    assert size is not None
    sizing = fit(size, {name: load_recipe(name) for name in DEFAULT}, [48 * GIB])
    text = sized_environment(MODEL, sizing, {"awq": "mine/AWQ"})
    variables = dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
    sized = filled(raw, variables)
    assert [name for name in SERVICES if "gpu" in sized[name]["profiles"]] == ["fp16"]
    assert sorted(name for name in DEFAULT if "gpus" in sized[name]["profiles"]) == ["awq", "bnb-nf4", "gptq"]
    assert argv(sized["awq"])[0] == "mine/AWQ"
    for name, need in sizing.needs.items():
        words = argv(sized[name])
        assert words[words.index("--kv-cache-memory-bytes") + 1] == str(128 * 1300 * 128 * 1024)
        share = float(words[words.index("--gpu-memory-utilization") + 1])
        assert need <= share * 48 * GIB < need + 0.01 * 48 * GIB
    assert variables["CONCURRENCY"] == "1,16,64,128"


def test_a_model_on_two_gpus_is_given_both_and_half_of_the_cache_on_each(raw: dict[str, Any]) -> None:
    size = size_of(MODEL)
    assert size is not None
    recipes = {name: load_recipe(name) for name in ("fp16", "awq", "fp8")}
    sizing = fit(size, recipes, [48 * GIB] * 2, tensor_parallel={"fp16": 2, "fp8": 2})
    text = sized_environment("Qwen/Qwen2.5-14B-Instruct", sizing, {})
    variables = dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
    sized = filled(raw, variables)
    for name, count in (("fp16", 2), ("fp8", 2), ("awq", 1)):
        words = argv(sized[name])
        options = {word: value for word, value in itertools.pairwise(words) if word.startswith("--")}
        assert int(options["--kv-cache-memory-bytes"]) == sizing.kv_cache_bytes // count, name
        assert options.get("--tensor-parallel-size", "1") == str(count)
        (reserved,) = sized[name]["deploy"]["resources"]["reservations"]["devices"]
        assert reserved["device_ids"] == ["0,1" if count == 2 else "0"]
    assert "--quantization" in argv(sized["fp8"])  # it still quantizes while loading


def test_each_precision_is_a_profile_that_brings_the_exporter(services: dict[str, Any]) -> None:
    for name in SERVICES:
        assert name in services[name]["profiles"]
        assert name in services["exporter"]["profiles"]


def test_all_precisions_have_the_same_vllm_kv_cache_and_batch(raw: dict[str, Any], services: dict[str, Any]) -> None:
    kept = [argv(services[name]) for name in SERVICES]
    for option, value in (("--kv-cache-memory-bytes", str(KV_CACHE_BYTES)), ("--max-num-seqs", "256")):
        assert {words[words.index(option) + 1] for words in kept} == {value}
    changed = filled(raw, {"KV_CACHE_BYTES": "1073741824", "VLLM_IMAGE": "vllm:another"})
    assert {words[words.index("--kv-cache-memory-bytes") + 1] for words in (argv(changed[n]) for n in SERVICES)} == {
        "1073741824"
    }
    images = {
        changed[n]["build"]["args"]["VLLM_IMAGE"] if "build" in changed[n] else changed[n]["image"] for n in SERVICES
    }
    assert images == {"vllm:another"}


def test_bitsandbytes_is_a_derived_image_and_nothing_else_is(services: dict[str, Any]) -> None:
    derived = [name for name in SERVICES if "build" in services[name]]
    assert derived == ["bnb-nf4", "bnb-int8"]
    for name in derived:
        assert services[name]["build"]["dockerfile"] == "docker/vllm-bnb.Dockerfile"


def test_servers_share_one_gpu_unless_told_otherwise(raw: dict[str, Any]) -> None:
    def device(service: dict[str, Any]) -> list[str]:
        (reserved,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert reserved["driver"] == "nvidia"
        assert "gpu" in reserved["capabilities"]
        ids: list[str] = reserved["device_ids"]
        return ids

    spread = filled(raw, {"AWQ_GPU": "1", "BNB_NF4_GPU": "GPU-5a"})
    assert [device(spread[name]) for name in DEFAULT] == [["0"], ["1"], ["0"], ["GPU-5a"]]
    assert device(spread["exporter"]) == ["0"]


def test_extra_arguments_come_last_and_empty_ones_leave_nothing(raw: dict[str, Any], services: dict[str, Any]) -> None:
    more = filled(raw, {"VLLM_ARGS": "--load-format dummy", "FP8_ARGS": "--quantization fp8_per_channel"})
    assert argv(more["fp8"]) == [
        *argv(services["fp8"]),
        *shlex.split("--load-format dummy --quantization fp8_per_channel"),
    ]
    assert argv(more["awq"])[-2:] == ["--load-format", "dummy"]
    assert "" not in argv(services["awq"])


def test_ports_are_on_loopback_each_its_own_and_servers_listen_on_8000(services: dict[str, Any]) -> None:
    published = {name: port for name, service in services.items() for port in service.get("ports", [])}
    inside = {"exporter": "9401", "prometheus": "9090", "grafana": "3000"}
    assert set(published) == set(services) - {"loadgen"}
    for name, text in published.items():
        assert re.fullmatch(rf"127\.0\.0\.1:\d+:{inside.get(name, '8000')}", text), name
    assert len(set(published.values())) == len(published)
    assert [published[name].split(":")[1] for name in DEFAULT] == ["8001", "8002", "8003", "8004"]


def test_nothing_has_privileges_and_all_but_vllms_image_is_read_only(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert not service.keys() & {"privileged", "pid", "ipc"}, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["cap_drop"] == ["ALL"], name
        if name in SERVICES:  # root, who writes to a cache that may belong to a user
            assert service["cap_add"] == ["DAC_OVERRIDE"], name
        else:
            assert "cap_add" not in service, name
            assert service["read_only"], name
            assert service["tmpfs"] == ["/tmp"], name


def test_images_are_named_by_tag_and_digest(services: dict[str, Any]) -> None:
    bases = {service["build"]["args"].get("PYTHON_IMAGE") for service in services.values() if "build" in service}
    bases |= {services[name]["image"] for name in ("fp16", "prometheus", "grafana")}
    for image in bases - {None}:
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+[a-z-]*@sha256:[0-9a-f]{64}", image), image


def test_secrets_come_from_files_and_stand_in_no_environment(raw: dict[str, Any], services: dict[str, Any]) -> None:
    project = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    assert project["secrets"] == {
        name: {"file": f"${{{name.upper()}_FILE:-./no-secret}}"} for name in ("hf_token", "api_key", "grafana_password")
    }
    assert (DOCKER / "no-secret").read_bytes() == b""
    for name, service in services.items():
        held = {key for key in service.get("environment", {}) if re.search("TOKEN|KEY|PASSWORD", key)}
        paths = {service["environment"][key] for key in held if not key.endswith("KEEP_ALIVE")}
        assert paths == {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}, name
        if "api_key" in service.get("secrets", []):
            assert service["entrypoint"][1] == "/opt/start.sh"
            assert "./start.sh:/opt/start.sh:ro,z" in service["volumes"]


def started(script: str, *command: str, **environment: str) -> tuple[int, str]:
    """Status and output of a start script of the project."""
    done = subprocess.run(
        ["/bin/sh", str(DOCKER / script), *command], env={"PATH": os.environ["PATH"], **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_an_api_key_is_read_from_its_file_and_none_is_no_variable(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k $x 'y'\n", encoding="utf-8")
    show = ("VLLM_API_KEY", "sh", "-c", 'printf "%s|%s" "${VLLM_API_KEY-none}" "$2"', "sh", "a", "b c")
    assert started("start.sh", *show, API_KEY_FILE=str(key)) == (0, "k $x 'y'|b c")
    assert started("start.sh", *show, API_KEY_FILE="/dev/null") == (0, "none|b c")
    status, said = started("start.sh", *show, API_KEY_FILE=str(tmp_path / "absent"))
    assert (status, "cannot be read by user" in said) == (2, True)


LOGIN = ("GF_SECURITY_ADMIN_PASSWORD", "GF_AUTH_ANONYMOUS_ENABLED", "GF_AUTH_BASIC_ENABLED",
         "GF_AUTH_DISABLE_LOGIN_FORM", "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION")  # fmt: skip


@pytest.mark.parametrize(
    ("address", "password", "expected"),
    [
        ("127.0.0.1", "", {"GF_AUTH_ANONYMOUS_ENABLED": "true", "GF_AUTH_BASIC_ENABLED": "false",
                           "GF_AUTH_DISABLE_LOGIN_FORM": "true", "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION": "true"}),
        ("[::1]", "s3 $x", {"GF_AUTH_ANONYMOUS_ENABLED": "true", "GF_SECURITY_ADMIN_PASSWORD": "s3 $x"}),
        ("0.0.0.0", "s3", {"GF_AUTH_ANONYMOUS_ENABLED": "false", "GF_SECURITY_ADMIN_PASSWORD": "s3"}),
    ],
)  # fmt: skip
def test_grafana_has_no_login_without_a_password_and_none_but_logins_on_the_network(
    tmp_path: Path, address: str, password: str, expected: dict[str, str]
) -> None:
    file = tmp_path / "password"
    file.write_text(password, encoding="utf-8")
    status, said = started("grafana/start.sh", "env", BIND_ADDRESS=address, GRAFANA_PASSWORD_FILE=str(file))
    seen = dict(line.split("=", 1) for line in said.splitlines())
    assert (status, {name: seen[name] for name in LOGIN if name in seen}) == (0, expected)


@pytest.mark.parametrize("address", ["0.0.0.0", "10.0.0.7", "::", "[fe80::1]", ""])
def test_grafana_does_not_start_on_the_network_without_a_password(address: str) -> None:
    status, said = started("grafana/start.sh", "env", BIND_ADDRESS=address, GRAFANA_PASSWORD_FILE="/dev/null")
    assert status == 2
    assert said == (
        f"BIND_ADDRESS {address} opens Grafana to the network: name a file with a password in GRAFANA_PASSWORD_FILE\n"
    )


@pytest.mark.parametrize("name", ["loadgen", "exporter", "vllm-cpu"])
def test_own_images_are_staged_pinned_by_argument_unprivileged_and_checked(name: str) -> None:
    lines = (DOCKER / f"{name}.Dockerfile").read_text(encoding="utf-8").splitlines()
    assert f"ARG PYTHON_IMAGE={PYTHON_IMAGE}" in lines
    installed = [line for line in lines if " pip install " in line]
    assert len(installed) == 3
    assert all("--require-hashes -r /src/docker/requirements/" in line for line in installed[:2])
    assert "--no-deps --no-index /opt/build/wheel/" in installed[2]
    stages = [line for line in lines if line.startswith("FROM")]
    if stages[0] == "FROM ${PYTHON_IMAGE} AS base":
        assert stages[1:] == ["FROM base AS build", "FROM base"]
    else:
        assert stages == ["FROM ${PYTHON_IMAGE} AS build", "FROM ${PYTHON_IMAGE}"]
    assert "USER 10001:10001" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert not [line for line in lines if "--mount" in line or "<<" in line or "# syntax" in line], "needs BuildKit"


def test_no_file_names_a_registry_or_an_index() -> None:
    for path in [DOCKER / "compose.yaml", *DOCKER.glob("*.Dockerfile"), *DOCKER.glob("models/*.env")]:
        assert not re.search(r"https?://(?!127\.0\.0\.1)(?!fp16:)(?!exporter:)", path.read_text(encoding="utf-8")), path


def test_the_simulated_and_cpu_servers_follow_from_the_same_plans(services: dict[str, Any]) -> None:
    for name in DEFAULT:
        assert argv(services[f"sim-{name}"])[:5] == ["simulate", "--precision", name, "--port", "8000"]
        assert services[f"sim-{name}"]["profiles"] == ["simulated"]
    for name in ON_CPU:
        service = services[f"cpu-{name}"]
        assert service["profiles"] == ["cpu"]
        assert "--enforce-eager" in argv(service)
        assert service["environment"]["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert [argv(services[f"cpu-{name}"])[0] for name in ON_CPU] == ["models/tiny", "models/tiny", "models/tiny-int8"]


def test_prometheus_asks_for_every_server(services: dict[str, Any]) -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))
    asked = {
        job["job_name"]: job["dns_sd_configs"][0]["names"]
        for job in config["scrape_configs"]
        if "dns_sd_configs" in job
    }
    serving = [name for name, service in services.items() if service.get("ports", [""])[0].endswith(f":{PORT}")]
    assert sorted(asked["servers"]) == sorted(serving)


@pytest.mark.parametrize("model", load_models())
def test_a_models_environment_never_serves_another_model(model: str) -> None:
    lines = environment_file(model).splitlines()
    chosen = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    for name in SERVICES:
        recipe = load_recipe(name)
        prefix = name.upper().replace("-", "_")
        known = {model, recipe.checkpoints.get(model), recipe.unverified_checkpoints.get(model)}
        assert chosen[f"{prefix}_CHECKPOINT"] in {*known, f"set-{prefix}_CHECKPOINT"} - {None}
        in_flight = recipe.checkpoint == "own" and chosen[f"{prefix}_CHECKPOINT"] == model
        assert shlex.split(chosen.get(f"{prefix}_ARGS", "")) == (list(recipe.in_flight_args) if in_flight else [])


def test_the_committed_environments_are_the_known_models() -> None:
    assert {path.name for path in (DOCKER / "models").iterdir()} == {environment_name(model) for model in load_models()}
    assert len(generated_files()) == 1 + len(load_models())


def test_docker_compose_reads_it(tmp_path: Path) -> None:
    """Debian's docker-compose 1.29 resolves every profile to what is asserted above."""
    profiles = ["gpu", "simulated", "cpu", "loadgen", *SERVICES]
    chosen = {"COMPOSE_PROFILES": ",".join(profiles), "AWQ_GPU": "1", "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    config = [program("docker-compose"), "config"]
    done = subprocess.run(config, cwd=DOCKER, env=chosen, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "undefined secret file" not in done.stderr
    resolved = yaml.safe_load(done.stdout)["services"]
    written = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert resolved.keys() == written.keys()
    expected = filled(written, chosen)
    for name in SERVICES:
        assert argv(resolved[name]) == argv(expected[name]), name
        assert resolved[name]["deploy"] == expected[name]["deploy"], name
        assert json.dumps(resolved[name]["healthcheck"]["test"]) == json.dumps(expected[name]["healthcheck"]["test"])
