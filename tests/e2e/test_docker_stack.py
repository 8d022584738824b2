"""The images are built and the simulated variant runs on a real Docker engine, without any registry.

The base image is a bootstrapped Debian, Prometheus is Debian's own in an image of the same layout as the published one,
and Grafana is left out: no image of it can be had here (its provisioning is checked by structure elsewhere).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from docker_engine import PACKAGES, PROGRAMS, base_tarball, download_wheels, engine

from loadgen.serving.compose.project import write_project

ASKED = os.environ.get("CI") == "true" or os.environ.get("LOADGEN_TEST_DOCKER") == "1"
pytestmark = pytest.mark.skipif(not ASKED, reason="starts a Docker engine: set LOADGEN_TEST_DOCKER=1 (minutes, root)")
SERVERS = {"fp16": "sim-fp16", "awq": "sim-awq"}
BATCHES = (1, 4)
PROMETHEUS_DOCKERFILE = """\
FROM loadgen-test-base
COPY prometheus promtool /bin/
RUN mkdir /prometheus && chown 65534:65534 /prometheus
USER 65534:65534
ENTRYPOINT ["/bin/prometheus"]
"""
SLOWER = "--model qwen2.5-14b"
"""So that an answer lasts about a second, and a busy machine's refills do not show in the running batch."""
BUILD_S = 900.0
READY_S = 120.0
VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"
WHO = "import os; print(os.getuid(), os.statvfs('/').f_flag & os.ST_RDONLY, os.access('/tmp', os.W_OK))"


@dataclass(frozen=True)
class Docker:
    """docker and docker-compose for one written-out project; every port is a free one."""

    folder: Path
    environment: dict[str, str]
    name: str

    def __call__(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """What `docker ...` prints; it must end well."""
        done = self.status("docker", *arguments, timeout_s=timeout_s)
        assert done.returncode == 0, f"docker {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def compose(self, *arguments: str, timeout_s: float = 120.0) -> str:
        done = self.status("docker-compose", "--project-name", self.name, *arguments, timeout_s=timeout_s)
        assert done.returncode == 0, f"docker-compose {' '.join(arguments)}:\n{(done.stdout + done.stderr)[-6000:]}"
        return done.stdout

    def status(self, *command: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder / "docker", env=self.environment, capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip

    def inspect(self, container: str) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(self("inspect", container))[0]
        return described

    def container(self, service: str) -> str:
        return self.compose("ps", "-q", service).strip()


@dataclass(frozen=True)
class Sweep:
    """A finished `docker-compose run loadgen sweep ...`."""

    container: dict[str, Any]
    status: int
    said: str
    run_dir: Path


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """The images are built; nothing is up."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    assert not missing, f"{', '.join(missing)} not installed: apt-get install {PACKAGES}"
    assert os.geteuid() == 0, "a Docker engine and debootstrap need root"
    # A short path: that of the engine's socket has a limit of 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="loadgen-docker-"))
    project = folder / "project"
    write_project(project)
    tarball = base_tarball(folder)
    (folder / "engine").mkdir()
    ports = {f"{name}_PORT": str(_free_port()) for name in ("SIM_FP16", "SIM_AWQ", "PROMETHEUS")}
    images = {
        "PYTHON_IMAGE": "loadgen-test-base", "LOADGEN_IMAGE": "loadgen-test", "EXPORTER_IMAGE": "loadgen-test-exporter",
        "PROMETHEUS_IMAGE": "loadgen-test-prometheus",
    }  # fmt: skip
    try:
        with engine(folder / "engine") as host:
            local = {"DOCKER_HOST": host, "DOCKER_BUILDKIT": "0", "PIP_NO_INDEX": "1"}
            variables = {**os.environ, **local, **ports, **images, "SIM_ARGS": SLOWER}
            docker = Docker(project, variables, f"loadgentest{os.getpid()}")
            docker("import", str(tarball), "loadgen-test-base", timeout_s=BUILD_S)
            python = docker("run", "--rm", "loadgen-test-base", "python3", "-c", VERSION).strip()
            download_wheels(project / "build" / "wheels", python)
            docker.compose("build", "loadgen", "exporter", timeout_s=BUILD_S)
            _build_prometheus(docker, folder / "prometheus")
            try:
                yield docker
            finally:
                docker.compose("down", "--volumes", "--remove-orphans", "--timeout", "2")
                if str(folder) not in host:  # an engine of one's own goes with its folder
                    docker("image", "rm", "--force", *images.values(), timeout_s=BUILD_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _build_prometheus(docker: Docker, context: Path) -> None:
    context.mkdir()
    for name in ("prometheus", "promtool"):
        shutil.copy(shutil.which(name) or name, context)
    (context / "Dockerfile").write_text(PROMETHEUS_DOCKERFILE, encoding="utf-8")
    docker("build", "--quiet", "--tag", "loadgen-test-prometheus", str(context), timeout_s=BUILD_S)


@pytest.fixture(scope="module")
def stack(docker: Docker) -> Docker:
    """Two simulated servers and Prometheus are up and healthy."""
    docker.compose("up", "--detach", "--no-build", *SERVERS.values(), "prometheus")
    deadline_s = time.monotonic() + READY_S
    waiting = {service: docker.container(service) for service in (*SERVERS.values(), "prometheus")}
    while waiting:
        states = {service: docker.inspect(container)["State"] for service, container in waiting.items()}
        waiting = {s: waiting[s] for s, state in states.items() if state["Health"]["Status"] != "healthy"}
        if waiting:
            assert time.monotonic() < deadline_s, f"not healthy: {waiting}\n{docker.compose('logs', '--tail', '30')}"
            time.sleep(1)
    return docker


@pytest.fixture(scope="module")
def sweep(stack: Docker, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    name = f"{stack.name}-sweep"
    targets = [word for target, service in SERVERS.items() for word in ("--target", f"{target}=http://{service}:8000")]
    stack.compose(
        "run", "--detach", "--name", name, "loadgen", "sweep", *targets, "--dataset", "sample", "--duration", "5",
        "--concurrency", ",".join(map(str, BATCHES)), "--repeats", "1", "--out", "/runs/one",
    )  # fmt: skip
    try:
        described = stack.inspect(name)
        status = int(stack("wait", name, timeout_s=180))
        folder = tmp_path_factory.mktemp("runs")
        stack("cp", f"{name}:/runs/one", str(folder))
        return Sweep(described, status, stack("logs", name), folder / "one")
    finally:
        stack("rm", "--force", name)


def query(docker: Docker, expression: str) -> dict[str, float]:
    """Value by target."""
    port = docker.environment["PROMETHEUS_PORT"]
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        series = json.loads(answer.read())["data"]["result"]
    return {one["metric"].get("target", ""): float(one["value"][1]) for one in series}


def test_the_sweep_ends_with_a_complete_run_directory(sweep: Sweep) -> None:
    assert sweep.status == 0, sweep.said
    summary = pd.read_csv(sweep.run_dir / "summary.csv")
    assert sorted(zip(summary.target, summary.concurrency, strict=True)) == sorted(
        (target, batch) for target in SERVERS for batch in BATCHES
    )
    assert (summary.output_tokens > 0).all()
    assert summary.simulated.all()
    assert "SIMULATED" in sweep.said
    assert (sweep.run_dir / "report.html").stat().st_size > 0


def test_prometheus_has_the_servers_the_power_and_the_sweep(stack: Docker, sweep: Sweep) -> None:
    counted = query(stack, "sum by (target) (vllm:generation_tokens_total)")
    summary = pd.read_csv(sweep.run_dir / "summary.csv")
    for target, tokens in summary.groupby("target").output_tokens.sum().items():
        # The windows' tokens and those of warm-up, ramp and drain.
        assert counted[str(target)] >= tokens, target
    joules = query(stack, "sum by (target) (loadgen_gpu_energy_joules_total)")
    assert set(joules) == set(SERVERS)
    assert min(joules.values()) > 0
    seen = query(stack, "sum by (target) (max_over_time(loadgen_output_tokens_total[15m]))")
    assert set(seen) == set(SERVERS), "Prometheus did not reach the sweep's own /metrics"


def test_ports_are_published_on_loopback_only(stack: Docker) -> None:
    for service, variable in (("sim-fp16", "SIM_FP16"), ("sim-awq", "SIM_AWQ"), ("prometheus", "PROMETHEUS")):
        bindings = stack.inspect(stack.container(service))["NetworkSettings"]["Ports"].values()
        published = {(one["HostIp"], one["HostPort"]) for port in bindings if port for one in port}
        assert published == {("127.0.0.1", stack.environment[f"{variable}_PORT"])}, service
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.environment['SIM_FP16_PORT']}/health", timeout=10) as answer:
        assert answer.status == 200


def test_containers_run_without_privileges_on_a_read_only_root(stack: Docker, sweep: Sweep) -> None:
    for described in (sweep.container, stack.inspect(stack.container("sim-fp16"))):
        settings = described["HostConfig"]
        assert settings["ReadonlyRootfs"]
        assert not settings["Privileged"]
        assert settings["CapDrop"] == ["ALL"]
        assert described["Config"]["User"] == "10001:10001"
    uid, read_only, scratch = stack("exec", stack.container("sim-fp16"), "python", "-c", WHO).split()
    assert (uid, read_only, scratch) == ("10001", "1", "True")


def test_the_exporters_image_runs_without_privileges_and_says_what_is_missing(docker: Docker) -> None:
    confined = ("run", "--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")
    image = docker.environment["EXPORTER_IMAGE"]
    done = docker.status("docker", *confined, image, timeout_s=60)
    assert done.returncode == 2
    assert "libnvidia-ml.so.1" in done.stderr
    assert docker(*confined, "--entrypoint", "python", image, "-c", WHO).split()[0] == "10001"


def test_nothing_is_left_behind(stack: Docker, sweep: Sweep) -> None:
    """Last: it takes the stack down."""
    stack.compose("down", "--volumes", "--timeout", "2")
    label = f"label=com.docker.compose.project={stack.name}"
    assert stack("ps", "--all", "--quiet", "--filter", label) == ""
    assert stack("volume", "ls", "--quiet", "--filter", label) == ""
    assert stack("network", "ls", "--quiet", "--filter", label) == ""
