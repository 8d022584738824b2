"""What an interrupted run has and lacks, and where the first attempt at a cell is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest
from made_run import answer, cell, ended, make_run, valid_cell, write_cell

from loadgen.analysis.analyse import analyse
from loadgen.analysis.run import load_run
from loadgen.errors import UsageError
from loadgen.measure import machine
from loadgen.measure.config import configure
from loadgen.measure.machine import await_old_servers, begin_session
from loadgen.power.sample import PowerSample
from loadgen.record.cell import TargetSpec, plan_blocks
from loadgen.record.journal import (
    CellEnd,
    CellStart,
    Journal,
    cell_end,
    cell_file,
    cell_files,
    held,
    power_file,
    resume_command,
    sealed,
    set_aside,
    unfinished,
    unfinished_cells,
    why_unfinished,
)
from loadgen.record.manifest import Attempt, Manifest, ManifestFile, ServerRecord, read_manifest
from loadgen.serving.process import free_port

KILLED = "killed before its last record"
OF = cell(2)
ASKED = [answer(900, [(1000 + k, 1) for k in range(50)], item_id=f"q{n}", text="x" * 3000) for n in range(40)]


def test_a_cell_is_finished_when_its_last_record_says_so(tmp_path: Path) -> None:
    assert why_unfinished(tmp_path, OF) == "not begun"
    path = write_cell(tmp_path, OF, ASKED, [], ended())
    assert path.stat().st_size > 1 << 16, "its end is found without reading all of it"
    assert cell_end(path) == ended()
    assert why_unfinished(tmp_path, OF) is None


def test_a_finished_cell_may_be_invalid(tmp_path: Path) -> None:
    failed = answer(900, end=1100, status="timeout", error="late")
    write_cell(tmp_path, OF, [failed], [], ended())
    assert why_unfinished(tmp_path, OF) is None


def test_an_aborted_cell_is_unfinished_and_says_why(tmp_path: Path) -> None:
    write_cell(tmp_path, OF, ASKED, [], ended(aborted="the server died with exit status 1"))
    assert why_unfinished(tmp_path, OF) == "the server died with exit status 1"


@pytest.mark.parametrize("cut", [0, 1, 60, 5_000, 100_000, -1], ids=str)
def test_a_killed_cell_is_unfinished_wherever_its_file_ends(tmp_path: Path, cut: int) -> None:
    path = write_cell(tmp_path, OF, ASKED, [], ended())
    path.write_bytes(path.read_bytes()[:cut])
    assert why_unfinished(tmp_path, OF) == KILLED


def test_a_cell_of_which_the_first_record_is_damaged_is_no_cell(tmp_path: Path) -> None:
    path = write_cell(tmp_path, OF, ASKED, [], ended())
    path.write_bytes(path.read_bytes().replace(b'"target":"fp16"', b'"target":"fp61"', 1))
    assert why_unfinished(tmp_path, OF) == KILLED


def test_only_blocks_with_something_to_do_are_left(tmp_path: Path) -> None:
    specs = [TargetSpec(name=name, precision=name) for name in ("fp16", "awq")]
    blocks = plan_blocks(specs, [1, 2], 2)
    for block in blocks[:2]:
        for of in block.cells:
            write_cell(tmp_path, of, [], [], ended())
    write_cell(tmp_path, blocks[2].cells[0], [], [], ended(aborted="interrupted"))
    write_cell(tmp_path, blocks[2].cells[1], [], [], ended())
    left = unfinished(tmp_path, blocks)
    assert [(block.target.name, block.repeat, len(block.cells)) for block in left] == [("awq", 2, 1), ("fp16", 2, 2)]
    assert left[0].cells == blocks[2].cells[:1]


def manifest_of(run_dir: Path) -> ManifestFile:
    content = json.loads((run_dir / "manifest.json").read_bytes())
    for spec in content["config"]["targets"]:
        spec["precision"] = spec["name"]
    manifest = ManifestFile(run_dir, msgspec.convert(content, Manifest))
    begin_session(manifest)
    return manifest


def test_attempts_are_kept_told_and_in_no_figure(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=["fp16"], concurrency=[2], repeats=1)
    manifest = manifest_of(run_dir)
    assert unfinished_cells(run_dir) == []
    path = cell_file(run_dir, OF)
    whole = path.read_bytes()
    attempts = []
    for attempt, last in enumerate((b"", sealed(b'{"type":"end","t_ns":1,"aborted":"interrupted"}')), start=1):
        torn = b"".join([*whole.splitlines(keepends=True)[:3], last, b'{"type":"exch'])
        path.write_bytes(torn if not last else torn.removesuffix(b'{"type":"exch'))
        begin_session(manifest)
        assert unfinished_cells(run_dir) == [OF]
        kept = path.read_bytes()
        set_aside(run_dir, OF, manifest)
        assert not path.exists()
        name = f"journal/attempts/{OF.label}-a{attempt}.jsonl"
        assert (run_dir / name).read_bytes() == kept
        why = "interrupted" if last else KILLED
        attempts.append(Attempt(cell=OF.label, file=name, why=why, resumed_in_session=attempt + 1))
        assert read_manifest(run_dir).attempts == tuple(attempts)
    path.write_bytes(whole)
    assert cell_files(run_dir) == [path]
    analyse(run_dir)
    assert len(load_run(run_dir).requests) == 2, "those of the kept file"


def test_a_kill_between_manifest_and_move_does_not_tell_an_attempt_twice(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=["fp16"], concurrency=[2], repeats=1)
    manifest = manifest_of(run_dir)
    path = write_cell(run_dir, cell(2, index=5), ASKED)
    manifest.set_aside(cell(2, index=5), run_dir / "journal" / "attempts" / f"{path.stem}-a1.jsonl", KILLED)
    again = ManifestFile(run_dir, read_manifest(run_dir))
    begin_session(again)
    set_aside(run_dir, cell(2, index=5), again)
    (attempt,) = read_manifest(run_dir).attempts
    assert (run_dir / attempt.file).exists()


def test_nothing_is_set_aside_that_is_finished_or_not_there(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=["fp16"], concurrency=[2], repeats=1)
    manifest = manifest_of(run_dir)
    set_aside(run_dir, OF, manifest)
    set_aside(run_dir, cell(3, index=9), manifest)
    assert cell_file(run_dir, OF).exists()
    assert not (run_dir / "journal" / "attempts").exists()


def test_cells_of_two_sessions_have_each_its_own_power(tmp_path: Path) -> None:
    """The monotonic clock began anew between them: the same stamps, other watts."""
    run_dir = make_run(tmp_path / "run", targets=["fp16"], concurrency=[1, 2], repeats=1)
    manifest = manifest_of(run_dir)
    begin_session(manifest)
    path = cell_file(run_dir, cell(2, index=2))
    path.unlink()
    valid_cell(run_dir, cell(2, index=2))
    lines = path.read_bytes().splitlines(keepends=True)
    start = json.loads(lines[0].split(b"\t")[0]) | {"session": 2}
    path.write_bytes(b"".join([sealed(json.dumps(start).encode()), *lines[1:]]))
    for session, watts in ((1, 100.0), (2, 300.0)):
        journal = Journal(power_file(run_dir, "fp16", 1, session))
        for t_ms in range(0, 4000, 20):
            sample = PowerSample(t_ns=t_ms * 10**6, latency_ns=1, gpu="GPU-a", power_instant_w=watts)
            journal.append(sample)
        journal.close()
    analyse(run_dir)
    run = load_run(run_dir)
    assert list(run.cells["session"]) == [1, 2]
    assert list(run.cells["power_w_mean"].round()) == [100, 300]
    assert run.power.groupby("session")["power_instant_w"].agg(["min", "max"]).to_numpy().tolist() == [
        [100, 100],
        [300, 300],
    ]


def test_a_failure_that_a_later_session_made_good_is_no_warning_any_more(tmp_path: Path) -> None:
    failures = [
        {"repeat": 1, "target": "fp16", "error": "fp16: the server ended", "session": 1},
        {"repeat": 2, "target": "fp16", "error": "fp16: the server ended again", "session": 2},
    ]
    run_dir = make_run(tmp_path / "run", targets=["fp16"], failures=failures)
    cell_files(run_dir)[-1].unlink()
    content = json.loads((run_dir / "manifest.json").read_bytes())
    content["sessions"] = [{"session": 1, "warnings": []}, {"session": 2, "warnings": ["the driver was 1, now 2"]}]
    (run_dir / "manifest.json").write_text(json.dumps(content))
    analyse(run_dir)
    warnings = load_run(run_dir).analysis.warnings
    assert "fp16, repeat 2: fp16: the server ended again" in warnings
    assert not any("repeat 1: fp16: the server ended" in warning for warning in warnings)
    assert "session 2: the driver was 1, now 2" in warnings


def test_a_run_directory_is_held_by_one_sweep_at_a_time_also_after_a_kill(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib; from loadgen.record.journal import held\n"
        f"with held(pathlib.Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    try:
        with pytest.raises(UsageError, match="is being measured by another loadgen"), held(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with held(tmp_path):
        pass


def test_servers_of_a_killed_session_are_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "OLD_SERVERS_S", 0.3)
    port = str(free_port())
    program = "import time; print('up', flush=True); time.sleep(600)"
    old = subprocess.Popen([sys.executable, "-c", program, "--port", port], stdout=subprocess.PIPE)
    assert old.stdout is not None
    try:
        assert old.stdout.readline() == b"up\n"
        argv = ("vllm", "serve", "--port", port)
        of = ServerRecord(name="awq", repeat=1, version=None, pid=old.pid, argv=argv)
        assert await_old_servers([of]) == ["awq"]
        assert await_old_servers([msgspec.structs.replace(of, argv=(*argv[:-1], "1"))]) == [], "the id is another's now"
    finally:
        old.kill()
        old.wait()
        old.stdout.close()
    assert await_old_servers([of]) == []
    assert await_old_servers([ServerRecord(name="fp16", repeat=1, version=None, url="http://h:1")]) == [], "not ours"


def test_the_command_to_go_on_can_be_pasted() -> None:
    assert resume_command(Path("runs/my run")) == "loadgen sweep --resume 'runs/my run'"


def test_what_older_runs_do_not_say_is_the_first_session() -> None:
    assert CellStart(cell=OF, t_ns=0, simulated=False).session == 1
    assert CellEnd(t_ns=0).aborted is None


@pytest.mark.parametrize("repeats", [500_000, 500_001])
def test_a_runs_size_is_counted_alike_when_it_is_planned_and_when_it_is_read(tmp_path: Path, repeats: int) -> None:
    """Two targets: 1,000,000 cells are the most."""
    run = make_run(tmp_path / "run", repeats=1, concurrency=(1,))
    content = json.loads((run / "manifest.json").read_text())
    content["config"]["repeats"] = repeats
    (run / "manifest.json").write_text(json.dumps(content))
    targets = {"fp16": "http://127.0.0.1:1", "awq": "http://127.0.0.1:2"}
    with pytest.raises(UsageError, match="more than 1,000,000 cells") if repeats > 500_000 else nullcontext():
        configure(targets=targets, concurrency=[1], repeats=repeats)
    with pytest.raises(UsageError, match="more than 1,000,000 cells") if repeats > 500_000 else nullcontext():
        read_manifest(run)
