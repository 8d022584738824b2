"""Settings of a run, read back from its manifest: the same config again, or one sentence that says what differs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_run import manifest_record

from loadgen.errors import UsageError
from loadgen.measure.config import api_key, configure
from loadgen.measure.settings import options_of, resumed_config
from loadgen.record.manifest import Manifest
from loadgen.secret import Mask

URL = "http://127.0.0.1:8001"
RUN = Path("runs/x")
DOCKER = str(Path(__file__).parents[2] / "docker")
BEGUN: list[dict[str, Any]] = [
    {},
    {"requests": 64, "concurrency": "1,16", "seed": 3, "metrics_port": None, "limit": 20, "warmup": 0.0},
    {"targets": {"fp16": URL, "mine:awq": "http://h:2"}, "reference": "mine", "power": "exporter=http://h:9401"},
    {"targets": [f"fp16={URL}"], "model": "m", "gpu": "GPU-1,GPU-2", "tdp_w": 350.0, "carbon": 0.4, "timeout": 5.0},
    {"serve": "fp16,awq=org/model-AWQ,old:gptq", "model": "org/model", "max_num_seqs": 200, "duration": 30.0},
    {"serve": "bf16", "model": "org/model", "device": "cpu", "vllm": "vllm", "reasoning_parser": "qwen3"},
    {"serve": "fp16,awq=a/b,gptq=c/d", "model": "m", "tensor_parallel": "fp16=2,gptq=4", "max_model_len": 8192,
     "vllm_args": "--enforce-eager -O0"},
    {"compose": DOCKER, "serve": "sim-awq,sim-fp16", "concurrency": "1,4"},
    {"targets": {"fp16": URL}, "api": "chat", "thinking": "on", "thinking_budget": 100, "max_tokens": 900},
    {"targets": {"fp16": URL}, "arrival": "poisson:20", "slo": "ttft:200ms,tpot:50ms", "repeats": 2},
    {"arrival": "constant:5", "concurrency": "64", "answer_regex": r"ANS=(\d+)", "platinum_file": "p"},
    {"find": "tokens_per_s,energy_per_query_j", "range": "2:64", "within": "5%", "most_minutes": 30.0},
    {"serve": "fp16,awq=a/b", "model": "m", "find": ["si"], "start_sd": "1%"},
    {"targets": {"fp16": URL}, "workers": 2, "max_error_rate": 0.1},
    {"targets": {"fp16": URL}, "extra_body": {"top_k": 1, "seed": None}, "drain": 90.0, "wait_ready": 5.0},
    {"targets": {"fp16": URL}, "fixed_length": 128, "transport": "openai", "data_file": "rows.jsonl", "repeats": 1},
]  # fmt: skip


def manifest(**options: Any) -> Manifest:
    """As a sweep with these options writes it and a later one reads it."""
    return manifest_record(configure(**options), client={"loadgen": "0.1.0"})


def refusal(begun: dict[str, Any], given: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as error:
        resumed_config(RUN, manifest(**begun), given)
    return str(error.value)


@pytest.mark.parametrize("begun", BEGUN, ids=lambda options: " ".join(options) or "defaults")
def test_nothing_is_asked_again(begun: dict[str, Any]) -> None:
    config = configure(**begun)
    assert configure(**options_of(config)) == config
    assert resumed_config(RUN, manifest(**begun), {}) == config


@pytest.mark.parametrize("begun", BEGUN, ids=lambda options: " ".join(options) or "defaults")
def test_the_options_it_was_begun_with_may_be_said_again(begun: dict[str, Any]) -> None:
    assert resumed_config(RUN, manifest(**begun), begun) == configure(**begun)


def test_every_option_can_be_read_back() -> None:
    """One that could not be would be resumed with its default; a rate scale is in the arrival's rates."""
    known = set().union(*(options_of(configure(**begun)) for begun in BEGUN))
    assert known | {"out", "rate_scale"} >= set(inspect.signature(configure).parameters)


@pytest.mark.parametrize(
    ("begun", "given", "said"),
    [
        ({"requests": 64, "concurrency": "8"}, {"requests": 32}, "--requests 32: runs/x was begun with --requests 64"),
        ({"requests": 64, "concurrency": "8"}, {"duration": 9}, "--duration 9: runs/x was begun with --requests 64"),
        ({}, {"requests": 256}, "--requests 256: runs/x was begun with --duration 1"),
        ({}, {"concurrency": "1,16"}, "--concurrency 1,16: runs/x was begun with --concurrency 1,16,64,128"),
        ({"concurrency": "1,8"}, {"concurrency": [8, 1]}, "--concurrency 8,1: runs/x was begun with --concurrency 1,8"),
        ({}, {"limit": 5}, "--limit 5: runs/x was begun without --limit"),
        ({}, {"seed": 1}, "--seed 1: runs/x was begun with --seed 0"),
        ({}, {"serve": "fp16"}, "--serve fp16: runs/x was begun with simulated servers"),
        ({}, {"targets": [f"fp16={URL}"]}, f"--target fp16={URL}: runs/x was begun with simulated servers"),
        (
            {"serve": "fp16,awq", "model": "org/model"},
            {"targets": [f"fp16={URL}"]},
            f"--target fp16={URL}: runs/x was begun with --serve fp16,awq",
        ),
        (
            {"serve": "fp16,awq", "model": "org/model"},
            {"serve": "fp16"},
            "--serve fp16: runs/x was begun with --serve fp16,awq",
        ),
        (
            {"targets": {"fp16": URL}},
            {"targets": {"fp16": "http://127.0.0.1:8002"}},
            f"--target fp16=http://127.0.0.1:8002: runs/x was begun with --target fp16={URL}",
        ),
        (
            {"targets": {"fp16": URL, "awq": "http://h:2"}},
            {"reference": "awq"},
            "--reference awq: runs/x was begun with --reference fp16",
        ),
        (
            {"compose": DOCKER, "serve": "sim-awq,sim-fp16"},
            {"serve": "sim-awq"},
            "--serve sim-awq: runs/x was begun with --serve sim-awq,sim-fp16",
        ),
        ({"fixed_length": 9}, {"max_tokens": 9}, "--max-tokens 9: runs/x was begun with --fixed-length 9"),
        (
            {"arrival": "poisson:20"},
            {"arrival": "poisson:30"},
            "--arrival poisson:30: runs/x was begun with --arrival poisson:20",
        ),
        ({}, {"extra_body": '{"top_k": 1}'}, "--extra-body {\"top_k\": 1}: runs/x was begun without --extra-body"),
        ({"drain": 60.0}, {"drain": 90.0}, "--drain 90: runs/x was begun with --drain 60"),
        ({}, {"out": "runs/y"}, "--out runs/y: --resume continues in runs/x"),
    ],
)  # fmt: skip
def test_another_setting_is_refused_with_both_values(begun: dict[str, Any], given: dict[str, Any], said: str) -> None:
    sentence = refusal(begun, given)
    assert sentence.startswith(said)
    assert "\n" not in sentence


def test_what_no_figure_depends_on_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLD_KEY", "a")
    begun = manifest(api_key_env="OLD_KEY")
    monkeypatch.delenv("OLD_KEY")
    monkeypatch.setenv("NEW_KEY", "b")
    given = {"metrics_port": 9500, "metrics_host": "0.0.0.0", "api_key_env": "NEW_KEY"}
    config = resumed_config(RUN, begun, given)
    assert (config.metrics_port, config.metrics_host, api_key(config)) == (9500, "0.0.0.0", "b")


def test_the_key_that_the_run_needs_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLD_KEY", "a")
    begun = manifest(api_key_env="OLD_KEY")
    monkeypatch.delenv("OLD_KEY")
    with pytest.raises(UsageError, match="--api-key-env OLD_KEY"):
        resumed_config(RUN, begun, {})


def test_a_secret_in_the_extra_body_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"api_key": "sk-canary", "top_k": 1}
    begun = manifest(extra_body=given)
    begun = msgspec.structs.replace(
        begun, config=msgspec.structs.replace(begun.config, extra_body=Mask().content(given))
    )
    assert begun.config.extra_body == {"api_key": "***", "top_k": 1}
    assert resumed_config(RUN, begun, {"extra_body": given}).extra_body == given
    for other in ({}, {"extra_body": {"api_key": "sk-canary"}}):
        with pytest.raises(UsageError, match=r"holds a secret, and secrets are not stored; give the same --extra-body"):
            resumed_config(RUN, begun, other)


def test_the_run_directory_itself_is_a_good_place_for_out() -> None:
    assert resumed_config(RUN, manifest(out="runs/x"), {"out": "runs/../runs/x"}).out == "runs/x"


@pytest.mark.parametrize("change", [{"power": "wishful"}, {"max_num_seqs": 7}])
def test_settings_of_another_version_are_not_guessed(change: dict[str, Any]) -> None:
    begun = manifest_record(msgspec.structs.replace(configure(), **change), client={"loadgen": "0.1.0"})
    with pytest.raises(UsageError, match=r"loadgen 0.1.0|--power wishful"):
        resumed_config(RUN, begun, {})
