"""Examination: everything the doctor looks at, each check within its own time.

Datasets: whether the published files are in the cache and are the pinned ones.

Proxies: whether the environment names one, and what it is used for.

Ports that servers, exporter, sweep, Prometheus and Grafana listen on.

Prometheus and Grafana: whether they answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from loadgen.doctor.docker import examine_docker
from loadgen.doctor.finding import Finding, Mode, State
from loadgen.doctor.hardware import client_timing, clock_source, cpu_flags, cpu_library, disk, examine_gpus
from loadgen.doctor.vllm import VERSION_TIMEOUT_S, examine_checkpoints, examine_vllm
from loadgen.secret import Mask
from loadgen.serving.facts import get, get_object, proxies_named
from loadgen.serving.process import port_is_free
from loadgen.serving.recipe import load_recipes
from loadgen.workload.dataset import FILES
from loadgen.workload.published import CacheState, PublishedFile, state_of


def examine_datasets(mode: Mode, state: Callable[[PublishedFile], CacheState] = state_of) -> list[Finding]:
    """One finding per published dataset."""
    return [dataset(mode, name, files, state) for name, files in FILES.items()]


def dataset(
    mode: Mode, name: str, files: Sequence[PublishedFile], state: Callable[[PublishedFile], CacheState] = state_of
) -> Finding:
    """A dataset's files by their sha256; a simulated sweep asks the shipped sample unless told otherwise."""
    check = f"dataset {name}"
    states = {file.name: state(file) for file in files}
    seen = ", ".join(f"{file} {found}" for file, found in states.items())
    if all(found == "cached" for found in states.values()):
        return Finding(check=check, state="ok", seen=f"{seen}, sha256 as pinned")
    advice = f"`loadgen data fetch {name}` downloads it, or name your copy with --data-file"
    if mode == "simulated" and "damaged" not in states.values():
        return Finding(check=check, state="not applicable", seen=f"{seen}; the sample is shipped", advice=advice)
    return Finding(check=check, state="warning", seen=seen, advice=advice)


def proxies() -> Finding:
    """Of HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, upper or lower case."""
    named = proxies_named()
    if not named:
        return Finding(check="proxy", state="ok", seen="the environment names none")
    used = "for downloads only; servers, exporters and Prometheus are reached directly"
    seen = f"{', '.join(map(Mask(), named))}: {used}"
    return Finding(check="proxy", state="ok", seen=seen)


SERVERS = (range(8000, 8011),)
CONTAINERS = (*SERVERS, range(8101, 8105), range(8201, 8204))
"""What docker/compose.yaml publishes servers on: GPU, simulated, CPU."""
OTHERS = {
    9401: "exporter",
    9402: "sweep's /metrics",
    9090: "Prometheus",
    3000: "Grafana",
}


def ports(mode: Mode, is_free: Callable[[str, int], bool] = port_is_free, host: str = "127.0.0.1") -> Finding:
    """Which of the ports are taken on the loopback address."""
    spans = CONTAINERS if mode == "docker" else SERVERS
    roles = {port: "server" for span in spans for port in span} | OTHERS
    taken = [f"{port} ({role})" for port, role in roles.items() if not is_free(host, port)]
    if not taken:
        servers = ", ".join(f"{span[0]}-{span[-1]}" for span in spans)
        others = ", ".join(map(str, OTHERS))
        return Finding(check="ports", state="ok", seen=f"{servers}, {others} are free")
    advice = "fine if that is this project's stack; else stop what listens there (`ss -ltnp`) or choose other ports"
    return Finding(check="ports", state="warning", seen=f"taken: {', '.join(taken)}", advice=advice)


PROMETHEUS = "http://127.0.0.1:9090"
GRAFANA = "http://127.0.0.1:3000"


def prometheus(url: str = PROMETHEUS, body: Callable[[str], bytes | None] = get) -> Finding:
    """GET /-/ready, at most 5 s."""
    base = url.rstrip("/")
    if body(f"{base}/-/ready") is not None:
        return Finding(check="Prometheus", state="ok", seen=f"{base} is ready")
    advice = "a sweep runs without; for live figures start the stack's prometheus, or name yours with --prometheus URL"
    return Finding(check="Prometheus", state="warning", seen=f"{base} does not answer", advice=advice)


def grafana(url: str = GRAFANA, answer: Callable[[str], dict[str, Any]] = get_object) -> Finding:
    """GET /api/health, at most 5 s."""
    base = url.rstrip("/")
    health = answer(f"{base}/api/health")
    version = f", version {health['version']}" if "version" in health else ""
    if health.get("database") == "ok":
        return Finding(check="Grafana", state="ok", seen=f"{base} is healthy{version}")
    if health:
        advice = "see Grafana's log"
        return Finding(check="Grafana", state="warning", seen=f"{base} says {health}", advice=advice)
    advice = "a sweep runs without; for dashboards start the stack's grafana, or name yours with --grafana URL"
    return Finding(check="Grafana", state="warning", seen=f"{base} does not answer", advice=advice)


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
        Check("datasets", lambda: examine_datasets(mode)),
        Check("Prometheus", lambda: [prometheus(prometheus_url)]),
        Check("Grafana", lambda: [grafana(grafana_url)]),
        Check("proxy", lambda: [proxies()]),
        Check("clock", lambda: [clock_source()]),
    ]
    return Examination(mode=mode, findings=(*look_at_once(checks), timing))


def look_at_once(checks: Sequence[Check]) -> list[Finding]:
    """The findings of all checks, in their order; one that fails or does not end in time is told as such."""
    looks = [_Look(check) for check in checks]
    return [finding for look in looks for finding in look.findings()]


class _Look:
    """A check in a thread of its own, which does not keep the program from ending."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._found: list[Finding] | None = None
        self._error = ""
        self._end_s = time.monotonic() + check.limit_s
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = list(self._check.look())
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"

    def findings(self) -> list[Finding]:
        self._thread.join(max(0.0, self._end_s - time.monotonic()))
        if self._found is not None:
            return self._found
        seen = self._error or f"no answer within {self._check.limit_s:g} s"
        state: State = "missing" if self._check.needed else "warning"
        return [Finding(check=self._check.name, state=state, seen=seen, advice="look at it by hand")]
