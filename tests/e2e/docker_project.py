"""One written-out compose project: docker and a compose program for it, every port a free one."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Docker:
    """docker and docker-compose for the project in `folder`, whose containers are called `name`."""

    folder: Path
    environment: dict[str, str]
    name: str
    program: str = "docker-compose"

    def __call__(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """What `docker ...` prints; it must end well."""
        done = self.status("docker", *arguments, timeout_s=timeout_s)
        assert done.returncode == 0, f"docker {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def compose(self, *arguments: str, timeout_s: float = 120.0) -> str:
        done = self.status(self.program, "--project-name", self.name, *arguments, timeout_s=timeout_s)
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

    def wait_until_healthy(self, services: Iterable[str], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        waiting = {service: self.container(service) for service in services}
        while waiting:
            states = {service: self.inspect(container)["State"] for service, container in waiting.items()}
            ended = [service for service, state in states.items() if state["Status"] == "exited"]
            waiting = {s: waiting[s] for s, state in states.items() if state["Health"]["Status"] != "healthy"}
            late = time.monotonic() > deadline_s
            assert not ended and not (waiting and late), f"{ended or waiting}\n{self.compose('logs', '--tail', '40')}"
            time.sleep(1 if waiting else 0)

    def query(self, expression: str) -> dict[str, float]:
        """Value by target, as the project's Prometheus has it."""
        port = self.environment["PROMETHEUS_PORT"]
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            series = json.loads(answer.read())["data"]["result"]
        return {one["metric"].get("target", ""): float(one["value"][1]) for one in series}

    def sweep(self, folder: Path, *options: str, timeout_s: float) -> Sweep:
        """`run loadgen sweep OPTIONS` to its end; the run directory is copied into `folder`."""
        name = f"{self.name}-sweep"
        self.compose("run", "--detach", "--name", name, "loadgen", "sweep", *options, "--out", "/runs/one")
        try:
            described = self.inspect(name)
            status = int(self("wait", name, timeout_s=timeout_s))
            self("cp", f"{name}:/runs/one", str(folder))
            return Sweep(described, status, self("logs", name), folder / "one")
        finally:
            self("rm", "--force", name)


@dataclass(frozen=True)
class Sweep:
    """A finished `docker-compose run loadgen sweep ...`."""

    container: dict[str, Any]
    status: int
    said: str
    run_dir: Path


def build_prometheus(docker: Docker, context: Path, *, base: str, tag: str) -> None:
    """This machine's Prometheus in an image of the same layout as the published one."""
    context.mkdir()
    for name in ("prometheus", "promtool"):
        shutil.copy(shutil.which(name) or name, context)
    dockerfile = [
        f"FROM {base}",
        "COPY prometheus promtool /bin/",
        "RUN mkdir /prometheus && chown 65534:65534 /prometheus",
        "USER 65534:65534",
        'ENTRYPOINT ["/bin/prometheus"]',
    ]
    (context / "Dockerfile").write_text("\n".join(dockerfile), encoding="utf-8")
    docker("build", "--quiet", "--tag", tag, str(context), timeout_s=300)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
