"""What a received run's manifest may make this machine do: nothing that this user did not choose, name or confirm."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_run import make_run, manifest_record

import loadgen
from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.settings import ACTS, options_again, remember, require_consent
from loadgen.options import Acts, Measures, SweepOptions, declared
from loadgen.record.cell import SweepConfig
from loadgen.record.manifest import Manifest
from loadgen.serving.launch import plan_launch
from loadgen.serving.recipe import load_recipe

LOOPBACK = {"fp16": "http://127.0.0.1:8001", "awq": "http://[::1]:8002"}
AWAY = {"fp16": "http://author.example:80"}
DOCKER = str(Path(__file__).parents[2] / "docker")
CANARY = "sk-canary-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)


def manifest(known_workers: dict[str, int] | None = None, **options: Any) -> Manifest:
    return manifest_record(configure(**options), client={"loadgen": "0.1.0", "workers": known_workers or {}})


def refusal(begun: Manifest, given: dict[str, Any] | None = None, run: Path = Path("runs/x")) -> str:
    with pytest.raises(UsageError) as error:
        require_consent(run, begun, given or {})
    return str(error.value)


def test_every_setting_either_measures_or_acts() -> None:
    options = declared(SweepOptions).values()
    assert all(isinstance(option, Acts | Measures) for option in options)
    assert {"mode", *(option.field for option in options)} == set(SweepConfig.__struct_fields__)
    assert {
        "mode", "targets", "compose", "model", "vllm", "data_file", "platinum_file", "shots_file", "reasoning_parser",
        "vllm_args", "workers", "extra_body", "api_key_env", "power", "metrics_port", "metrics_host",
    } == ACTS  # fmt: skip


def test_another_load_on_a_runs_servers_needs_consent_and_starts_them_as_they_were(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"send requests to http://author.example:80\. If you want that, give --trust-"
    ):
        options_again(tmp_path, manifest(targets=AWAY, concurrency="1,4"), {})
    begun = configure(serve="fp16,mine:awq", model="some/model", concurrency="1,4", repeats=2, limit=9)
    chosen = {"mine": {"id": "org/awq", "downloads": 1, "quantization": "awq", "alike": 1}}
    known = manifest_record(begun, checkpoints=chosen)
    again = configure(**options_again(tmp_path, known, {}, trusted=True), arrival="poisson:3", repeats=1)
    assert (again.max_num_seqs, again.model, again.limit) == (begun.max_num_seqs, "some/model", 9)
    assert [spec.checkpoint for spec in again.targets] == [None, "org/awq"]
    assert (again.arrival, again.repeats, again.duration_s) == ("poisson:3", 1, 60.0)


@pytest.mark.parametrize(
    "begun",
    [{}, {"targets": LOOPBACK}, {"targets": {"fp16": "http://localhost:1"}, "power": "exporter=http://127.0.0.1:9401"},
     {"metrics_port": None}, {"answer_regex": "x"}],
)  # fmt: skip
def test_what_stays_on_loopback_is_resumed_without_a_question(begun: dict[str, Any]) -> None:
    require_consent(Path("runs/x"), manifest(**begun), {})


ACTING: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"targets": AWAY}, "send requests to http://author.example:80", {"targets": AWAY}),
    ({"targets": LOOPBACK, "metrics_url": ["fp16=http://h:1/metrics"]}, "read http://h:1/metrics",
     {"metrics_url": ["x"]}),
    ({"targets": LOOPBACK, "api_key_env": "AWS_SECRET_ACCESS_KEY"}, "variable AWS_SECRET_ACCESS_KEY",
     {"api_key_env": "AWS_SECRET_ACCESS_KEY"}),
    ({"serve": "fp16", "model": "org/m"}, "load the model org/m", {"model": "org/m"}),
    ({"serve": "fp16,awq=org/q", "model": "org/m"}, "load the checkpoint org/q", {"model": "org/m", "serve": "x"}),
    ({"serve": "fp16", "model": "org/m", "vllm": "/opt/v"}, "run the program /opt/v", {"model": "m", "vllm": "/opt/v"}),
    ({"compose": DOCKER, "serve": "sim-fp16"}, f"start the containers sim-fp16 of the Docker Compose project {DOCKER}",
     {"compose": DOCKER}),
    ({"serve": "fp16", "model": "org/m", "vllm_args": "--trust-remote-code"}, "start vLLM with --trust-remote-code",
     {"model": "m", "vllm_args": "--trust-remote-code"}),
    ({"targets": LOOPBACK, "data_file": "/home/me/private"}, "read the file /home/me/private", {"data_file": "x"}),
    ({"shots_file": "/home/me/shots"}, "read the file /home/me/shots", {"shots_file": "x"}),
    ({"targets": LOOPBACK, "power": "exporter=http://h:9401"}, "read power from http://h:9401", {"power": "x"}),
    ({"targets": LOOPBACK, "extra_body": {"a": 1}}, 'add {"a":1} to every request', {"extra_body": '{"a": 1}'}),
    ({"metrics_host": "0.0.0.0"}, "listen on 0.0.0.0, port 9402", {"metrics_host": "x", "metrics_port": 1}),
    ({"metrics_port": 22_000}, "listen on 127.0.0.1, port 22000", {"metrics_port": None}),
    ({"targets": LOOPBACK, "workers": 5000}, "start 5000 client processes", {"workers": 5000}),
]  # fmt: skip


@pytest.mark.parametrize(("begun", "said", "again"), ACTING, ids=[said for _, said, _ in ACTING])
def test_what_acts_is_named_again_trusted_or_confirmed(
    begun: dict[str, Any], said: str, again: dict[str, Any], tmp_path: Path
) -> None:
    received = manifest(**begun)
    sentence = refusal(received)
    assert said in sentence
    assert "\n" not in sentence
    assert "--trust-manifest" in sentence
    assert CANARY not in sentence
    require_consent(Path("runs/x"), received, again)
    require_consent(Path("runs/x"), received, {}, trusted=True)
    assert refusal(received), "neither is remembered"
    with pytest.raises(UsageError, match="was not confirmed"):
        require_consent(Path("runs/x"), received, {}, confirm=lambda _: False)
    shown: list[str] = []
    require_consent(Path("runs/x"), received, {}, confirm=lambda sentences: not shown.extend(sentences))
    assert said in " ".join(shown)
    require_consent(Path("runs/x"), received, {})


def test_a_run_that_this_user_began_goes_on_and_another_with_its_key_does_not() -> None:
    own = manifest(targets=LOOPBACK, api_key_env="AWS_SECRET_ACCESS_KEY")
    remember(own)
    later = manifest({"4": 1}, targets=LOOPBACK, api_key_env="AWS_SECRET_ACCESS_KEY")
    require_consent(Path("runs/x"), later, {})
    other = manifest(targets={"fp16": "http://127.0.0.1:9"}, api_key_env="AWS_SECRET_ACCESS_KEY")
    assert "AWS_SECRET_ACCESS_KEY" in refusal(other)


def test_worker_processes_that_an_earlier_session_needed_are_counted() -> None:
    received = manifest({"4": 100_000}, targets=LOOPBACK, api_key_env="AWS_SECRET_ACCESS_KEY")
    remember(received)
    assert "start 100000 client processes" in refusal(received)


@pytest.mark.parametrize("link", [False, True])
def test_a_program_inside_the_run_is_never_started(tmp_path: Path, link: bool) -> None:
    run = tmp_path / "run"
    run.mkdir()
    program = run / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    if link:
        (tmp_path / "elsewhere").symlink_to(program)
    received = manifest(serve="fp16", model="org/m", vllm=str(tmp_path / "elsewhere" if link else program))
    for trusted in (False, True):
        with pytest.raises(UsageError, match="nothing inside a run directory is started"):
            require_consent(run, received, {"vllm": "x", "model": "org/m"}, trusted=trusted, confirm=lambda _: True)


def test_a_received_run_sends_nothing(tmp_path: Path) -> None:
    """The whole way: the refusal comes before the server is greeted, whose address answers nobody."""
    run = make_run(tmp_path / "run", targets=["fp16"], concurrency=[1], repeats=1)
    content = msgspec.json.decode((run / "manifest.json").read_bytes())
    received = manifest(targets=AWAY, concurrency=[2], repeats=1, api_key_env="AWS_SECRET_ACCESS_KEY")
    content["config"] = msgspec.to_builtins(received.config)
    (run / "manifest.json").write_bytes(msgspec.json.encode(content))
    with pytest.raises(UsageError, match=r"send requests to http://author\.example:80; to send the value"):
        loadgen.sweep(resume=run)


def test_a_run_of_other_questions_asks_no_server(tmp_path: Path) -> None:
    """Its questions, prompts and recipes are compared before the first request."""
    run = make_run(tmp_path / "run", targets=["fp16"], concurrency=[1], repeats=1)
    content = msgspec.json.decode((run / "manifest.json").read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        config = configure(targets={"fp16": url}, concurrency=[2], repeats=1, dataset="sample")
        content["config"] = msgspec.to_builtins(config)
        (run / "manifest.json").write_bytes(msgspec.json.encode(content))
        with pytest.raises(UsageError, match="sha256 of the dataset sample was 0000"):
            loadgen.sweep(resume=run)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    "options",
    [{"serve": "fp16", "model": "--config=x"}, {"targets": LOOPBACK, "model": "-m"},
     {"serve": "fp16,awq=--trust-remote-code", "model": "org/m"},
     {"serve": "fp16", "model": "org/m", "reasoning_parser": "--x"}],
)  # fmt: skip
def test_a_name_that_vllm_would_take_for_an_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="starts with '-'"):
        configure(**options)


@pytest.mark.parametrize(("model", "checkpoint"), [("--x", None), ("org/m", "-x")])
def test_no_server_is_launched_with_such_a_name(model: str, checkpoint: str | None) -> None:
    with pytest.raises(UsageError, match="starts with '-'"):
        plan_launch(
            load_recipe("awq"), model=model, checkpoint=checkpoint, port=1, device="cuda", max_num_seqs=1, vllm="vllm"
        )
