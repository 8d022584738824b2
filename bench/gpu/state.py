"""State: what of a plan is done, in one file that is rewritten whole, so that a kill at any instant loses no step."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from bench.gpu.plan import Plan
from loadgen.errors import UsageError

Status = Literal["open", "running", "cut", "done", "failed", "skipped"]
ENDED: tuple[Status, ...] = ("done", "failed", "skipped")


class StepState(msgspec.Struct, frozen=True, kw_only=True):
    """How far one step is."""

    status: Status = "open"
    """`running` in a file that nobody writes: killed. `cut`: the time was up between two cells."""
    reason: str | None = None
    """Why it was cut, failed or skipped."""
    seconds: float = 0.0
    """Over all calls."""


class State:
    """The state file of one folder of work."""

    def __init__(self, path: Path, plan: Plan) -> None:
        """Reads what was done. Raises UsageError when the folder holds the work of another plan."""
        self._path = path
        self._plan = plan
        self.steps: dict[str, StepState] = {step.name: StepState() for step in plan.step}
        if path.exists():
            content = msgspec.json.decode(path.read_bytes())
            if content["plan_sha256"] != plan.sha256:
                raise UsageError(
                    f"{path.parent} holds the work of another plan ({content['plan']}); name another folder"
                )
            self.steps |= msgspec.convert(content["steps"], dict[str, StepState])

    def set(self, name: str, state: StepState) -> None:
        self.steps[name] = state
        content = {"plan": self._plan.name, "plan_sha256": self._plan.sha256, "steps": self.steps}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
        partial.replace(self._path)

    def is_finished(self, *, until: str | None = None) -> bool:
        """Whether every step has ended, up to `until` where it is named."""
        names = list(self.steps)
        return all(self.steps[name].status in ENDED for name in names[: names.index(until) + 1 if until else None])
