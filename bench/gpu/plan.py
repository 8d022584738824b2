"""Plan: the steps to measure, the most valuable first, read from plans/NAME.toml; State: which of them are done."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from bench.gpu.shapes import FORMATS, Format
from loadgen.errors import UsageError
from loadgen.folder import Folder

PLANS = Path(__file__).with_name("plans")


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of a plan, whose results are useful alone."""

    name: str
    why: str
    kind: Literal["sensors", "sweep", "rest", "selftest"]
    """`rest`: the later repeats of the sweep `of`, which then ends after its first."""
    of: str | None = None
    model: str | None = None
    """A table of shapes.toml."""
    serve: tuple[str, ...] = ()
    """Recipes, the reference first."""
    options: dict[str, Any] = {}
    """Options of `loadgen sweep`, over the plan's; of `loadgen selftest`, and nothing else then."""
    seconds: float = 15.0
    """`sensors`: how long each state is watched."""

    @property
    def formats(self) -> tuple[Format, ...]:
        """The checkpoints that have to be written beside the 16-bit one."""
        return tuple(kind for kind in FORMATS if kind in self.serve)


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A measurement programme under a time budget."""

    name: str
    device: Literal["cuda", "cpu"]
    budget_s: float
    """The budget of one call of `measure`, unless it says otherwise."""
    start_s: float
    """A first guess of how long a server takes to start; what is seen replaces it."""
    cell_s: float
    """The same for a cell with its warm-up and drain."""
    options: dict[str, Any] = {}
    """Options of `loadgen sweep`, for every sweep."""
    env: dict[str, str] = {}
    """Set for the servers."""
    shortened: tuple[str, ...] = ()
    """What is done otherwise than with time in plenty; sentences for the study."""
    step: tuple[Step, ...]
    sha256: str = ""

    def options_of(self, step: Step) -> dict[str, Any]:
        return {**self.options, **step.options}

    def sweep_of(self, step: Step) -> Step:
        """The step whose run it measures: its own but for a `rest`."""
        return next(one for one in self.step if one.name == step.of) if step.kind == "rest" else step

    def repeats_of(self, step: Step) -> int:
        """Up to which repeat a sweep or rest goes."""
        has_rest = any(one.of == step.name for one in self.step)
        return 1 if has_rest else int(self.options_of(self.sweep_of(step))["repeats"])


def load_plan(name: str | Path) -> Plan:
    """The plan in plans/NAME.toml, or in a file. Raises UsageError for what breaks the schema."""
    path = Path(name)
    if path.suffix != ".toml":
        path = PLANS / f"{name}.toml"
    try:
        text = path.read_bytes()
        plan = msgspec.convert(tomllib.loads(text.decode("utf-8")), Plan)
    except OSError:
        known = ", ".join(sorted(found.stem for found in PLANS.glob("*.toml")))
        raise UsageError(f"--plan {name}: there is no such plan; name a file, or one of {known}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not a valid plan: {error}") from None
    names = [step.name for step in plan.step]
    faults = ["two steps have one name"] if len(set(names)) < len(names) else []
    for number, step in enumerate(plan.step):
        sweeps = [one.name for one in plan.step[:number] if one.kind == "sweep"]
        if step.kind == "rest" and step.of not in sweeps:
            faults.append(f"step {step.name} is the rest of {step.of}, which is not a sweep before it")
        elif step.kind in ("sweep", "selftest") and not (step.model and step.serve):
            faults.append(f"step {step.name} needs a model and what to serve")
    if faults:
        raise UsageError(f"{path} is not a valid plan: {faults[0]}")
    return msgspec.structs.replace(plan, sha256=hashlib.sha256(text).hexdigest())


Status = Literal["open", "running", "cut", "done", "failed", "skipped"]
ENDED: tuple[Status, ...] = ("done", "failed", "skipped")


class StepState(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of one step."""

    status: Status = "open"
    """`running` without a process: killed. `cut`: the time was up between two cells."""
    reason: str | None = None
    """Why it was cut, failed or skipped."""
    seconds: float = 0.0
    """Over all calls."""


class State:
    """The state file of one folder of work, rewritten whole, so that a kill at any instant loses no step."""

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
        text = msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"
        Folder(self._path.parent).write(self._path.name, text)

    def is_finished(self, *, until: str | None = None) -> bool:
        """Whether every step has ended, up to `until` where it is named."""
        names = list(self.steps)
        return all(self.steps[name].status in ENDED for name in names[: names.index(until) + 1 if until else None])
