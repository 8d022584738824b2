"""Examination: everything the doctor looks at, each check within its own time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from loadgen.doctor.checkpoints import examine_checkpoints
from loadgen.doctor.cpu import cpu_flags, cpu_library
from loadgen.doctor.datasets import examine_datasets
from loadgen.doctor.disk import disk
from loadgen.doctor.docker import examine_docker
from loadgen.doctor.engine import VERSION_TIMEOUT_S, examine_vllm
from loadgen.doctor.finding import Finding, Mode, State
from loadgen.doctor.gpu import examine_gpus
from loadgen.doctor.monitoring import GRAFANA, PROMETHEUS, grafana, prometheus
from loadgen.doctor.ports import ports
from loadgen.doctor.proxy import proxies
from loadgen.doctor.timing import client_timing, clock_source
from loadgen.serving.recipe import load_recipes

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
