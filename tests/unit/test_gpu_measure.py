"""The GPU kit's measurement: a time budget that cuts between cells, and steps that are resumed."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_run import manifest
from nvml_stub.build import Curve, build_stub

from bench.gpu import measure as measuring
from bench.gpu.measure import Cutter, Deadline, Site, measure
from bench.gpu.plan import Plan, State, Step
from bench.gpu.sensors import read_sensors
from loadgen.errors import Interrupted, ServerError, UsageError
from loadgen.measure.observer import Observer
from loadgen.measure.settings import resumed_config
from loadgen.record.cell import Cell, CellVerdict, SweepConfig, TargetSpec, plan_blocks
from loadgen.record.manifest import read_manifest
from loadgen.serving.launch import Launch

PROJECT = Path(__file__).parents[2]


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# the budget


def sweep_of(cutter: Cutter, clock: FakeClock, *, start_s: float, cells_s: list[float], servers: int) -> int:
    """Cells that a sweep measures, each server's cells taking so long, until the cutter ends it."""
    measured = 0
    try:
        for server in range(servers):
            cutter.server_starts(f"server {server}", None)
            clock.now += start_s
            cutter.server_ready(f"server {server}", "vLLM")
            for index, cell_s in enumerate(cells_s):
                clock.now += cell_s
                measured += 1
                cell = Cell(index=index, target="fp16", precision="fp16", concurrency=1, repeat=1)
                cutter.cell_ends(cell, "line", CellVerdict(valid=True))
    except KeyboardInterrupt:
        assert cutter.cut is not None
    return measured


def quiet(_: str) -> None:
    pass


def test_a_budget_ends_a_sweep_between_cells_by_what_was_seen() -> None:
    clock = FakeClock()
    cutter = Cutter(Deadline(100, clock), start_s=60, cell_s=12, say=quiet)
    # 20 + 10 + 15 + 15 + 15 = 75 s; another cell of 15 fits, then 10 are left and none does.
    assert sweep_of(cutter, clock, start_s=20, cells_s=[10, 15, 15, 15, 15, 15], servers=1) == 5
    assert cutter.cut == "10 s were left, another cell takes about 15 s"


def test_a_budget_starts_no_server_that_could_not_measure_a_cell() -> None:
    clock = FakeClock()
    cutter = Cutter(Deadline(69, clock), start_s=20, cell_s=5, say=quiet)
    # The first server takes 20 + 10 + 10; 29 s are left, and a start and a cell take 30.
    assert sweep_of(cutter, clock, start_s=20, cells_s=[10, 10], servers=2) == 2
    assert cutter.cut == "29 s were left, the start of server 1 and a cell takes about 30 s"


def test_a_first_start_is_not_tried_in_a_time_that_the_plan_says_is_too_short() -> None:
    clock = FakeClock()
    cutter = Cutter(Deadline(60, clock), start_s=60, cell_s=5, say=quiet)
    assert sweep_of(cutter, clock, start_s=1, cells_s=[1], servers=1) == 0


def test_a_sweep_of_which_the_first_repeat_is_wanted_ends_behind_it_also_when_a_server_fails() -> None:
    clock = FakeClock()
    wanted = [cell for block in plan_blocks(TWO, [1, 2], 1) for cell in block.cells]
    cutter = Cutter(Deadline(1000, clock), start_s=1, cell_s=1, wanted=wanted, say=quiet)
    for cell in wanted[:-1]:
        cutter.cell_ends(cell, "line", CellVerdict(valid=True))
    with pytest.raises(KeyboardInterrupt):
        cutter.cell_ends(wanted[-1], "line", CellVerdict(valid=True))
    assert cutter.enough
    assert cutter.cut is None

    failing = Cutter(Deadline(1000, clock), start_s=1, cell_s=1, wanted=wanted, say=quiet)
    for spec in TWO:
        failing.server_starts(spec.name, None)
    with pytest.raises(KeyboardInterrupt):
        failing.server_starts("a", None)  # of the second repeat
    assert failing.enough


TWO = [TargetSpec(name=name, precision="bf16") for name in ("a", "b")]


# steps, with a sweep that only pretends


def plan_of(*steps: Step, budget_s: float = 100.0) -> Plan:
    return Plan(name="test", device="cpu", budget_s=budget_s, start_s=10, cell_s=5, step=steps, sha256="1" * 64,
                options={"concurrency": [1, 2], "repeats": 1, "power": "none", "dataset": "sample"})  # fmt: skip


def step(name: str) -> Step:
    return Step(name=name, why="to see", kind="sweep", model="rehearsal", serve=("bf16", "int8"))


class FakeSweep:
    """Leaves a manifest and a journal per cell behind; `cells_before_death` kills it, `fails` makes a server fail."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.begun: list[Path] = []
        self.resumed: list[Path] = []
        self.fails = ""
        self.cells_before_death: int | None = None

    def run(self, config: SweepConfig, observer: Observer) -> Path:
        run_dir = Path(str(config.out))
        self.begun.append(run_dir)
        (run_dir / "journal").mkdir(parents=True)
        (run_dir / "manifest.json").write_text(json.dumps(manifest(msgspec.to_builtins(config))))
        return self._measure(run_dir, config, observer)

    def resume(self, run_dir: Path, given: dict[str, Any], observer: Observer, *, trusted: bool = False) -> Path:
        self.resumed.append(run_dir)
        return self._measure(run_dir, resumed_config(run_dir, read_manifest(run_dir), given), observer)

    def unfinished(self, run_dir: Path) -> list[Cell]:
        config = read_manifest(run_dir).config
        cells = [c for block in plan_blocks(config.targets, config.concurrency, config.repeats) for c in block.cells]
        return [cell for cell in cells if not (run_dir / "journal" / cell.label).exists()]

    def _measure(self, run_dir: Path, config: SweepConfig, observer: Observer) -> Path:
        try:
            for repeat, target in itertools.product(range(1, config.repeats + 1), config.targets):
                left = self.unfinished(run_dir)
                todo = [cell for cell in left if (cell.target, cell.repeat) == (target.name, repeat)]
                if target.name == self.fails:
                    failure = {"target": target.name, "repeat": repeat, "error": "out of memory\nand more"}
                    content = json.loads((run_dir / "manifest.json").read_text()) | {"failures": [failure]}
                    (run_dir / "manifest.json").write_text(json.dumps(content))
                elif todo:
                    self._serve(run_dir, todo, observer)
        except KeyboardInterrupt:
            raise Interrupted(run_dir, hurried=False) from None
        return run_dir

    def _serve(self, run_dir: Path, cells: list[Cell], observer: Observer) -> None:
        observer.server_starts(cells[0].target, None)
        self.clock.now += 10
        observer.server_ready(cells[0].target, "vLLM")
        for cell in cells:
            if self.cells_before_death == 0:
                raise SystemExit("killed")
            if self.cells_before_death is not None:
                self.cells_before_death -= 1
            self.clock.now += 5
            (run_dir / "journal" / cell.label).touch()
            observer.cell_ends(cell, "line", CellVerdict(valid=True))


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    clock = FakeClock()
    fake = FakeSweep(clock)
    monkeypatch.setattr(measuring, "run_sweep", fake.run)
    monkeypatch.setattr(measuring, "resume_sweep", fake.resume)
    monkeypatch.setattr(measuring, "unfinished_cells", fake.unfinished)
    monkeypatch.setattr(measuring, "Deadline", lambda seconds: Deadline(seconds, clock))
    monkeypatch.setattr(measuring, "_write_models", lambda *_: None)
    monkeypatch.setattr(measuring, "_is_written", lambda *_: True)
    monkeypatch.setattr(measuring, "_torch_python", lambda *_: Path(sys.executable))
    return fake


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "models" / "rehearsal").mkdir(parents=True)
    return Site(work=tmp_path / "work", models=tmp_path / "models")


def statuses(state: State) -> dict[str, str]:
    return {name: entry.status for name, entry in state.steps.items()}


def test_steps_are_done_in_order_and_once(sweep: FakeSweep, site: Site) -> None:
    plan = plan_of(step("one"), step("two"))
    assert statuses(measure(plan, site, say=quiet)) == {"one": "done", "two": "done"}
    # 2 servers x (10 s + 2 cells x 5 s) each.
    assert {name: entry.seconds for name, entry in State(site.work / "state.json", plan).steps.items()} == {
        "one": 40.0, "two": 40.0,
    }  # fmt: skip
    assert measure(plan, site, say=quiet).is_finished()
    assert (len(sweep.begun), sweep.resumed) == (2, [])


def test_time_up_cuts_a_step_and_the_next_call_does_the_rest_only(sweep: FakeSweep, site: Site) -> None:
    plan = plan_of(step("one"), step("two"))
    state = measure(plan, site, budget_s=65, say=quiet)
    # 25 s are left after `one`: a server and two cells are 20, the second server does not fit into the 5 left.
    assert statuses(state) == {"one": "done", "two": "cut"}
    assert len(list((site.run(plan.step[1]) / "journal").iterdir())) == 2
    assert "5 s were left" in str(state.steps["two"].reason)
    assert statuses(measure(plan, site, budget_s=100, say=quiet)) == {"one": "done", "two": "done"}
    assert State(site.work / "state.json", plan).steps["two"].seconds == 40.0, "20 s then, 20 s now"


def test_the_rest_of_a_sweep_is_its_later_repeats_in_the_same_run(sweep: FakeSweep, site: Site) -> None:
    first = msgspec.structs.replace(step("one"), options={"repeats": 2})
    rest = Step(name="rest", why="again", kind="rest", of="one")
    plan = plan_of(first, step("two"), rest)
    state = measure(plan, site, budget_s=85, say=quiet)
    # The first repeat takes 40 s, `two` as many; none of the 5 s left are enough for the second.
    assert statuses(state) == {"one": "done", "two": "done", "rest": "cut"}, state.steps
    names = sorted(path.name for path in (site.run(first) / "journal").iterdir())
    assert names == ["001-bf16-b1-r1", "002-bf16-b2-r1", "003-int8-b1-r1", "004-int8-b2-r1"]
    assert statuses(measure(plan, site, say=quiet)) == {"one": "done", "two": "done", "rest": "done"}
    assert len(list((site.run(first) / "journal").iterdir())) == 8
    assert sweep.begun == [site.run(first), site.run(plan.step[1])]


def _no_memory(*_: object) -> None:
    raise ServerError("no memory is left")


def test_the_rest_of_a_sweep_that_was_never_begun_is_left_out(
    sweep: FakeSweep, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(step("one"), Step(name="rest", why="again", kind="rest", of="one"))
    monkeypatch.setattr(measuring, "_write_models", _no_memory)
    assert statuses(measure(plan, site, say=quiet)) == {"one": "failed", "rest": "skipped"}


def test_a_run_that_was_begun_on_another_machine_stays_as_it_is_and_the_plan_goes_on(
    sweep: FakeSweep, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(step("one"), step("two"))
    measure(plan, site, budget_s=25, say=quiet)

    def refuse(*_: object, **__: object) -> None:
        raise UsageError("GPU-2 is not GPU-1, with which the run was begun")

    monkeypatch.setattr(measuring, "resume_sweep", refuse)
    state = measure(plan, site, say=quiet)
    assert statuses(state) == {"one": "failed", "two": "done"}
    assert state.steps["one"].reason == "GPU-2 is not GPU-1, with which the run was begun"
    assert len(list((site.run(plan.step[0]) / "journal").iterdir())) == 2


def test_a_killed_step_is_gone_on_with(sweep: FakeSweep, site: Site) -> None:
    plan = plan_of(step("one"))
    sweep.cells_before_death = 3
    with pytest.raises(SystemExit):
        measure(plan, site, say=quiet)
    assert statuses(State(site.work / "state.json", plan)) == {"one": "cut"}
    sweep.cells_before_death = None
    assert statuses(measure(plan, site, say=quiet)) == {"one": "done"}
    assert (sweep.begun, sweep.resumed) == ([site.run(plan.step[0])], [site.run(plan.step[0])])


def test_a_server_that_fails_is_told_and_the_next_step_is_done_all_the_same(sweep: FakeSweep, site: Site) -> None:
    sweep.fails = "int8"
    state = measure(plan_of(step("one"), step("two")), site, say=quiet)
    assert statuses(state) == {"one": "failed", "two": "failed"}
    assert state.steps["one"].reason == "2 cells were not measured: out of memory"
    sweep.fails = ""
    assert statuses(measure(plan_of(step("one"), step("two")), site, say=quiet)) == {"one": "failed", "two": "failed"}
    state = measure(plan_of(step("one"), step("two")), site, again=True, say=quiet)
    assert statuses(state) == {"one": "done", "two": "done"}


@pytest.mark.parametrize(("status", "reason"), [(0, None), (1, "the client is not enough for it")])
def test_the_clients_selftest_runs_while_a_server_is_up(
    sweep: FakeSweep, site: Site, monkeypatch: pytest.MonkeyPatch, status: int, reason: str | None
) -> None:
    up: list[str] = []

    class Server:
        def __init__(self, launch: Launch, log: Path) -> None:
            self.name = launch.name

        def __enter__(self) -> Server:
            return self

        def wait_ready(self, deadline_s: float) -> None:
            assert deadline_s > 60, "a server of the kit takes about a minute to start"
            up.append(self.name)

        def __exit__(self, *_: object) -> None:
            up.clear()

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert up == ["bf16"]
        assert command[-4:] == ["--concurrency", "8", "--tokens-per-s", "500"]
        return subprocess.CompletedProcess(command, status, "what it says", "")

    monkeypatch.setattr(measuring, "ServerProcess", Server)
    monkeypatch.setattr(measuring.subprocess, "run", run)
    options = {"concurrency": 8, "tokens_per_s": 500}
    test = Step(name="f", why="to see", kind="selftest", model="rehearsal", serve=("bf16",), options=options)
    state = measure(plan_of(test), msgspec.structs.replace(site, vllm=sys.executable), say=quiet)
    assert (state.steps["f"].status, state.steps["f"].reason) == ("done", reason)
    assert (site.work / "selftest" / "selftest.txt").read_text() == "what it says"
    assert not up


def test_the_work_of_another_plan_is_not_gone_on_with(sweep: FakeSweep, site: Site) -> None:
    measure(plan_of(step("one")), site, say=quiet)
    other = Plan(name="other", device="cpu", budget_s=1, start_s=1, cell_s=1, step=(), sha256="2" * 64)
    with pytest.raises(UsageError, match="holds the work of another plan"):
        measure(other, site, say=quiet)


def test_without_a_gpu_the_sensors_step_says_so_and_is_left_out(sweep: FakeSweep, site: Site) -> None:
    plan = plan_of(Step(name="a", why="to see", kind="sensors", seconds=0.1), step("one"))
    state = measure(plan, site, say=quiet)
    assert statuses(state) == {"a": "skipped", "one": "done"}
    assert "libnvidia-ml" in str(state.steps["a"].reason)


# sensors, against a stub of NVIDIA's library whose power is known

SENSE = """
import sys
from pathlib import Path
from bench.gpu import sensors
sensors.measure(Path(sys.argv[1]), seconds=3.0, torch_python=None)
"""


def test_sensors_are_characterised_from_samples_that_are_kept(tmp_path: Path) -> None:
    library = build_stub(tmp_path)
    command = [sys.executable, "-c", SENSE, str(tmp_path / "sensors")]
    environment = Curve(base_w=300).environment(library)
    done = subprocess.run(
        command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found, findings = read_sensors(tmp_path / "sensors")
    assert found.gpu.supported["counter_j"]
    idle = findings["idle"]
    assert idle.power_w_mean == pytest.approx(300, rel=0.01)
    assert idle.ratio == pytest.approx(1, abs=0.01)
    assert idle.calibration.counter_period_s == pytest.approx(0.1, rel=0.2)
    assert 0 < idle.read_ms_p50 <= idle.read_ms_p99
