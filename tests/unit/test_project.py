"""Which services of a compose project a sweep starts, under which names, and how Compose's answer becomes a launch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from made_run import manifest_record

from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.settings import require_consent, resumed_config
from loadgen.serving.launch import plan_launch
from loadgen.serving.project import Project
from loadgen.serving.recipe import load_recipe

DOCKER = Path(__file__).parents[2] / "docker"
RUN = Path("runs/x")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("COMPOSE_PROFILES", raising=False)


@pytest.fixture
def compose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `docker` that only says its version, also where there is none."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 2.26.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.delenv("DOCKER_HOST", raising=False)


def project(folder: Path, variables: str = "") -> Path:
    """A copy of the project's compose file, as `loadgen compose --dir FOLDER` writes it."""
    (folder / "docker").mkdir(parents=True)
    (folder / "docker" / "compose.yaml").write_bytes((DOCKER / "compose.yaml").read_bytes())
    (folder / "docker" / ".env").write_text(variables, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("profiles", "services"),
    [
        ("gpu", ["fp16", "awq", "gptq", "bnb-nf4"]),
        ("simulated", ["sim-fp16", "sim-awq", "sim-gptq", "sim-bnb-nf4"]),
        ("cpu", ["cpu-bf16", "cpu-bnb-nf4", "cpu-int8"]),
        ("fp8,awq", ["awq", "fp8"]),
    ],
)
def test_the_profile_says_which_services_are_measured(profiles: str, services: list[str], tmp_path: Path) -> None:
    config = configure(compose=project(tmp_path, f"COMPOSE_PROFILES={profiles}\n"))
    assert [spec.service for spec in config.targets] == services
    assert [spec.name for spec in config.targets] == [
        name.removeprefix("sim-").removeprefix("cpu-") for name in services
    ]
    assert config.compose == str(tmp_path / "docker")
    assert config.device == ("cuda" if profiles in ("gpu", "fp8,awq") else "cpu")
    assert config.dataset == ("sample" if profiles == "simulated" else "gsm8k")
    assert config.power == {"simulated": "simulated", "cpu": "none"}.get(profiles, "auto")


def test_recipes_choose_services_of_the_active_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project(tmp_path, "COMPOSE_PROFILES=simulated\n")
    assert [spec.service for spec in configure(compose=folder, serve="awq,fp16").targets] == ["sim-awq", "sim-fp16"]
    assert [spec.service for spec in configure(compose=folder, serve="fp8").targets] == ["fp8"]
    monkeypatch.setenv("COMPOSE_PROFILES", "gpu")
    assert [spec.service for spec in configure(compose=folder, serve="awq,fp16").targets] == ["awq", "fp16"]


def test_the_batch_sizes_are_those_that_the_project_was_sized_for(tmp_path: Path) -> None:
    folder = project(tmp_path, "COMPOSE_PROFILES=simulated\nCONCURRENCY=1,16,32\n")
    assert configure(compose=folder).concurrency == (1, 16, 32)
    assert configure(compose=folder, concurrency="2").concurrency == (2,)
    assert configure(compose=folder, arrival="poisson:5").concurrency == (1024,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"serve": "fp16,fp17"}, "--serve fp17: .* has no such service; .*: fp16, awq, "),
        ({"serve": "awq=org/m-AWQ"}, "write AWQ_CHECKPOINT=org/m-AWQ into .*/docker/.env"),
        ({"serve": "fp16,cpu-int8"}, "cannot be compared, they run on different hardware; choose with --serve"),
        ({"targets": {"fp16": "http://h:1"}}, "--target and --compose exclude each other"),
        ({"model": "org/m"}, "`loadgen compose --model org/m` writes them"),
        ({"max_num_seqs": 9}, "--max-num-seqs 9: with --compose the project starts the servers"),
        ({"tensor_parallel": 2}, "--tensor-parallel 2: .*; `loadgen compose --tensor-parallel 2` writes it into"),
        ({"vllm_args": "--x"}, "--vllm-args --x: with --compose .* VLLM_ARGS"),
        ({"prefix_cache": True}, "--prefix-cache needs"),
        ({"compose": "/nowhere"}, "no compose.yaml in that folder; `loadgen compose --dir stack` writes one"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        configure(**{"compose": project(tmp_path, "COMPOSE_PROFILES=gpu\n"), **options})


def test_a_profile_without_servers_names_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"COMPOSE_PROFILES=loadgen names no service .*--serve fp16,awq"):
        configure(compose=project(tmp_path, "COMPOSE_PROFILES=loadgen\n"))


@pytest.mark.parametrize("content", ["- a\n", "services: 3\n", "{", "\x00"])
def test_a_file_that_is_no_project_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"--compose .*"):
        configure(compose=tmp_path)


@pytest.mark.parametrize("more", [{}, {"find": "tokens_per_s"}])
def test_a_run_is_resumed_whatever_the_profile_and_folder_are_now(
    more: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(tmp_path, "COMPOSE_PROFILES=gpu\nCONCURRENCY=1,4\n")
    monkeypatch.setenv("COMPOSE_PROFILES", "simulated")
    monkeypatch.chdir(folder)
    given = {"compose": "."} | more
    config = configure(**given)
    begun = manifest_record(config, client={"loadgen": "0.1.0"}, given=given)
    monkeypatch.delenv("COMPOSE_PROFILES")
    monkeypatch.chdir("/")
    (folder / "docker" / ".env").write_text("COMPOSE_PROFILES=gpu\n", encoding="utf-8")
    assert resumed_config(RUN, begun, {}) == config
    with pytest.raises(UsageError, match="was not begun by this user"):
        require_consent(RUN, begun, {})
    with pytest.raises(UsageError, match=r"Compose project .* inside itself, and nothing inside a run directory"):
        require_consent(tmp_path, begun, {}, trusted=True)


def resolved(name: str, form: int) -> dict[str, Any]:
    """A service as docker-compose 1.29 (1) or Compose v2 (2) prints it."""
    launch = plan_launch(load_recipe("awq"), model="m", checkpoint="org/m-AWQ", port=8000, device="cuda",
                         max_num_seqs=256, vllm="vllm", host="0.0.0.0")  # fmt: skip
    words = list(launch.argv[2:]) if name == "awq" else ["simulate", "--precision", "awq"]
    port: Any = "127.0.0.1:8002:8000/tcp"
    if form == 2:
        port = {"mode": "ingress", "host_ip": "127.0.0.1", "target": 8000, "published": "8002", "protocol": "tcp"}
    service: dict[str, Any] = {"command": " ".join(words) + " " if form == 1 else words, "ports": [port]}
    reserved = {"capabilities": ["gpu"], "device_ids": ["1,2"], "driver": "nvidia"}
    service["deploy"] = {"resources": {"reservations": {"devices": [reserved]}}}
    if name == "awq":
        service |= {
            "entrypoint": ["/bin/sh", "/opt/start.sh", "VLLM_API_KEY", "vllm", "serve"], "environment": launch.env,
        }  # fmt: skip
    return {name: service}


@pytest.mark.usefixtures("compose")
@pytest.mark.parametrize("form", [1, 2])
def test_a_service_is_expected_to_run_what_its_recipe_says(form: int, tmp_path: Path) -> None:
    found = Project.found(project(tmp_path))
    (spec,) = found.targets(["awq"])
    launch = found.launch(spec, resolved("awq", form), "a-key")
    planned = plan_launch(load_recipe("awq"), model="m", checkpoint="org/m-AWQ", port=8000, device="cuda",
                          max_num_seqs=256, vllm="vllm", host="0.0.0.0")  # fmt: skip
    assert launch.argv == planned.argv
    assert (launch.expect, launch.kernel, launch.dtype) == (planned.expect, planned.kernel, planned.dtype)
    assert (launch.url, launch.api_key, launch.device) == ("http://127.0.0.1:8002", "a-key", "cuda")
    assert launch.started[-2:] == ("docker", "compose")
    assert launch.gpus == ("1", "2")


@pytest.mark.usefixtures("compose")
@pytest.mark.parametrize("form", [1, 2])
def test_a_simulated_service_is_expected_nothing_of_and_given_no_key(form: int, tmp_path: Path) -> None:
    found = Project.found(project(tmp_path))
    (spec,) = found.targets(["sim-awq"])
    launch = found.launch(spec, resolved("sim-awq", form), "a-key")
    assert launch.argv == ("loadgen", "simulate", "--precision", "awq")
    assert (launch.expect, launch.api_key, launch.simulated) == ((), None, True)


def test_a_service_that_publishes_no_port_and_another_machines_engine_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Project.found(project(tmp_path))
    (spec,) = found.targets(["sim-awq"])
    with pytest.raises(UsageError, match="publishes no port for its 8000"):
        found.launch(spec, {"sim-awq": {"command": "x", "ports": ["127.0.0.1:9:9401/tcp"]}}, None)
    monkeypatch.setenv("DOCKER_HOST", "ssh://gpu-host")
    with pytest.raises(UsageError, match=re.escape("DOCKER_HOST ssh://gpu-host is another machine's engine")):
        _ = found.program
