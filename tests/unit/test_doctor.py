"""The doctor as a whole: exit status, words, time limits."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from made_exporter import wait_for

from loadgen.cli import doctor as cli
from loadgen.cli.doctor import as_lines, command
from loadgen.doctor import examination
from loadgen.doctor.examination import Check, Examination, look_at_once
from loadgen.doctor.finding import Finding, Mode, State, ask
from loadgen.errors import UsageError
from loadgen.guardian import family

CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with empty caches, an unreachable hub and no program on PATH."""
    for name in ("LOADGEN_VLLM", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    places = {"LOADGEN_CACHE": "cache", "XDG_CACHE_HOME": "xdg", "LOADGEN_CPU_ENV": "none", "PATH": "bin"}
    for name, folder in places.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    return tmp_path


def examined(*arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit status and the findings by check."""
    ended = CliRunner().invoke(command, [*arguments, "--prometheus", CLOSED, "--grafana", CLOSED, "--json"])
    report = json.loads(ended.output)
    assert report["can_run"] == (ended.exit_code == 0)
    return ended.exit_code, {finding["check"]: finding for finding in report["findings"]}


def test_a_bare_machine_can_run_simulated_servers_and_nothing_else(bare: Path) -> None:
    status, findings = examined("--mode", "simulated")
    assert status == 0
    assert {found["state"] for found in findings.values()} <= {"ok", "warning", "not applicable"}
    status, findings = examined("--mode", "docker")
    assert (status, findings["Docker"]["seen"]) == (1, "no docker command")
    status, findings = examined("--mode", "cpu", "--model", "a/b")
    missing = {check for check, found in findings.items() if found["state"] == "missing"}
    assert (status, missing) == (1, {"vLLM", "hub"})
    assert "cpu-env" in findings["vLLM"]["advice"]


def test_each_line_that_is_not_ok_says_what_to_do(bare: Path) -> None:
    for mode in ("simulated", "cpu", "gpu", "docker"):
        _, findings = examined("--mode", mode)
        for found in findings.values():
            assert found["advice"] or found["state"] in ("ok", "not applicable"), found


def test_wrong_addresses_are_refused() -> None:
    ended = CliRunner().invoke(command, ["--prometheus", "127.0.0.1"])
    assert isinstance(ended.exception, UsageError)
    assert str(ended.exception).startswith("--prometheus: '127.0.0.1' has no port")


@pytest.mark.parametrize(
    ("states", "can_run"), [(["ok", "warning", "not applicable"], True), (["ok", "missing", "warning"], False)]
)
def test_only_a_missing_thing_keeps_a_sweep_from_running(
    monkeypatch: pytest.MonkeyPatch, states: list[State], can_run: bool
) -> None:
    findings = tuple(Finding(check=f"check {state}", state=state, seen="x") for state in states)
    monkeypatch.setattr(cli, "examine", lambda mode, **_: Examination(mode=mode, findings=findings))
    ended = CliRunner().invoke(command, ["--mode", "docker"])
    assert ended.exit_code == (0 if can_run else 1)
    verdict = "can run." if can_run else "cannot run: check missing."
    assert ended.output.endswith(f"A sweep in mode docker {verdict}\n")


def test_lines_are_wrapped_under_what_was_seen() -> None:
    found = Finding(check="ports", state="warning", seen="word " * 20, advice="stop it")
    lines = as_lines(Examination(mode="cpu", findings=(found,)), 80).splitlines()
    column = lines[0].index("word")
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].index("word") == column
    assert lines[2] == f"{' ' * column}-> stop it"


def test_a_look_that_hangs_or_fails_is_told_and_holds_nothing_up() -> None:
    release = threading.Event()

    def hang() -> list[Finding]:
        release.wait(30)
        return []

    def fail() -> list[Finding]:
        raise RuntimeError("broken")

    fine = Finding(check="fine", state="ok", seen="x")
    checks = [
        Check("hangs", hang, needed=True, limit_s=0.05),
        Check("fails", fail),
        Check("fine", lambda: [fine]),
    ]
    found = look_at_once(checks)
    release.set()
    assert [(one.check, one.state) for one in found] == [("hangs", "missing"), ("fails", "warning"), ("fine", "ok")]
    assert found[0].seen == "no answer within 0.05 s"
    assert found[1].seen == "RuntimeError: broken"


def test_checks_run_beside_each_other() -> None:
    together = threading.Barrier(3, timeout=10)

    def meet() -> list[Finding]:
        together.wait()
        return [Finding(check="met", state="ok", seen="x")]

    assert [found.state for found in look_at_once([Check("a", meet), Check("b", meet), Check("c", meet)])] == ["ok"] * 3


@pytest.mark.parametrize("mode", ["simulated", "cpu", "gpu", "docker"])
def test_the_modes_own_parts_are_needed(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    seen: list[Check] = []
    monkeypatch.setattr(examination, "client_timing", lambda: Finding(check="client timing", state="ok", seen="x"))
    monkeypatch.setattr(examination, "look_at_once", lambda checks: seen.extend(checks) or [])
    examination.examine(mode)
    needed = {"simulated": set(), "cpu": {"vLLM"}, "gpu": {"GPU driver", "vLLM"}, "docker": {"Docker"}}[mode]
    assert {check.name for check in seen if check.needed} == needed


def test_programs_are_heard_and_ended_with_all_they_started(tmp_path: Path) -> None:
    answer = ask([sys.executable, "-c", "import sys; print('1.2'); print('why', file=sys.stderr); sys.exit(3)"], 30)
    assert answer is not None
    assert (answer.status, answer.output, answer.last_words) == (3, "1.2\n", "why")
    assert ask([str(tmp_path / "absent")], 1) is None
    leader = tmp_path / "leader"
    hung = ask(["/bin/sh", "-c", f"echo $$ > {leader}; sleep 60 & wait"], 1.0)
    assert hung is not None
    assert (hung.status, hung.last_words) == (None, "it did not end in time")
    wait_for(lambda: not family(int(leader.read_text())), "the end of what it started")


def test_findings_are_json_with_these_fields() -> None:
    found = Finding(check="x", state="ok", seen="y")
    assert msgspec.to_builtins(found) == {"check": "x", "state": "ok", "seen": "y", "advice": ""}
