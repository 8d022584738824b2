"""Examination: everything the doctor looks at, each check within its own time; here datasets, proxies, ports,
Prometheus and Grafana."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from loadgen.doctor.docker import examine_docker
from loadgen.doctor.finding import Finding, Mode, judged
from loadgen.doctor.hardware import client_timing, clock_source, cpu_flags, cpu_library, disk, examine_gpus
from loadgen.doctor.vllm import VERSION_TIMEOUT_S, examine_checkpoints, examine_vllm
from loadgen.secret import Mask
from loadgen.serving.facts import get, get_object, proxies_named
from loadgen.serving.process import port_is_free
from loadgen.serving.recipe import load_recipes
from loadgen.workload.dataset import FILES
from loadgen.workload.published import CacheState, PublishedFile, state_of


def dataset(
    mode: Mode, name: str, files: Sequence[PublishedFile], state: Callable[[PublishedFile], CacheState] = state_of
) -> Finding:
    """A dataset's files by their sha256; a simulated sweep asks the shipped sample unless told otherwise."""
    check = f"dataset {name}"
    states = {file.name: state(file) for file in files}
    seen = ", ".join(f"{file} {found}" for file, found in states.items())
    if all(found == "cached" for found in states.values()):
        return judged(check, f"{seen}, sha256 as pinned")
    advice = f"`loadgen data fetch {name}` downloads it, or name your copy with --data-file"
    if mode == "simulated" and "damaged" not in states.values():
        return Finding(check, "not applicable", f"{seen}; the sample is shipped", advice)
    return judged(check, seen, advice)


def proxies() -> Finding:
    """HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, upper or lower case, and what they are used for."""
    used = "for downloads only; servers, exporters and Prometheus are reached directly"
    seen = f"{named}: {used}" if (named := ", ".join(map(Mask(), proxies_named()))) else "the environment names none"
    return judged("proxy", seen)


SERVERS = (range(8000, 8011),)
CONTAINERS = (*SERVERS, range(8101, 8105), range(8201, 8204))
"""What docker/compose.yaml publishes servers on: GPU, simulated, CPU."""
OTHERS = {9401: "exporter", 9402: "sweep's /metrics", 9090: "Prometheus", 3000: "Grafana"}


def ports(mode: Mode, is_free: Callable[[str, int], bool] = port_is_free, host: str = "127.0.0.1") -> Finding:
    """Which of the ports are taken on the loopback address."""
    spans = CONTAINERS if mode == "docker" else SERVERS
    roles = {port: "server" for span in spans for port in span} | OTHERS
    taken = [f"{port} ({role})" for port, role in roles.items() if not is_free(host, port)]
    if not taken:
        servers = ", ".join(f"{span[0]}-{span[-1]}" for span in spans)
        others = ", ".join(map(str, OTHERS))
        return judged("ports", f"{servers}, {others} are free")
    advice = "fine if that is this project's stack; else stop what is listening (`ss -ltnp`) or choose other ports"
    return judged("ports", f"taken: {', '.join(taken)}", advice)


PROMETHEUS = "http://127.0.0.1:9090"
GRAFANA = "http://127.0.0.1:3000"


def prometheus(url: str = PROMETHEUS, body: Callable[[str], bytes | None] = get) -> Finding:
    """GET /-/ready, at most 5 s."""
    base = url.rstrip("/")
    if body(f"{base}/-/ready") is not None:
        return judged("Prometheus", f"{base} is ready")
    advice = "a sweep runs without; for live figures start the stack's prometheus, or give yours with --prometheus URL"
    return judged("Prometheus", f"{base} does not answer", advice)


def grafana(url: str = GRAFANA, answer: Callable[[str], dict[str, Any]] = get_object) -> Finding:
    """GET /api/health, at most 5 s."""
    base = url.rstrip("/")
    health = answer(f"{base}/api/health")
    if health.get("database") == "ok":
        return judged(
            "Grafana", f"{base} is healthy" + (f", version {health['version']}" if "version" in health else "")
        )
    if health:
        return judged("Grafana", f"{base} says {health}", "see Grafana's log")
    advice = "a sweep runs without; for dashboards start the stack's grafana, or give yours with --grafana URL"
    return judged("Grafana", f"{base} does not answer", advice)


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
        Check("datasets", lambda: [dataset(mode, name, files) for name, files in FILES.items()]),
        Check("Prometheus", lambda: [prometheus(prometheus_url)]),
        Check("Grafana", lambda: [grafana(grafana_url)]),
        Check("proxy", lambda: [proxies()]),
        Check("clock", lambda: [clock_source()]),
    ]
    return Examination(mode=mode, findings=(*look_at_once(checks), timing))


def look_at_once(checks: Sequence[Check]) -> list[Finding]:
    """The findings of all checks, in their order; one that fails or does not end in time is a finding too."""
    looks = [(check, _Look(check.look), time.monotonic() + check.limit_s) for check in checks]
    return [finding for check, look, end_s in looks for finding in look.findings(check, end_s)]


class _Look(threading.Thread):
    """A check in its own thread, which does not keep the program from ending."""

    def __init__(self, look: Callable[[], Sequence[Finding]]) -> None:
        super().__init__(daemon=True)
        self._look = look
        self._found: Sequence[Finding] | None = None
        self._error = ""
        self.start()

    def run(self) -> None:
        try:
            self._found = self._look()
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"

    def findings(self, check: Check, end_s: float) -> Sequence[Finding]:
        self.join(max(0.0, end_s - time.monotonic()))
        if self._found is not None:
            return self._found
        seen = self._error or f"no answer within {check.limit_s:g} s"
        return [Finding(check.name, "missing" if check.needed else "warning", seen, "look at it by hand")]
