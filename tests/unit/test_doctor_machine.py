"""What the doctor says of GPUs, CPU, Docker, ports, disk, clock and client."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from made_exporter import info
from made_hub import put_in_cache, put_in_folder
from nvml_stub.build import Curve, build_stub, uuid_of

from loadgen.cli.compose import command as compose_command
from loadgen.doctor import examination, hardware
from loadgen.doctor.examination import ports
from loadgen.doctor.finding import Finding, ProgramResult
from loadgen.doctor.hardware import cpu_flags, cpu_library, disk
from loadgen.serving.checkpoint import free_bytes
from loadgen.serving.compose import compose_file
from loadgen.serving.project import Project, stack_variables
from loadgen.serving.recipe import expected_bytes, load_models, load_recipes

DOCKER = Path(__file__).parents[2] / "docker"

GPUS = """
import sys
import msgspec
from loadgen.doctor.hardware import examine_gpus
sys.stdout.buffer.write(msgspec.json.encode(examine_gpus(sys.argv[1])))
"""
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.3"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("nvml"))


def of_stub(library: Path, mode: str = "gpu", visible: str | None = None, **settings: object) -> dict[str, Any]:
    """The GPU findings by check, in a process that loads the stub library."""
    environment = Curve().environment(library, **settings)
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    ended = subprocess.run([sys.executable, "-c", GPUS, mode], env=environment, capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr.decode()
    return {found["check"]: found for found in json.loads(ended.stdout)}


def test_a_gpu_as_nvml_shows_it(library: Path) -> None:
    found = of_stub(library)
    assert {check: one["state"] for check, one in found.items()} == {
        "GPU driver": "ok", "visible GPUs": "ok", "GPU 0 energy": "ok", "GPU 0 persistence": "ok", "GPU 0 MIG": "ok",
        "GPU 0 power limit": "warning", "GPU 0 recipes": "not applicable",
    }  # fmt: skip
    assert found["GPU driver"]["seen"] == "driver 570.00-stub; 0: Stub GPU"
    assert uuid_of(0) in found["visible GPUs"]["seen"]
    assert found["GPU 0 energy"]["seen"] == "has energy counter, instant power, average power"
    assert found["GPU 0 power limit"]["seen"] == "650 W enforced, 700 W default"
    assert "nvidia-smi -i 0 -pl 700" in found["GPU 0 power limit"]["advice"]


@pytest.mark.parametrize(
    ("capability", "said"),
    [
        (10.0, "compute capability 10.0; serves every recipe"),
        (9.0, "compute capability 9.0; serves every recipe; computes mxfp4, nvfp4 in 16 bits"),
        (7.5, "compute capability 7.5; does not serve bf16 (from 8.0), fp16-kvfp8 (from 8.0), modelopt-fp8 (from 8.0), "
         "mxfp4 (from 8.0); computes fp8, fp8-block, nvfp4 in 16 bits"),
    ],
)  # fmt: skip
def test_what_a_gpu_serves_and_what_it_has_units_for(library: Path, capability: float, said: str) -> None:
    assert of_stub(library, CAPABILITY=capability)["GPU 0 recipes"]["seen"] == said


def test_a_recipe_that_no_gpu_here_serves_is_refused_before_a_start(library: Path, tmp_path: Path) -> None:
    environment = Curve().environment(library, CAPABILITY=7.5)
    put_in_folder(tmp_path / "m", {})
    serve = [sys.executable, "-m", "loadgen", "serve", "fp16-kvfp8", "--model", str(tmp_path / "m")]
    ended = subprocess.run(
        [*serve, "--vllm", "/bin/false"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert (
        "needs a GPU of compute capability 8.0 or higher, and this machine's has 7.5; choose among aw" in ended.stderr
    )


def test_a_gpu_that_lacks_fields_in_mig_mode_among_several(library: Path) -> None:
    # 83: the energy counter is not supported (NVML_ERROR_NOT_SUPPORTED = 3).
    found = of_stub(library, GPUS=2, MIG=1, FAIL="83:3,PersistenceMode:3")
    assert found["GPU 1 energy"]["seen"] == "has instant power, average power; lacks energy counter"
    assert found["GPU 1 energy"]["state"] == found["GPU 1 MIG"]["state"] == "warning"
    assert found["GPU 1 persistence"]["state"] == "not applicable"
    assert found["visible GPUs"]["state"] == "warning"
    assert "CUDA_VISIBLE_DEVICES" in found["visible GPUs"]["advice"]


def test_an_unreadable_gpu_is_listed_with_its_code(library: Path) -> None:
    found = of_stub(library, GPUS=2, HANDLE="1:15")
    assert found["GPU 1"]["state"] == "warning"
    assert found["GPU 1"]["seen"] == "GPU 1 cannot be read (NVML_ERROR_GPU_IS_LOST)"
    assert found["visible GPUs"]["seen"] == f"the only GPU: {uuid_of(0)}"
    assert of_stub(library, GPUS=2, HANDLE="1:15", visible="1")["visible GPUs"]["state"] == "missing"


def test_a_superchip_says_what_its_energy_will_be(library: Path) -> None:
    energy = of_stub(library, NAME="NVIDIA GH200 480GB")["GPU 0 energy"]
    assert energy["state"] == "warning"
    assert "the counter is the whole module's" in energy["advice"]


def test_no_visible_gpu_and_no_driver_are_missing_for_gpu_servers_only(library: Path) -> None:
    assert of_stub(library, visible="-1")["visible GPUs"]["state"] == "missing"
    assert of_stub(library, "docker", visible="-1")["visible GPUs"]["state"] == "not applicable"
    driverless = of_stub(library, INIT=9)["GPU driver"]
    assert driverless["state"] == "missing"
    assert "nvidia-smi" in driverless["advice"]
    assert of_stub(library, "cpu", INIT=9)["GPU driver"]["state"] == "not applicable"


@pytest.mark.parametrize(
    ("lacks", "state"),
    [
        ([], "ok"),
        (["power_average_w"], "ok"),
        (["power_instant_w"], "warning"),
        (["counter_j", "power_instant_w", "power_average_w"], "warning"),
    ],
)
def test_counter_and_instant_power_check_each_other(lacks: Sequence[str], state: str) -> None:
    found = hardware.energy_fields(info(lacks=lacks))
    assert found.state == state
    assert ("--tdp-w" in found.advice) == (len(lacks) == 3)


@pytest.mark.parametrize(("on", "state"), [(True, "ok"), (False, "warning"), (None, "not applicable")])
def test_persistence(on: bool | None, state: str) -> None:
    found = hardware.persistence_mode(hardware.SeenGpu(info=info(index=3), persistence=on))
    assert found.state == state
    assert ("-i 3 -pm 1" in found.advice) == (on is False)


@pytest.mark.parametrize(
    ("enforced_w", "default_w", "state"), [(700, 700, "ok"), (700, None, "ok"), (None, 700, "warning")]
)
def test_power_limits(enforced_w: float | None, default_w: float | None, state: str) -> None:
    limits = info(power_limit_enforced_w=enforced_w, power_limit_default_w=default_w)
    assert hardware.power_limits(limits).state == state


@pytest.mark.parametrize(
    ("mode", "flags", "state"),
    [
        ("cpu", "avx2 avx512f amx_tile", "ok"),
        ("cpu", "avx2 avx512f", "warning"),
        ("cpu", "avx2", "warning"),
        ("gpu", "avx2", "not applicable"),
        ("cpu", None, "warning"),
    ],
)
def test_cpu_flags(tmp_path: Path, mode: Any, flags: str | None, state: str) -> None:
    path = tmp_path / "cpuinfo"
    if flags is not None:
        path.write_text(f"flags\t\t: fpu {flags}\n")
    found = cpu_flags(mode, load_recipes(), path)
    assert found.state == state
    if flags == "avx2" and mode == "cpu":
        others = "bf16, bnb-int8, bnb-nf4, fp16, fp8, int8, torchao"
        lacking = "fp8-block, modelopt-fp8 need amx_tile; awq, fp16-kvfp8, gptq, w4a16 need avx512f"
        assert found.advice == f"{lacking}: choose among {others}"
    if mode == "cpu" and flags is not None:
        assert "gguf, gptq-int8, mxfp4, nvfp4, w8a16 need a GPU" in found.seen


def test_a_cpu_build_without_its_library_cannot_serve() -> None:
    assert cpu_library("cpu", lambda: True).state == "ok"
    assert cpu_library("cpu", lambda: False).state == "missing"
    assert cpu_library("gpu", lambda: False).state == "not applicable"


def programs(**answers: ProgramResult | None) -> Callable[[Sequence[str], float], ProgramResult | None]:
    """Programs by the beginning of their command line, spaces as `_` and `-` as `__`."""
    known = {name.replace("__", "-").replace("_", " "): answer for name, answer in answers.items()}

    def run(argv: Sequence[str], timeout_s: float) -> ProgramResult | None:
        assert timeout_s > 0
        return next((answer for name, answer in known.items() if " ".join(argv).startswith(name)), None)

    return run


def said(output: str = "", errors: str = "", status: int | None = 0) -> ProgramResult:
    return ProgramResult(status=status, output=output, errors=errors)


def of_docker(mode: Any = "docker", **answers: ProgramResult | None) -> dict[str, Finding]:
    return {found.check: found for found in examination.examine_docker(mode, programs(**answers))}


def test_an_engine_with_compose_and_a_gpu_runtime() -> None:
    engine = said(json.dumps({"ServerVersion": "28.2.2", "Runtimes": {"runc": {}, "nvidia": {}}}))
    found = of_docker(docker_info=engine, docker_compose=said("2.27.0\n"))
    assert [one.state for one in found.values()][:3] == ["ok", "ok", "ok"]
    assert found["Docker"].seen == "engine 28.2.2"
    assert found["Docker Compose"].seen == "`docker compose` 2.27.0"


def test_images_without_a_digest_are_named_with_the_command_that_shows_it() -> None:
    assert examination.images({}).state == "ok"
    found = examination.images({"VLLM_IMAGE": "vllm/vllm-openai:v0.33.0"})
    assert (found.state, found.seen) == ("warning", "without a digest: vllm/vllm-openai:v0.33.0")
    assert "`docker buildx imagetools inspect vllm/vllm-openai:v0.33.0`" in found.advice
    pinned = f"vllm/vllm-openai:v0.33.0@sha256:{'0' * 64}"
    assert examination.images({"VLLM_IMAGE": pinned}).state == "ok"
    loose = examination.images({"VLLM_IMAGE": pinned, "GRAFANA_IMAGE": "grafana:1@sha256:12", "PYTHON_IMAGE": ""})
    assert (loose.seen, "GRAFANA_IMAGE=grafana:1@sha256:..." in loose.advice) == (
        "without a digest: grafana:1@sha256:12",
        True,
    )


def test_a_stack_on_the_network_needs_a_password_and_its_files_must_exist(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch()
    password = {"GRAFANA_PASSWORD_FILE": str(file)}
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "ok"), ({"BIND_ADDRESS": "[::1]"}, "ok"), ({"BIND_ADDRESS": "0.0.0.0"}, "missing"),
        ({"BIND_ADDRESS": "10.0.0.7", **password}, "warning"), ({"HF_TOKEN": "hf_x"}, "warning"),
        ({"API_KEY_FILE": "/dev/null"}, "ok"), ({"API_KEY_FILE": str(tmp_path)}, "missing"),
        ({"API_KEY_FILE": str(tmp_path / "absent")}, "missing"),
    ]  # fmt: skip
    assert [examination.exposure(variables).state for variables, _ in cases] == [state for _, state in cases]


def test_the_stacks_variables_come_from_the_shell_else_from_its_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# A=0\nA=1\nB='2'\n\nC\n", encoding="utf-8")
    assert stack_variables({"A": "3"}, tmp_path) == {"A": "3", "B": "2", "C": ""}
    assert stack_variables({"A": "3"}, tmp_path / "absent") == {"A": "3"}


@pytest.mark.parametrize(
    ("gib", "profiles", "state", "seen"),
    [
        (24, "gpu,gpus", "missing", "GPU 0: fp16, awq, gptq, bnb-nf4 need 65.7 of 24.0 GiB"),
        (24, "gpu", "missing", "GPU 0: fp16 needs 23.5 of 24.0 GiB"),
        (80, "gpu,gpus", "ok", "GPU 0: fp16, awq, gptq, bnb-nf4 need 65.7 of 80.0 GiB"),
        (24, "awq", "ok", "GPU 0: awq needs"),
        (24, "simulated", "not applicable", "no server on a GPU"),
        (0, "gpu", "not applicable", "there is no GPU here"),
    ],
)
def test_what_the_services_need_of_the_gpu_is_said(
    gib: int, profiles: str, state: str, seen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Mistral 7B, 8 GiB of KV cache and 2 GiB beside them for each."""
    monkeypatch.setenv("COMPOSE_PROFILES", profiles)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    found = examination.memory(Project.found(DOCKER), [gib * 2**30] if gib else [])
    assert found.state == state
    assert seen in found.seen
    assert state != "missing" or "`loadgen sweep --compose` starts one server at a time" in str(found.advice)


def test_a_project_sized_for_24_gib_fits_there_and_each_of_several_gpus_is_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("COMPOSE_PROFILES", raising=False)
    done = CliRunner().invoke(compose_command, ["--dir", str(tmp_path / "one"), "--gpu-memory", "24"])
    assert done.exit_code == 0, done.output
    one = Project.found(tmp_path / "one")
    found = examination.memory(one, [24 * 2**30])
    assert found.state == "ok"
    assert [service.name for service in one.of_profiles(one.profiles)] == ["fp16"]
    assert [spec.service for spec in one.targets()] == ["fp16", "awq", "gptq", "bnb-nf4"]
    CliRunner().invoke(compose_command, ["--dir", str(tmp_path / "four"), "--gpu-memory", "48,48,48,48"])
    four = Project.found(tmp_path / "four")
    found = examination.memory(four, [48 * 2**30] * 4)
    assert found.state == "ok"
    assert len(four.of_profiles(four.profiles)) == 4
    assert [part.split(":")[0] for part in found.seen.split("; ")] == ["GPU 0", "GPU 1", "GPU 2", "GPU 3"]
    shared = ["--dir", str(tmp_path / "two"), "--gpu-memory", "24,24", "--tensor-parallel", "2", "--serve", "fp16"]
    CliRunner().invoke(compose_command, shared)
    found = examination.memory(Project.found(tmp_path / "two"), [24 * 2**30] * 2)
    assert found.state == "ok"  # half of 13.5 and of 20.3 GiB for B = 128, and 2 GiB
    assert found.seen == "GPU 0: fp16 needs 18.9 of 24.0 GiB; GPU 1: fp16 needs 18.9 of 24.0 GiB"


def test_files_that_a_container_wrote_as_root_are_named_with_the_way_back(tmp_path: Path) -> None:
    me = tmp_path.stat().st_uid
    assert examination.cache_owner({}).state == "ok"
    assert examination.cache_owner({"HF_CACHE": str(tmp_path)}, me).state == "ok"
    found = examination.cache_owner({"HF_CACHE": str(tmp_path)}, me + 1)
    assert found.state == "warning"
    assert f"sudo chown -R $(id -u):$(id -g) {tmp_path}" in str(found.advice)


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (None, "install Docker"),
        (said('{"ServerVersion":""}', "Cannot connect to the Docker daemon"), "systemctl start docker"),
        (said('{"ServerErrors":["Cannot connect"]}', status=1), "systemctl start docker"),
        (said("", "permission denied while trying to connect", 1), "group docker"),
        (said(status=None), "systemctl start docker"),
    ],
)
def test_no_engine(answer: ProgramResult | None, advice: str) -> None:
    found = of_docker(docker_info=answer)
    assert (found["Docker"].state, found["Docker Compose"].state) == ("missing", "missing")
    assert advice in found["Docker"].advice
    assert of_docker("gpu", docker_info=answer)["Docker"].state == "not applicable"


@pytest.mark.parametrize(
    ("plugin", "old", "state", "seen"),
    [
        (None, said("1.29.2"), "ok", "`docker-compose` 1.29.2"),
        (said("", "unknown flag", 125), said("1.29.2"), "ok", "`docker-compose` 1.29.2"),
        (said("v2.0.1"), None, "ok", "`docker compose` v2.0.1"),
        (None, said("1.27.4"), "missing", "older than 1.28"),
        (None, None, "missing", "neither"),
        (None, said(status=None), "warning", "`docker-compose` did not answer within 10 s"),
    ],
)
def test_compose(plugin: ProgramResult | None, old: ProgramResult | None, state: str, seen: str) -> None:
    found = examination.compose("docker", programs(docker_compose=plugin, docker__compose=old))
    assert found.state == state
    assert seen in found.seen


@pytest.mark.parametrize(
    ("engine", "gpu_here", "states"),
    [
        ({"Runtimes": {"nvidia": {}}}, True, ("ok", "ok")),
        ({"Runtimes": {}, "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}, True, ("ok", "ok")),
        ({"Runtimes": {"runc": {}}, "DiscoveredDevices": None}, True, ("missing", "not applicable")),
        ({"Runtimes": None}, False, ("warning", "not applicable")),
    ],
)
def test_gpu_runtime(
    monkeypatch: pytest.MonkeyPatch, engine: dict[str, Any], gpu_here: bool, states: tuple[str, str]
) -> None:
    monkeypatch.setattr(examination.shutil, "which", lambda _: None)
    found = tuple(examination.gpu_runtime(mode, engine, gpu_here=gpu_here).state for mode in ("docker", "simulated"))
    assert found == states


def test_ports() -> None:
    assert ports("gpu", lambda *_: True).state == "ok"
    taken = {("127.0.0.1", 8001), ("127.0.0.1", 8203), ("127.0.0.1", 9090)}
    found = ports("gpu", lambda host, port: (host, port) not in taken)
    assert (found.state, found.seen) == ("warning", "taken: 8001 (server), 9090 (Prometheus)")
    stack = ports("docker", lambda host, port: (host, port) not in taken)
    assert stack.seen == "taken: 8001 (server), 8203 (server), 9090 (Prometheus)"


def test_every_port_that_the_stack_publishes_is_looked_at() -> None:
    asked: set[int] = set()
    ports("docker", lambda host, port: bool(asked.add(port)) or True)
    services = yaml.safe_load(compose_file())["services"].values()
    defaults = {int(re.findall(r":-(\d+)}", text)[0]) for one in services for text in one.get("ports", [])}
    assert defaults <= asked


def test_disk_compares_with_what_is_not_cached_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "not" / "there"))
    recipes, model = load_recipes(), load_models()[MISTRAL]
    own = expected_bytes(model.parameters, 4) * 2 + expected_bytes(model.parameters, 8)
    needed = expected_bytes(model.parameters, 16) + own
    assert disk("gpu", MISTRAL, recipes, lambda _: needed).state == "ok"
    assert disk("gpu", MISTRAL, recipes, lambda _: needed - 1).state == "warning"
    assert disk("gpu", MISTRAL, recipes, lambda _: expected_bytes(model.parameters, 16) - 1).state == "missing"
    put_in_cache(tmp_path / "not" / "there", MISTRAL, {})
    assert disk("gpu", MISTRAL, recipes, lambda _: own).state == "ok"
    assert "16-bit" not in disk("gpu", MISTRAL, recipes, lambda _: own).seen
    assert disk("gpu", "a/unknown", recipes, lambda _: 0).state == "warning"
    assert disk("gpu", str(tmp_path), recipes, lambda _: 0).state == "ok"
    assert disk("simulated", MISTRAL, recipes, lambda _: 0).state == "not applicable"
    assert free_bytes(tmp_path / "not" / "here") == pytest.approx(free_bytes(tmp_path), rel=0.1)


@pytest.mark.parametrize(("source", "state"), [("tsc", "ok"), ("kvm-clock", "ok"), ("hpet", "warning")])
def test_clock_source(tmp_path: Path, source: str, state: str) -> None:
    path = tmp_path / "current_clocksource"
    assert hardware.clock_source(path).state == "not applicable"
    path.write_text(f"{source}\n")
    assert hardware.clock_source(path).state == state


def test_client_timing_is_judged_by_its_slowest_hundredth() -> None:
    assert hardware.client_timing(1.0).state == "ok"
    late = hardware.client_timing(8.0)
    assert late.state == "warning"
    assert "8.0 ms" in late.seen


def test_the_event_loops_lag_is_measured() -> None:
    assert hardware.event_loop_lag_ms() >= 0
