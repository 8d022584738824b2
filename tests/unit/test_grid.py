"""A study becomes tasks; a run directory that came home is known to be whole."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from loadgen.cluster.ray import INSTALL, Cluster
from loadgen.cluster.study import Study, parse_study
from loadgen.cluster.tasks import tasks_of
from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.servers import COST_FILE, _Simulated, source_of
from loadgen.measure.settings import options_of
from loadgen.record.grid import (
    GridRecord,
    Place,
    Receipt,
    Task,
    TaskAttempt,
    done,
    receipt_of,
    why_not_whole,
    write_receipt,
)
from loadgen.reports.grid import LiveTasks
from loadgen.serving.launch import option

TWO = """
models = ["simulated/qwen3-0.6b", "simulated/mistral-7b"]
precisions = ["fp16", "awq", "gptq"]
gpus = 2
repeats = 2
[sweep]
concurrency = [1, 4]
duration = "1s"
"""


def study(text: str) -> Study:
    return parse_study(text, "study.toml")


def test_a_task_is_one_sweep_of_all_precisions_on_one_gpu() -> None:
    tasks = tasks_of(study(TWO), ["", ""])
    assert [task.id for task in tasks] == ["qwen3-0.6b-g1", "qwen3-0.6b-g2", "mistral-7b-g1", "mistral-7b-g2"]
    config = configure(**tasks[0].options)
    assert [spec.name for spec in config.targets] == ["fp16", "awq", "gptq"]
    assert (config.mode, config.repeats, config.concurrency, config.duration_s) == ("simulated", 2, (1, 4), 1.0)
    assert config.metrics_port is None  # two tasks of one machine would want the same


def test_repeats_are_cut_into_blocks_and_the_order_of_precisions_is_balanced_over_them() -> None:
    """Three blocks of one repeat on two GPUs: no block's order is that of the one before, on either GPU."""
    tasks = tasks_of(study(TWO.replace("repeats = 2", "repeats = 3\nblock = 1")), ["", ""])
    assert len(tasks) == 2 * 2 * 3
    for gpu in (1, 2):
        of_gpu = [task for task in tasks if task.gpu == gpu and task.model.endswith("7b")]
        orders = [[spec.name for spec in configure(**task.options).targets] for task in of_gpu]
        assert all(a == list(reversed(b)) for a, b in pairwise(orders))
        assert {configure(**task.options).reference for task in of_gpu} == {"fp16"}


def test_options_of_a_model_go_before_those_of_the_study_and_decide_its_gpus() -> None:
    text = 'models = ["org/a-7B", "org/b-70B"]\nprecisions = ["fp16", "awq=org/b-awq"]\ngpus = 1\n[sweep]\nlimit = 9\n'
    tasks = tasks_of(study(f'{text}[model."org/b-70B"]\ntensor-parallel = "fp16=4,awq=2"\nlimit = 5\n'), [""])
    assert [(task.gpus, task.options["limit"]) for task in tasks] == [(1, 9), (4, 5)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("precisions =", "precision ="), "'precision' is not a key of a study; did you mean precisions?"),
        (("[sweep]", "duration = 1\n[sweep]"), "write it under [sweep]"),
        (("duration", "duraton"), "[sweep]: 'duraton' is not an option of loadgen sweep; did you mean duration?"),
        (("concurrency = [1, 4]", "repeats = 4"), "repeats is decided by the grid for each task; write repeats = ..."),
        (("concurrency = [1, 4]", 'out = "x"'), "out is decided by the grid for each task; omit it"),
        (("gpus = 2", "gpus = 0"), "gpus = 0 is not a number of GPUs; write gpus = 2, or by type"),
        (("gpus = 2", "gpus = {H100 = 0.5}"), "gpus.H100 = 0.5 is not a number of GPUs"),
        (("repeats = 2", "repeats = -1"), "repeats = -1 is not a number of repeats from 1 to 1000; write repeats = 2"),
        (('"awq", ', '"fp16", '), "precisions: fp16 is listed twice; list each once"),
        (('models = ["simulated/qwen3-0.6b", ', "models = [3, "), "is not a list of names; write models = ["),
        (('"1s"', '"1 parsec"'), "[sweep]: --duration 1 parsec: not a time"),
        (("[sweep]", '[model."simulated/mistral-7"]\nlimit = 3\n[sweep]'), "did you mean simulated/mistral-7b?"),
        (("gpus = 2", "gpus = "), "is not TOML"),
    ],
)
def test_what_is_wrong_with_a_study_is_one_sentence(change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(UsageError, match=r"study.toml: ") as caught:
        study(TWO.replace(*change))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("qwen3-0.6b", "qwen3-7b"), "simulated/qwen3-7b: no simulated model 'qwen3-7b'; did you mean qwen3-8b?"),
        (('"gptq"', '"gpt"'), "gpt"),
    ],
)
def test_what_a_sweep_refuses_is_refused_before_anything_starts(change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        tasks_of(study(TWO.replace(*change)), [""])
    assert sentence in str(caught.value)


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'vllm-loadgen\[ray\]'") as caught:
        Cluster(None)
    assert str(caught.value) == INSTALL.format("loadgen grid")


def test_a_run_is_whole_only_if_every_file_is_as_the_node_wrote_it(tmp_path: Path) -> None:
    task = Task(id="a-g1", model="a", gpu=1, repeats=1, options={"limit": 3})
    run_dir = tmp_path / "runs" / task.id
    (run_dir / "journal").mkdir(parents=True)
    (run_dir / "journal" / "001.jsonl").write_text("one\n")
    assert why_not_whole(run_dir, task) == "has no whole task.json"
    place = Place(node="n", gpus=("GPU-1",))
    receipt: Receipt = receipt_of(run_dir, task, 1, place)
    write_receipt(run_dir, receipt)
    assert why_not_whole(run_dir, task) is None
    assert not done(tmp_path, task)  # without a manifest nothing is known to be complete
    other = Task(id="a-g1", model="a", gpu=1, repeats=1, options={"limit": 4})
    assert why_not_whole(run_dir, other) == "is of another task, or was measured with other options"
    (run_dir / "journal" / "001.jsonl").write_text("two\n")
    assert why_not_whole(run_dir, task) == "has another journal/001.jsonl than the node wrote"
    (run_dir / "journal" / "001.jsonl").unlink()
    assert why_not_whole(run_dir, task) == "lacks journal/001.jsonl"


def test_simulated_servers_have_the_named_model_and_the_machines_cost_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = configure(serve="fp16,awq", model="simulated/qwen3-0.6b")
    source = source_of(config)
    assert isinstance(source, _Simulated)
    argv = source.plan(config.targets[1], 1234).argv
    assert (option(argv, "--precision"), option(argv, "--model")) == ("awq", "qwen3-0.6b")
    assert option(argv, "--cost-file") is None
    monkeypatch.setenv(COST_FILE, str(tmp_path / "hot.toml"))
    assert option(source.plan(config.targets[1], 1234).argv, "--cost-file") == str(tmp_path / "hot.toml")
    assert configure(**options_of(config)) == config  # as --resume makes it again
    with pytest.raises(UsageError, match="--serve awq=org/x: simulated servers have no checkpoint; omit it"):
        configure(serve="fp16,awq=org/x", model="simulated/qwen3-0.6b")


def test_a_low_terminal_shows_the_tasks_that_run_or_failed() -> None:
    names = [f"m-g{number}" for number in range(1, 31)]
    tasks = tuple(Task(id=name, model="m", gpu=1, repeats=2, options={}) for name in names)
    attempts = {
        "m-g1": (TaskAttempt(number=1, state="done", place=Place(node="n", gpus=("GPU-1",))),),
        "m-g20": (TaskAttempt(number=1, state="lost"), TaskAttempt(number=2, state="running", begun_ns=1)),
        "m-g30": (TaskAttempt(number=1, state="failed", error="no checkpoint"),),
    }
    record = GridRecord(name="g", loadgen="0", simulated=True, tasks=tasks, attempts=attempts)
    console = Console(file=io.StringIO(), width=90, height=8, force_terminal=True)
    view = LiveTasks(console)
    view.changed(record, {"m-g20": ("0@abc", "3/12 cells, awq")})
    lines = [line.plain for line in view.lines]
    assert lines[0] == "SIMULATED · g: 1 of 30 tasks done, 27 waits, 1 runs, 1 failed"
    assert len(lines) <= 8
    assert any("m-g20" in line and "try 2, 3/12 cells, awq" in line and "0@abc" in line for line in lines)
    assert any("m-g30" in line and "no checkpoint" in line for line in lines)
