"""The images are built and the simulated and the cpu variant run on a real Docker engine, without any image registry.

The simulated variant by docker-compose 1.29, the cpu variant by Compose v2. The base image is a bootstrapped Debian,
Prometheus is Debian's own in an image of the same layout as the published one, and Grafana is left out: no image of it
can be had here (its provisioning is checked by structure elsewhere).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from docker_engine import PACKAGES, PROGRAMS, base_tarball, compose_v2, download_cpu_wheels, download_wheels, engine
from docker_project import Docker, Sweep, build_prometheus, free_port

import loadgen
from loadgen.serving.compose import SERVICES, write_project

pytestmark = pytest.mark.docker
real_vllm = pytest.mark.skipif(
    os.environ.get("LOADGEN_TEST_DOCKER_CPU") != "1",
    reason="vLLM's CPU image in Docker: LOADGEN_TEST_DOCKER_CPU=1",
)
BASE = "loadgen-test-base"
SERVERS = {"fp16": "sim-fp16", "awq": "sim-awq"}
BATCHES = (1, 4)
ON_CPU = {"bf16": "cpu-bf16", "bnb-nf4": "cpu-bnb-nf4"}
SLOWER = "--model qwen2.5-14b"
"""So that an answer lasts about a second, and a busy machine's refills do not show in the running batch."""
KEY = "a-key-of-the-tests"
BUILD_S = 900.0
READY_S = 120.0
CPU_READY_S = 600.0
VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"
WHO = "import os; print(os.getuid(), os.statvfs('/').f_flag & os.ST_RDONLY, os.access('/tmp', os.W_OK))"


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """The images are built, but for that of vLLM; nothing is up."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    assert not missing, f"{', '.join(missing)} not installed: apt-get install {PACKAGES}"
    assert os.geteuid() == 0, "a Docker engine and debootstrap need root"
    # A short path: that of the engine's socket has a limit of 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="loadgen-docker-"))
    project = folder / "project"
    write_project(project)
    tarball = base_tarball(folder)
    key = folder / "key"
    key.write_text(KEY, encoding="utf-8")
    (folder / "engine").mkdir()
    ports = {f"{name}_PORT": str(free_port()) for name in ("SIM_FP16", "SIM_AWQ", "PROMETHEUS")}
    images = {
        "PYTHON_IMAGE": BASE, "LOADGEN_IMAGE": "loadgen-test", "EXPORTER_IMAGE": "loadgen-test-exporter",
        "PROMETHEUS_IMAGE": "loadgen-test-prometheus", "VLLM_CPU_IMAGE": "loadgen-test-cpu",
    }  # fmt: skip
    try:
        with engine(folder / "engine") as host:
            local = {"DOCKER_HOST": host, "DOCKER_BUILDKIT": "0", "PIP_NO_INDEX": "1"}
            variables = {**os.environ, **local, **ports, **images, "SIM_ARGS": SLOWER, "API_KEY_FILE": str(key)}
            docker = Docker(project, variables, f"loadgentest{os.getpid()}")
            docker("import", str(tarball), BASE, timeout_s=BUILD_S)
            download_wheels(project / "build" / "wheels", python_of(docker))
            docker.compose("build", "loadgen", "exporter", timeout_s=BUILD_S)
            build_prometheus(docker, folder / "prometheus", base=BASE, tag=images["PROMETHEUS_IMAGE"])
            try:
                yield docker
            finally:
                docker.compose("down", "--volumes", "--remove-orphans", "--timeout", "2")
                if str(folder) not in host:  # an engine of one's own goes with its folder
                    docker("image", "rm", "--force", *images.values(), timeout_s=BUILD_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def python_of(docker: Docker) -> str:
    """`3.11`, of the base image."""
    return docker("run", "--rm", BASE, "python3", "-c", VERSION).strip()


@pytest.fixture(scope="module")
def stack(docker: Docker) -> Docker:
    """Two simulated servers and Prometheus are up and healthy."""
    docker.compose("up", "--detach", "--no-build", *SERVERS.values(), "prometheus")
    docker.wait_until_healthy((*SERVERS.values(), "prometheus"), READY_S)
    return docker


@pytest.fixture(scope="module")
def sweep(stack: Docker, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    targets = [word for target, service in SERVERS.items() for word in ("--target", f"{target}=http://{service}:8000")]
    return stack.sweep(
        tmp_path_factory.mktemp("runs"), *targets, "--dataset", "sample", "--duration", "5", "--repeats", "1",
        "--concurrency", ",".join(map(str, BATCHES)), "--api-key-env", "LOADGEN_API_KEY", timeout_s=180,
    )  # fmt: skip


def test_the_sweep_ends_with_a_complete_run_directory(sweep: Sweep) -> None:
    run = loadgen.load_run(sweep.run_dir)
    cells = run.cells
    assert sweep.status == (0 if run.complete else 1), sweep.said
    # Other work on this machine starves a server or the client: such a cell must say so, and nothing else.
    assert cells["reasons"].str.fullmatch("|running batch .* the server was slow .*|client-bound: .*").all()
    assert sorted(zip(cells["target"], cells["concurrency"], strict=True)) == sorted(
        (target, batch) for target in SERVERS for batch in BATCHES
    )
    assert (cells["output_tokens"] > 0).all()
    assert cells["simulated"].all()
    assert "SIMULATED" in sweep.said
    assert (sweep.run_dir / "report.html").stat().st_size > 0


def test_prometheus_has_the_servers_the_power_and_the_sweep(stack: Docker, sweep: Sweep) -> None:
    counted = stack.query("sum by (target) (vllm:generation_tokens_total)")
    summary = pd.read_csv(sweep.run_dir / "summary.csv")
    for target, tokens in summary.groupby("target").output_tokens.sum().items():
        # The windows' tokens and those of warm-up, ramp and drain.
        assert counted[str(target)] >= tokens, target
    joules = stack.query("sum by (target) (loadgen_gpu_energy_joules_total)")
    assert set(joules) == set(SERVERS)
    assert min(joules.values()) > 0
    seen = stack.query("sum by (target) (max_over_time(loadgen_output_tokens_total[15m]))")
    assert set(seen) == set(SERVERS), "Prometheus did not reach the sweep's own /metrics"


def test_ports_are_published_on_loopback_only(stack: Docker) -> None:
    for service, variable in (("sim-fp16", "SIM_FP16"), ("sim-awq", "SIM_AWQ"), ("prometheus", "PROMETHEUS")):
        bindings = stack.inspect(stack.container(service))["NetworkSettings"]["Ports"].values()
        published = {(one["HostIp"], one["HostPort"]) for port in bindings if port for one in port}
        assert published == {("127.0.0.1", stack.environment[f"{variable}_PORT"])}, service
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.environment['SIM_FP16_PORT']}/health", timeout=10) as answer:
        assert answer.status == 200


def test_containers_run_without_privileges_on_a_read_only_root(stack: Docker, sweep: Sweep) -> None:
    own = sweep.container, stack.inspect(stack.container("sim-fp16"))
    for described in (*own, stack.inspect(stack.container("prometheus"))):
        settings = described["HostConfig"]
        assert settings["ReadonlyRootfs"]
        assert not settings["Privileged"]
        assert settings["CapDrop"] == ["ALL"]
    assert {described["Config"]["User"] for described in own} == {"10001:10001"}
    uid, read_only, scratch = stack("exec", stack.container("sim-fp16"), "python", "-c", WHO).split()
    assert (uid, read_only, scratch) == ("10001", "1", "True")


def test_the_api_key_reaches_the_sweep_and_is_not_in_its_containers_settings(sweep: Sweep) -> None:
    assert sweep.status in (0, 1), sweep.said  # 2: --api-key-env names a variable that is not set
    assert KEY not in json.dumps(sweep.container)


def test_grafana_does_not_start_on_the_network_without_a_password(docker: Docker) -> None:
    on_network = {"BIND_ADDRESS": "10.0.0.7", "GRAFANA_IMAGE": BASE}
    changed = replace(docker, environment=docker.environment | on_network)
    command = (changed.program, "--project-name", changed.name, "run", "--rm", "--no-deps", "grafana")
    done = changed.status(*command, timeout_s=60)
    assert done.returncode == 2
    assert "BIND_ADDRESS 10.0.0.7 opens Grafana to the network" in done.stdout + done.stderr


def test_the_exporters_image_runs_without_privileges_and_says_what_is_missing(docker: Docker) -> None:
    confined = ("run", "--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")
    image = docker.environment["EXPORTER_IMAGE"]
    done = docker.status("docker", *confined, image, timeout_s=60)
    assert done.returncode == 2
    assert "libnvidia-ml.so.1" in done.stderr
    assert docker(*confined, "--entrypoint", "python", image, "-c", WHO).split()[0] == "10001"


@pytest.fixture(scope="module")
def on_cpu(docker: Docker) -> Iterator[Docker]:
    """Real vLLM on this machine's CPU in two precisions and Prometheus, a project of its own, by Compose v2."""
    download_cpu_wheels(docker.folder / "build" / "wheels", python_of(docker))
    ports = {f"{name}_PORT": str(free_port()) for name in ("CPU_BF16", "CPU_BNB_NF4", "PROMETHEUS")}
    cpu = replace(
        docker, environment=docker.environment | ports | {"COMPOSE_PROFILES": "cpu"}, name=f"{docker.name}cpu",
        program=compose_v2(),
    )  # fmt: skip
    cpu.compose("build", "cpu-bf16", timeout_s=BUILD_S)
    try:
        cpu.compose("up", "--detach", "--no-build", *ON_CPU.values(), "prometheus")
        cpu.wait_until_healthy((*ON_CPU.values(), "prometheus"), CPU_READY_S)
        yield cpu
    finally:
        cpu.compose("down", "--volumes", "--remove-orphans", "--timeout", "2")


@pytest.fixture(scope="module")
def cpu_sweep(on_cpu: Docker, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    targets = [word for target, service in ON_CPU.items() for word in ("--target", f"{target}=http://{service}:8000")]
    return on_cpu.sweep(
        tmp_path_factory.mktemp("runs"), *targets, "--dataset", "sample", "--duration", "10", "--max-tokens", "64",
        "--concurrency", "2", "--repeats", "1", timeout_s=300,
    )  # fmt: skip


@real_vllm
def test_a_sweep_of_real_servers_on_the_cpu_is_measured_and_says_simulated_nowhere(cpu_sweep: Sweep) -> None:
    run = loadgen.load_run(cpu_sweep.run_dir)
    cells = run.cells
    assert cpu_sweep.status == (0 if run.complete else 1), cpu_sweep.said
    # Other work on this machine starves a server now and then: such a cell must say so, and nothing else.
    assert cells["reasons"].str.fullmatch("|running batch .* the server was slow .*|.* no request ended .*").all()
    assert sorted(cells["target"]) == sorted(ON_CPU)
    assert (cells["server_tokens"] == cells["recorded_tokens"]).all()
    assert (cells["output_tokens"] > 0).all()
    assert not cells["simulated"].any()
    assert "SIMULATED" not in cpu_sweep.said + (cpu_sweep.run_dir / "report.html").read_text(encoding="utf-8")


@real_vllm
def test_prometheus_has_the_real_servers_and_the_verdict_on_each_cell(on_cpu: Docker, cpu_sweep: Sweep) -> None:
    counted = on_cpu.query("sum by (target) (vllm:generation_tokens_total)")
    verdicts = on_cpu.query("min by (target) (last_over_time(loadgen_ended_cell_valid[15m]))")
    for cell in loadgen.load_run(cpu_sweep.run_dir).cells.to_dict("records"):
        assert counted[cell["target"]] >= cell["server_tokens"]
        assert verdicts[cell["target"]] == cell["valid"]


@real_vllm
def test_vllm_on_the_cpu_runs_without_privileges_on_a_read_only_root(on_cpu: Docker) -> None:
    described = on_cpu.inspect(on_cpu.container("cpu-bf16"))
    settings = described["HostConfig"]
    assert (settings["ReadonlyRootfs"], settings["Privileged"], settings["CapDrop"]) == (True, False, ["ALL"])
    assert on_cpu("exec", described["Id"], "python", "-c", WHO).split() == ["10001", "1", "True"]


@real_vllm
def test_both_composes_resolve_every_profile_to_the_same_services(docker: Docker, on_cpu: Docker) -> None:
    profiles = ",".join(["gpu", "simulated", "cpu", "loadgen", *SERVICES])
    of_1, of_2 = (
        yaml.safe_load(replace(one, environment=docker.environment | {"COMPOSE_PROFILES": profiles}).compose("config"))
        for one in (docker, on_cpu)
    )
    assert of_1["services"].keys() == of_2["services"].keys()
    for name, service in of_1["services"].items():
        other = of_2["services"][name]
        assert words(service.get("command")) == words(other.get("command")), name
        for key in ("image", "environment", "deploy", "entrypoint", "profiles", "user", "network_mode"):
            assert service.get(key) == other.get(key), (name, key)


def words(command: str | list[str] | None) -> list[str] | None:
    return shlex.split(command) if isinstance(command, str) else command


def sweeping(docker: Docker, *options: str, **variables: str) -> subprocess.Popen[str]:
    """`loadgen sweep OPTIONS` on the host, with the variables of the project."""
    command = [sys.executable, "-m", "loadgen", "sweep", *options, "--metrics-port", str(free_port())]
    environment = docker.environment | {"COMPOSE_PROJECT_NAME": docker.name} | variables
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def up(docker: Docker) -> set[str]:
    """The services whose containers run now."""
    label = "com.docker.compose"
    filtered = ("ps", "--filter", f"label={label}.project={docker.name}", "--format")
    return set(docker(*filtered, f'{{{{.Label "{label}.service"}}}}').split())


def test_services_that_run_already_keep_a_sweep_from_starting_more(stack: Docker) -> None:
    process = sweeping(stack, "--compose", str(stack.folder), "--serve", "sim-fp16,sim-awq", "--dry-run")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "sim-awq, sim-fp16 of" in said
    assert "only one server may be up at a time" in said
    assert "docker-compose stop sim-awq sim-fp16" in said


def test_nothing_is_left_behind(stack: Docker, sweep: Sweep) -> None:
    """It takes the stack down."""
    stack.compose("down", "--volumes", "--timeout", "2")
    label = f"label=com.docker.compose.project={stack.name}"
    assert stack("ps", "--all", "--quiet", "--filter", label) == ""
    assert stack("volume", "ls", "--quiet", "--filter", label) == ""
    assert stack("network", "ls", "--quiet", "--filter", label) == ""


@pytest.fixture(scope="module")
def one_by_one(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[set[str]], str]:
    """A sweep of two services by docker-compose 1.29 that is killed beside its first server, and resumed by Compose v2;
    its run directory, the services that were up at each look, and what the second session said."""
    run_dir = tmp_path_factory.mktemp("compose") / "run"
    looks: list[set[str]] = []
    options = ("--concurrency", "2", "--duration", "1", "--repeats", "1", "--out", str(run_dir))
    first = sweeping(
        docker, "--compose", str(docker.folder), "--serve", "fp16,awq", *options, COMPOSE_PROFILES="simulated"
    )
    while not up(docker):
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    first.kill()
    first.communicate()
    deadline_s = time.monotonic() + READY_S
    while up(docker):
        assert time.monotonic() < deadline_s, "the killed sweep left a container running"
        time.sleep(0.1)
    plugins = tmp_path_factory.mktemp("docker") / "cli-plugins"
    plugins.mkdir()
    (plugins / "docker-compose").symlink_to(compose_v2())
    second = sweeping(docker, "--resume", str(run_dir), DOCKER_CONFIG=str(plugins.parent))
    while second.poll() is None:
        looks.append(up(docker))
        time.sleep(0.1)
    said, _ = second.communicate()
    return run_dir, [*looks, up(docker)], said


def test_services_are_measured_one_after_another_and_a_killed_sweep_leaves_none(
    one_by_one: tuple[Path, list[set[str]], str],
) -> None:
    run_dir, looks, said = one_by_one
    assert max(map(len, looks)) == 1, "two servers were up at once"
    assert set().union(*looks) == set(SERVERS.values())
    assert looks[-1] == set()
    run = loadgen.load_run(run_dir)
    assert sorted(run.cells["target"]) == sorted(SERVERS), said
    assert (run.cells["output_tokens"] > 0).all()
    assert run.cells["simulated"].all()


def test_a_containers_log_and_process_are_kept_as_a_servers(one_by_one: tuple[Path, list[set[str]], str]) -> None:
    run_dir, _, _ = one_by_one
    servers = loadgen.load_run(run_dir).manifest.servers
    for server in servers:
        log = (run_dir / "servers" / f"{server.name}-r1.log").read_text(encoding="utf-8")
        assert f"of service sim-{server.name}, process {server.pid}\n" in log
        assert f"SIMULATED {server.name} server ready" in log
        assert (server.argv or ())[:2] == ("loadgen", "simulate")
    assert {server.name for server in servers} == set(SERVERS)


def test_a_service_that_does_not_start_says_why(docker: Docker, tmp_path: Path) -> None:
    options = ("--concurrency", "1", "--duration", "1", "--repeats", "1", "--out", str(tmp_path / "run"))
    process = sweeping(
        docker, "--compose", str(docker.folder), "--serve", "sim-fp16", *options, SIM_ARGS="--no-such-option"
    )
    said, _ = process.communicate(timeout=READY_S)
    assert process.returncode == 1
    assert "ended with exit status 2 before it was ready" in said
    assert "loadgen simulate has no option --no-such-option" in said
    assert up(docker) == set()
