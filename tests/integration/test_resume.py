"""A sweep against a running server, interrupted, refused with other settings, resumed, and resumed when complete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import KnownServer, known_server

import loadgen
from loadgen.errors import UsageError
from loadgen.load.exchange import Exchange
from loadgen.record.journal import cell_files, held, read_records
from loadgen.record.manifest import Manifest
from loadgen.workload.questions import sample_items

REQUESTS = 9
DEADLINE_S = 180.0


def hear_interrupts() -> None:
    """CI may run this as a background job, whose children would ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def sweep(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "loadgen", "sweep", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "CI": ""},
        preexec_fn=hear_interrupts,
    )  # fmt: skip


def refused(run_dir: Path, *options: str) -> str:
    process = sweep("--resume", str(run_dir), *options)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (2, "")
    assert err.count("\n") == 1, err
    return err


def requests_of(path: Path) -> list[Exchange]:
    return [record for record in read_records(path) if isinstance(record, Exchange)]


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@dataclass
class Resumed:
    """What was seen on the way: the run interrupted in its second cell of two, then resumed, then once more."""

    run_dir: Path
    while_held: str
    interrupted: str
    before: Manifest
    """The manifest between the two sessions."""
    attempt: bytes
    kept: bytes
    ended: tuple[int, str]
    again: tuple[int, str]


@pytest.fixture(scope="module")
def known() -> Iterator[KnownServer]:
    with known_server(ttft_s=0.1, itl_s=0.02, tokens=26) as server:
        yield server


@pytest.fixture(scope="module")
def begun(known: KnownServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run_dir = tmp_path_factory.mktemp("resume") / "the run"
    process = sweep(
        "--target", f"fp16={known.url}", "--dataset", "sample", "--concurrency", "3", "--requests", str(REQUESTS),
        "--max-tokens", str(known.tokens), "--repeats", "2", "--quiet", "--out", str(run_dir),
    )  # fmt: skip
    wait_until(lambda: len(cell_files(run_dir)) == 2 and len(requests_of(cell_files(run_dir)[1])) > 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, err
    return run_dir, err


@pytest.fixture(scope="module")
def resumed(begun: tuple[Path, str]) -> Resumed:
    run_dir, interrupted = begun
    with held(run_dir):
        while_held = refused(run_dir)
    before = loadgen.load_run(run_dir).manifest
    kept, attempt = (path.read_bytes() for path in cell_files(run_dir))

    def resume(*options: str) -> tuple[int, str]:
        process = sweep("--resume", str(run_dir), *options)
        out, err = process.communicate(timeout=DEADLINE_S)
        return process.returncode, out + err

    first = resume("--requests", str(REQUESTS), "--timeout", "600", "--quiet")
    return Resumed(run_dir, while_held, interrupted, before, attempt, kept, first, resume())


def test_the_last_line_of_an_interrupted_run_is_the_command_that_goes_on(resumed: Resumed) -> None:
    assert f"to go on: loadgen sweep --resume '{resumed.run_dir}'" in resumed.interrupted.splitlines()[-1]


def test_a_run_that_is_being_measured_is_not_resumed(resumed: Resumed) -> None:
    assert "is being measured by another loadgen" in resumed.while_held


def test_the_finished_cell_is_kept_and_the_other_measured_anew_and_whole(resumed: Resumed) -> None:
    assert resumed.ended[0] == 0, resumed.ended[1]
    first, second = cell_files(resumed.run_dir)
    assert first.read_bytes() == resumed.kept
    rows = [row for row in requests_of(second) if row.phase == "measured"]
    assert sorted(row.item_id for row in rows) == sorted(item.id for item in sample_items()[:REQUESTS])
    assert {row.phase for row in requests_of(second)} == {"warmup", "measured"}, "it was warmed up again"
    run = loadgen.load_run(resumed.run_dir)
    assert run.complete
    assert list(run.cells["session"]) == [1, 2]
    assert list(run.cells["answers"]) == [REQUESTS, REQUESTS]


def test_the_attempt_is_kept_and_told(resumed: Resumed) -> None:
    manifest = loadgen.load_run(resumed.run_dir).manifest
    (attempt,) = manifest.attempts
    assert attempt.why == "interrupted"
    assert attempt.resumed_in_session == 2
    assert (resumed.run_dir / attempt.file).read_bytes() == resumed.attempt


def test_the_manifest_knows_both_sessions_and_the_clocks_of_each(resumed: Resumed) -> None:
    manifest = loadgen.load_run(resumed.run_dir).manifest
    assert [session.session for session in manifest.sessions] == [1, 2]
    assert [anchor.session for anchor in manifest.clock_anchors] == [1, 1, 2, 2]
    assert [server.session for server in manifest.servers] == [1, 1, 2]
    assert manifest.config == resumed.before.config


def test_a_complete_run_says_so_and_its_report_is_made_anew(resumed: Resumed) -> None:
    code, said = resumed.again
    assert code == 0, said
    assert "is complete, nothing is left to measure" in said
    assert f"Report: {resumed.run_dir}/report.html" in said
    assert len(loadgen.load_run(resumed.run_dir).manifest.sessions) == 2


def test_another_setting_is_refused_before_anything_is_touched(resumed: Resumed) -> None:
    before = (resumed.run_dir / "manifest.json").read_bytes()
    said = refused(resumed.run_dir, "--requests", "12")
    assert f"--requests 12: {resumed.run_dir} was begun with --requests {REQUESTS}" in said
    assert (resumed.run_dir / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("part", "field", "value", "said"),
    [
        ("dataset", "sha256", "0" * 64, "sha256 of the dataset sample was 0000"),
        ("protocol", "sha256", "0" * 64, "sha256 of the protocol sample was 0000"),
        ("power", "kind", "nvml", "source of power was nvml"),
        ("servers", "version", "0.1", "version of target fp16 was 0.1 when the run was begun and is"),
        ("servers", "model", "other", "model of target fp16 was other"),
    ],
)
def test_what_is_not_what_it_was_is_refused_before_a_session_begins(
    resumed: Resumed, part: str, field: str, value: str, said: str
) -> None:
    whole = (resumed.run_dir / "manifest.json").read_bytes()
    cell = cell_files(resumed.run_dir)[1]
    content = json.loads(whole)
    for entry in content[part] if isinstance(content[part], list) else [content[part]]:
        entry[field] = value
    changed = json.dumps(content).encode()
    (resumed.run_dir / "manifest.json").write_bytes(changed)
    hidden = cell.rename(resumed.run_dir / "hidden")
    try:
        with pytest.raises(UsageError, match=said):
            loadgen.sweep(resume=resumed.run_dir)
        assert (resumed.run_dir / "manifest.json").read_bytes() == changed
    finally:
        hidden.rename(cell)
        (resumed.run_dir / "manifest.json").write_bytes(whole)
