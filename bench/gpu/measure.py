"""Measure: the steps of a plan in order under a time budget, each continued where it was left.

A budget ends a sweep between two cells, never within one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from bench.gpu import pack, sensors
from bench.gpu.plan import ENDED, Plan, State, Step, StepState
from bench.gpu.simulator import servers
from loadgen.errors import Interrupted, ServerError, UsageError
from loadgen.measure.config import HEADROOM_SEQS, configure
from loadgen.measure.observer import Observer
from loadgen.measure.run import resume_sweep, run_sweep
from loadgen.record.cell import Cell, SweepConfig, plan_blocks
from loadgen.record.journal import unfinished_cells
from loadgen.record.manifest import read_manifest
from loadgen.serving.launch import find_vllm, plan_launch
from loadgen.serving.process import ServerProcess, free_port
from loadgen.serving.recipe import load_recipe

Clock = Callable[[], float]


class Deadline:
    """The end of this call's time."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self.clock, self._end = clock, clock() + seconds

    @property
    def left_s(self) -> float:
        return self._end - self.clock()


class Cutter(Observer):
    """Observes a sweep and ends it, as Ctrl-C would, where the next part would not fit.

    A server's start needs time for the longest start so far and a cell; a cell needs the longest so far, and at least
    the first guess, since cells grow with the batch. A sweep of which only first repeats are wanted ends after them.
    """

    def __init__(
        self,
        deadline: Deadline,
        *,
        start_s: float,
        cell_s: float,
        wanted: Sequence[Cell] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = print,
    ) -> None:
        """`wanted`: the first cells, which are to be measured; None: all of them. `meanwhile`: done while a server
        starts, in a thread."""
        self.start_s, self.cell_s = start_s, cell_s
        self.cut: str | None = None
        """Why there was not enough time for the sweep."""
        self.enough = False
        """It was ended since all wanted cells were measured, or failed."""
        self._wanted = None if wanted is None else {cell.label for cell in wanted}
        self._blocks = None if wanted is None else len({(cell.repeat, cell.target) for cell in wanted})
        self._deadline, self._say, self._since = deadline, say, deadline.clock()
        self._meanwhile, self._pool = meanwhile, ThreadPoolExecutor(max_workers=1)
        self._seen_start = False

    def server_starts(self, name: str, argv: Sequence[str] | None) -> None:
        if self._blocks is not None:
            self._blocks -= 1
            if self._blocks < 0:
                self._end()
        self._need(self.start_s + self.cell_s, f"the start of {name} and a cell")
        self._pool.submit(self._meanwhile).add_done_callback(self._tell_failure)
        self._since = self._deadline.clock()

    def server_ready(self, name: str, note: str) -> None:
        took = self._lap()
        self.start_s = max(took, self.start_s) if self._seen_start else took
        self._seen_start = True
        self._say(f"{name} is up after {took:.0f} s: {note}")

    def cell_ends(self, cell: Cell, line: str, verdict: Any) -> None:
        took = self._lap()
        self.cell_s = max(took, self.cell_s)
        self._say(f"{cell.label}: {took:.0f} s, {line}; {self._deadline.left_s:.0f} s left")
        if self._wanted is not None:
            self._wanted.discard(cell.label)
            if not self._wanted:
                self._end()
        self._need(self.cell_s, "another cell")

    def note(self, sentence: str) -> None:
        self._since = self._deadline.clock()
        self._say(sentence)

    def not_measured(self, cells: Sequence[Cell], why: str) -> None:
        self.warn(why)

    def warn(self, sentence: str) -> None:
        self._say(f"! {sentence}")

    def _tell_failure(self, done: Future[None]) -> None:
        if (error := done.exception()) is not None:
            self.warn(f"what was measured could not be packed yet: {error}")

    def _end(self) -> None:
        self.enough = True
        raise KeyboardInterrupt

    def _lap(self) -> float:
        now = self._deadline.clock()
        took, self._since = now - self._since, now
        return took

    def _need(self, seconds: float, what: str) -> None:
        left_s = self._deadline.left_s
        if left_s < seconds:
            self.cut = f"{max(left_s, 0):.0f} s were left, {what} takes about {seconds:.0f} s"
            raise KeyboardInterrupt


PROJECT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 900.0
"""Without growth of the log, as the default of `loadgen sweep`."""
MODEL_S = 15.0
"""A first guess of how long a model's checkpoints take to write."""
Say = Callable[[str], None]


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """Where things are on this machine."""

    work: Path
    """State, runs and everything else that is kept."""
    models: Path
    """Checkpoints: gigabytes, best on a RAM disk; never packed."""
    vllm: str | None = None
    """The `vllm` command; None: what loadgen finds."""
    torch_python: Path | None = None
    """A Python with torch for checkpoints and the sensors' load; None: the one beside the `vllm` command."""
    results: Path | None = None
    """Where all that was measured is packed while a server starts, so that it is there when the command is stopped."""
    preset: str | None = None
    """A GPU of the simulator: nothing is measured, and everything says SIMULATED."""

    def run(self, step: Step) -> Path:
        """The run directory of a sweep's step."""
        return self.work / "runs" / step.name

    def pack(self, plan: Plan) -> None:
        """Packs what there is into `results`, where that is named."""
        if self.results is not None:
            vllm = Path(self.vllm) if self.vllm else None
            folders = pack.machine_folders(work=self.work, models=self.models, vllm=vllm)
            pack.pack(self.work, plan, self.results, folders=folders, keep=True)


def measure(
    plan: Plan,
    site: Site,
    *,
    budget_s: float | None = None,
    until: str | None = None,
    again: bool = False,
    say: Say = print,
) -> State:
    """Continues the plan until it is finished or the time is up; the state, which is also in work/state.json.

    A step that has ended is not repeated, a failed one only with `again`. `until`: the last step to do. Raises
    UsageError for wrong use and KeyboardInterrupt on Ctrl-C; the state is kept.
    """
    names = [step.name for step in plan.step]
    if until is not None and until not in names:
        raise UsageError(f"--until {until}: the plan has no such step; it has {', '.join(names)}")
    deadline = Deadline(plan.budget_s if budget_s is None else budget_s)
    state = State(site.work / "state.json", plan)
    with _environment(plan.env):
        for step in plan.step[: None if until is None else names.index(until) + 1]:
            before = state.steps[step.name]
            if before.status in ENDED and not (again and before.status == "failed"):
                continue
            begun = deadline.clock()
            state.set(step.name, msgspec.structs.replace(before, status="running", reason=None))
            say(f"-- {step.name}: {step.why} ({deadline.left_s:.0f} s left)")
            try:
                after = _do(step, plan, site, deadline, say)
            except BaseException:
                state.set(step.name, msgspec.structs.replace(before, status="cut", reason="interrupted"))
                raise
            seconds = before.seconds + deadline.clock() - begun
            state.set(step.name, msgspec.structs.replace(after, seconds=round(seconds, 1)))
            say(f"-- {step.name}: {after.status}" + (f", {after.reason}" if after.reason else ""))
            if after.status == "cut":
                break
    return state


def _do(step: Step, plan: Plan, site: Site, deadline: Deadline, say: Say) -> StepState:
    if step.kind == "rest" and not (site.run(plan.sweep_of(step)) / "manifest.json").exists():
        return StepState(status="skipped", reason=f"{step.of} was not begun")
    if site.preset is not None:
        return _simulate(step, plan, site, site.preset, deadline, say)
    if step.kind == "sensors":
        return _sensors(step, plan, site, deadline)
    sweep = plan.sweep_of(step)
    needed = MODEL_S * (not _is_written(sweep, site)) + plan.start_s + plan.cell_s
    if deadline.left_s < needed:
        return StepState(status="cut", reason=f"{deadline.left_s:.0f} s were left, its beginning takes {needed:.0f} s")
    try:
        _write_models(sweep, site, plan, say)
    except ServerError as error:
        return StepState(status="failed", reason=str(error))
    return _selftest(step, plan, site) if step.kind == "selftest" else _sweep(step, plan, site, deadline, say)


def _sensors(step: Step, plan: Plan, site: Site, deadline: Deadline) -> StepState:
    needed = len(sensors.STATES) * (step.seconds + sensors.SETTLE_S) + 15
    if deadline.left_s < needed:
        return StepState(status="cut", reason=f"{deadline.left_s:.0f} s were left, it takes {needed:.0f} s")
    try:
        sensors.measure(site.work / "sensors", seconds=step.seconds, torch_python=_torch_python(site, plan))
    except UsageError as error:
        return StepState(status="skipped", reason=str(error))
    return StepState(status="done")


def _sweep(step: Step, plan: Plan, site: Site, deadline: Deadline, say: Say) -> StepState:
    sweep = plan.sweep_of(step)
    model = str(site.models / str(sweep.model))
    where = {"serve": sweep.serve, "model": model, "device": plan.device, "vllm": site.vllm}
    return _run(step, plan, site, where, deadline, plan.start_s, say)


def _simulate(step: Step, plan: Plan, site: Site, preset: str, deadline: Deadline, say: Say) -> StepState:
    sweep = plan.sweep_of(step)
    if sweep.kind != "sweep":
        return StepState(status="skipped", reason="SIMULATED: there is nothing of this kind to see")
    logs = site.work / "servers" / sweep.name
    with servers(sweep, plan.options_of(sweep), preset, site.run(sweep), logs) as addresses:
        return _run(step, plan, site, {"targets": addresses, "power": "auto"}, deadline, 0, say)


def _run(
    step: Step, plan: Plan, site: Site, where: Mapping[str, Any], deadline: Deadline, start_s: float, say: Say
) -> StepState:
    """The sweep of a step up to the step's repeat: a new one, or what the one in its run directory lacks."""
    sweep = plan.sweep_of(step)
    run_dir, repeats = site.run(sweep), plan.repeats_of(step)
    options = {**plan.options_of(sweep), **where, "metrics_port": None}
    if site.preset is not None:
        options.pop("vllm_args", None)
    begun = (run_dir / "manifest.json").exists()
    config = None if begun else configure(**options, out=run_dir)
    left = unfinished_cells(run_dir) if config is None else _cells(config)
    wanted = _up_to(repeats, left)
    first = wanted if len(wanted) < len(left) else None
    meanwhile = partial(site.pack, plan)
    cutter = Cutter(deadline, start_s=start_s, cell_s=plan.cell_s, wanted=first, meanwhile=meanwhile, say=say)
    try:
        if config is not None:
            run_sweep(config, cutter)
        elif wanted:
            resume_sweep(run_dir, options, cutter, trusted=True)
    except Interrupted:
        if cutter.cut is None and not cutter.enough:
            raise KeyboardInterrupt from None
    except UsageError as error:
        if not begun:
            raise
        # It was begun on another machine, or with other software: what it has stays, and the plan goes on.
        return StepState(status="failed", reason=str(error))
    missing = _up_to(repeats, unfinished_cells(run_dir))
    if not missing:
        return StepState(status="done")
    if cutter.cut is not None:
        return StepState(status="cut", reason=cutter.cut)
    failures = read_manifest(run_dir).failures
    why = failures[-1].error.splitlines()[0] if failures else "see its log"
    return StepState(status="failed", reason=f"{len(missing)} cells were not measured: {why}")


def _cells(config: SweepConfig) -> list[Cell]:
    return [c for block in plan_blocks(config.targets, config.concurrency, config.repeats) for c in block.cells]


def _up_to(repeats: int, cells: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.repeat <= repeats]


def _selftest(step: Step, plan: Plan, site: Site) -> StepState:
    """The output of `loadgen selftest` while a server of the step runs."""
    folder = site.work / "selftest"
    folder.mkdir(parents=True, exist_ok=True)
    seqs = int(step.options["concurrency"]) + HEADROOM_SEQS
    where = {"model": str(site.models / str(step.model)), "port": free_port(), "vllm": site.vllm}
    launch = plan_launch(load_recipe(step.serve[0]), device=plan.device, max_num_seqs=seqs, **where)
    options = [word for name, value in step.options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "loadgen", "selftest", *options]
    try:
        with ServerProcess(launch, folder / "server.log") as server:
            server.wait_ready(START_TIMEOUT_S)
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    except ServerError as error:
        return StepState(status="failed", reason=str(error).splitlines()[0])
    if done.returncode not in (0, 1):
        return StepState(status="failed", reason=done.stderr.strip()[-300:] or f"status {done.returncode}")
    (folder / "selftest.txt").write_text(done.stdout, encoding="utf-8")
    return StepState(status="done", reason="the client is not enough for it" if done.returncode else None)


def _write_models(step: Step, site: Site, plan: Plan, say: Say) -> None:
    """Raises ServerError with the last words of the process that writes the checkpoints."""
    python = _torch_python(site, plan)
    command = [str(python), "-m", "bench.gpu.checkpoints", "--out", str(site.models), "--model", str(step.model)]
    command += ["--formats", ",".join(step.formats)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServerError(f"the checkpoints of {step.model} could not be written: {done.stderr.strip()[-1000:]}")
    say(done.stdout.strip())


def _is_written(step: Step, site: Site) -> bool:
    names = [str(step.model), *(f"{step.model}-{kind}" for kind in step.formats)]
    return all((site.models / name / "config.json").exists() for name in names)


def _torch_python(site: Site, plan: Plan) -> Path:
    return site.torch_python or Path(find_vllm(plan.device, site.vllm)).with_name("python")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for this process, and so for every server that it starts."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
