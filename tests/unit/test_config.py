"""SweepConfig: the same options from the command line, YAML and Python, and one sentence for each wrong use."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli import main
from loadgen.errors import UsageError
from loadgen.measure import config as configuring
from loadgen.measure.config import api_key, configure
from loadgen.measure.servers import source_of
from loadgen.measure.settings import options_of
from loadgen.record.cell import SweepConfig, TargetSpec, plan_blocks

URL = "http://127.0.0.1:8001"


@pytest.fixture
def from_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`loadgen sweep ARGUMENTS`, stopped once its options are understood: returns the SweepConfig."""
    monkeypatch.chdir(tmp_path)

    def understand(*arguments: str) -> SweepConfig:
        seen: list[SweepConfig] = []

        def stop_here(**options: Any) -> None:
            seen.append(configure(**options))
            raise UsageError("stopped by the test")

        monkeypatch.setattr(configuring, "configure", stop_here)
        monkeypatch.setattr(sys, "argv", ["loadgen", "sweep", *arguments])
        with pytest.raises(SystemExit):
            main()
        (config,) = seen
        return config

    return understand


def yaml(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return ["--config", str(path)]


def test_the_defaults_without_servers_are_simulated_and_short() -> None:
    config = configure()
    assert [spec.name for spec in config.targets] == ["fp16", "awq", "gptq", "bnb-nf4"]
    assert (config.mode, config.dataset, config.duration_s, config.repeats) == ("simulated", "sample", 1.0, 3)
    assert (config.concurrency, config.reference) == ((1, 16, 64, 128), "fp16")


def test_the_defaults_against_servers_are_gsm8k_and_a_minute() -> None:
    config = configure(targets={"fp16": URL})
    assert (config.mode, config.dataset, config.protocol, config.duration_s) == ("target", "gsm8k", "gsm8k", 60.0)
    assert configure(serve="fp16", model="m").dataset == "gsm8k"
    assert configure(data_file="rows.jsonl").dataset == "gsm8k", "a data file is GSM8K's also for simulated servers"


def test_the_protocol_is_the_datasets_unless_named() -> None:
    assert configure(dataset="sample").protocol == "sample"
    assert configure(dataset="gsm8k").protocol == "gsm8k"
    assert configure(dataset="sample", protocol="gsm8k").protocol == "gsm8k"


def test_a_count_of_requests_replaces_the_duration() -> None:
    config = configure(requests=256)
    assert (config.duration_s, config.requests) == (None, 256)


def test_a_target_is_named_by_precision_or_by_label_and_precision() -> None:
    config = configure(targets=[f"awq={URL}", "mine:awq=http://h:2/v1/"])
    assert config.targets == (
        TargetSpec(name="awq", precision="awq", url=URL),
        TargetSpec(name="mine", precision="awq", url="http://h:2"),
    )


def test_metrics_elsewhere_belong_to_the_only_target_or_to_the_named_one() -> None:
    page = "http://h:9/v1/metrics?model=m"
    (only,) = configure(targets={"fp16": URL}, metrics_url=("http://h:8", page)).targets
    assert only.metrics_urls == ("http://h:8/metrics", page)
    fp16, awq = configure(targets={"fp16": URL, "awq": URL}, metrics_url=[f"awq={page}"]).targets
    assert (fp16.metrics_urls, awq.metrics_urls) == ((), (page,))


def test_served_recipes_may_have_labels_and_checkpoints() -> None:
    config = configure(serve="fp16,ours:awq=org/model-awq", model="org/model")
    assert config.targets == (
        TargetSpec(name="fp16", precision="fp16"),
        TargetSpec(name="ours", precision="awq", checkpoint="org/model-awq"),
    )


def test_a_checkpoint_of_each_recipe_comes_from_a_mapping_too(from_command_line: Any, tmp_path: Path) -> None:
    wanted = configure(serve="fp16,awq=org/model-awq", model="org/model").targets
    assert configure(serve={"fp16": None, "awq": "org/model-awq"}, model="org/model").targets == wanted
    text = "model: org/model\nserve:\n  fp16:\n  awq: org/model-awq\n"
    assert from_command_line(*yaml(tmp_path, text)).targets == wanted


def test_gpus_that_share_a_model_are_given_for_all_targets_or_by_name(from_command_line: Any, tmp_path: Path) -> None:
    def shared(config: SweepConfig) -> list[int | None]:
        return [spec.tensor_parallel for spec in config.targets]

    serve = ("--serve", "fp16,awq=a/b,ours:awq=c/d", "--model", "m")
    assert shared(from_command_line(*serve)) == [None, None, None]
    assert shared(from_command_line(*serve, "--tensor-parallel", "2")) == [2, 2, 2]
    assert shared(from_command_line(*serve, "--tensor-parallel", "fp16=4, ours=2")) == [4, None, 2]
    text = "serve: fp16,awq=a/b\nmodel: m\ntensor-parallel:\n  fp16: 2\n"
    assert shared(from_command_line(*yaml(tmp_path, text))) == [2, None]
    assert shared(configure(serve="fp16,bf16", model="m", tensor_parallel={"bf16": 2})) == [None, 2]


def test_arguments_of_vllm_come_behind_two_dashes_as_a_text_or_as_a_list(
    from_command_line: Any, tmp_path: Path
) -> None:
    args = ("--enforce-eager", "--speculative-config", '{"method": "ngram"}')
    serve = ("--serve", "fp16", "--model", "m")
    text = 'serve: fp16\nmodel: m\nvllm-args: [--enforce-eager, --speculative-config, \'{"method": "ngram"}\']\n'
    for config in (
        from_command_line(*serve, "--", *args),
        from_command_line(*serve, "--vllm-args", '--enforce-eager --speculative-config \'{"method": "ngram"}\''),
        from_command_line(*yaml(tmp_path, text)),
        configure(serve="fp16", model="m", vllm_args=args),
    ):
        assert config.vllm_args == args


def test_targets_may_be_listed_in_one_text(from_command_line: Any) -> None:
    wanted = configure(targets={"fp16": "http://h:1", "mine:awq": "http://h:2"}).targets
    assert from_command_line("--target", "fp16=h:1, mine:awq=h:2,").targets == wanted
    assert configure(targets="fp16=h:1,mine:awq=h:2").targets == wanted


def test_the_reference_is_fp16_else_the_first() -> None:
    assert configure(targets={"awq": URL, "fp16": URL}).reference == "fp16"
    assert configure(targets={"awq": URL, "gptq": URL}).reference == "awq"
    assert configure(targets={"awq": URL, "gptq": URL}, reference="gptq").reference == "gptq"


def test_a_served_batch_has_room_for_the_largest_concurrency() -> None:
    assert configure(serve="fp16", model="m", concurrency=[4, 64, 1]).max_num_seqs >= 64
    assert configure(serve="fp16", model="m", max_num_seqs=8).max_num_seqs == 8


def test_the_key_is_read_from_the_environment_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    config = configure(api_key_env="SOME_KEY")
    assert api_key(config) == "secret"
    assert "secret" not in repr(config)


def test_simulated_servers_take_a_longer_model_length() -> None:
    config = configure(max_model_len=16384)
    argv = list(source_of(config).plan(config.targets[0], 8001).argv)
    assert argv[argv.index("--max-model-len") + 1] == "16384"


def test_an_open_loop_has_one_cap_and_longer_simulated_windows() -> None:
    config = configure(arrival="poisson:20.0", slo="ttft:0.2s")
    assert (config.arrival, config.concurrency, config.duration_s) == ("poisson:20", (1024,), 10.0)
    assert config.slo == "ttft:200ms"
    assert config.load == "poisson:20, at most 1024 in flight"
    assert configure(arrival="constant:2", targets={"fp16": URL}, concurrency="64").concurrency == (64,)
    assert configure(arrival="constant:2", targets={"fp16": URL}).duration_s == 60.0
    assert configure(arrival="constant:2", requests=5).requests == 5, "no slot has to be refilled"
    assert configure().concurrency == (1, 16, 64, 128)


def test_each_target_may_have_its_own_arrivals() -> None:
    config = configure(targets={"fp16": URL, "mine:awq": "http://h:2"}, arrival="FP16=poisson:5,10, mine=poisson:7.5")
    assert [spec.arrival for spec in config.targets] == ["poisson:5,10", "poisson:7.5"]
    assert config.load == "fp16=poisson:5,10,mine=poisson:7.5, at most 1024 in flight"
    assert configure(**options_of(config)) == config, "what --resume gives back"
    planned = [cell for block in plan_blocks(config.targets, (64,), 2, config.arrival) for cell in block.cells]
    assert [(cell.index, cell.target, cell.rate_asked_per_s) for cell in planned] == [
        (1, "fp16", 5), (2, "fp16", 10), (3, "mine", 7.5), (4, "mine", 7.5), (5, "fp16", 10), (6, "fp16", 5)
    ]  # fmt: skip
    one = configure(targets={"fp16": URL, "awq": "http://h:2"}, arrival="fp16=none,awq=poisson:2")
    assert [block.target.name for block in plan_blocks(one.targets, (64,), 2, one.arrival)] == ["awq", "awq"]


def test_a_server_launched_for_an_open_loop_has_the_largest_batch_that_is_usual() -> None:
    served: dict[str, Any] = {"serve": "fp16", "model": "some/model", "arrival": "poisson:2"}
    assert configure(**served).max_num_seqs == 256
    assert configure(**served, max_num_seqs=64).max_num_seqs == 64


def test_yaml_means_what_the_command_line_means(from_command_line: Any, tmp_path: Path) -> None:
    by_file = from_command_line(
        *yaml(
            tmp_path,
            f"target:\n  fp16: {URL}\n  mine:awq: http://h:2\nconcurrency: [1, 16]\nrepeats: 2\nduration: 2.5\n"
            "limit: 10\nfixed-length: 64\nquiet: true\nreference: mine\n",
        )
    )
    by_options = from_command_line(
        "--target", f"fp16={URL}", "--target", "mine:awq=http://h:2", "--concurrency", "1,16", "--repeats", "2",
        "--duration", "2.5", "--limit", "10", "--fixed-length", "64", "--quiet", "--reference", "mine",
    )  # fmt: skip
    assert by_file == by_options
    assert by_file == configure(
        targets={"fp16": URL, "mine:awq": "http://h:2"}, concurrency=[1, 16], repeats=2, duration=2.5, limit=10,
        fixed_length=64, reference="mine",
    )  # fmt: skip


@pytest.mark.parametrize("text", [f"target: fp16={URL}", f"target: [fp16={URL}]", f"target: {{fp16: '{URL}'}}"])
def test_yaml_targets_are_a_mapping_a_list_or_one_string(from_command_line: Any, tmp_path: Path, text: str) -> None:
    assert from_command_line(*yaml(tmp_path, text)).targets == (TargetSpec(name="fp16", precision="fp16", url=URL),)


def test_the_extra_body_is_json_or_an_object(from_command_line: Any, tmp_path: Path) -> None:
    for config in (
        from_command_line("--extra-body", '{"top_k": 1, "seed": null}'),
        from_command_line(*yaml(tmp_path, "extra-body:\n  top_k: 1\n  seed: null\n")),
        configure(extra_body={"top_k": 1, "seed": None}),
    ):
        assert config.extra_body == {"top_k": 1, "seed": None}


def test_an_option_that_is_a_list_may_be_given_in_parts(from_command_line: Any, tmp_path: Path) -> None:
    parts = from_command_line("--serve", "fp16", "--serve", "AWQ=a/b,", "--model", "m", "--concurrency", "1-2",
                              "--concurrency", "16, 64,")  # fmt: skip
    assert parts == from_command_line("--serve", "fp16,awq=a/b", "--model", "m", "--concurrency", "1,2,16,64")
    text = "Serve: [fp16, AWQ=a/b]\nmodel: m\nconcurrency: [1-2, 16, 64]\nduration: 2m\n"
    by_file = from_command_line(*yaml(tmp_path, text))
    assert by_file == configure(serve=["fp16", "awq=a/b"], model="m", concurrency=[1, 2, 16, 64], duration="2m")
    assert by_file == from_command_line("--serve", "fp16,awq=a/b", "--model", "m", "--concurrency", "1..2,16,64",
                                        "--duration", "120")  # fmt: skip


def test_yaml_single_values_and_empty_ones(from_command_line: Any, tmp_path: Path) -> None:
    config = from_command_line(*yaml(tmp_path, "concurrency: 8\nlimit:\n"))
    assert (config.concurrency, config.limit) == ((8,), None)


def test_the_command_line_wins_over_yaml(from_command_line: Any, tmp_path: Path) -> None:
    config = from_command_line(*yaml(tmp_path, "repeats: 2\nseed: 5\n"), "--repeats", "7")
    assert (config.repeats, config.seed) == (7, 5)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"concurrency": ""}, "--concurrency: '' is not a valid batch size"),
    ({"concurrency": []}, "--concurrency is empty"),
    ({"concurrency": "9" * 5000}, "is not a valid batch size"),
    ({"repeats": 10**400}, "--repeats beyond 1e+18: give a finite number above zero"),
    ({"warmup": 10**400}, "--warmup beyond 1e+18"),
    ({"wait_ready": 10**400}, "--wait-ready beyond 1e+18"),
    ({"concurrency": "0"}, "'0' is not a valid batch size"),
    ({"concurrency": "-1"}, "'-1' is not a valid batch size"),
    ({"concurrency": "1,,4"}, "'' is not a valid batch size"),
    ({"concurrency": "1,1"}, "1 is listed twice"),
    ({"concurrency": "1.5"}, "'1.5' is not a valid batch size"),
    ({"concurrency": [1, True]}, "'True' is not a valid batch size"),
    ({"concurrency": "abc"}, "'abc' is not a valid batch size"),
    ({"targets": ["fp17=http://h:1"]}, "'fp17' is not a valid precision; did you mean fp16?"),
    ({"targets": ["mine:fp17=http://h:1"]}, "'fp17' is not a valid precision"),
    ({"targets": ["fp16=http://h:1", "fp16=http://h:2"]}, "target 'fp16' is listed twice"),
    ({"targets": ["fp16"]}, "write NAME=URL"),
    ({"targets": [""]}, "write NAME=URL"),
    ({"targets": ["=http://h:1"]}, "write NAME=URL"),
    ({"targets": ["a b:fp16=http://h:1"]}, "'a b' is not a valid name"),
    ({"targets": ["../x:fp16=http://h:1"]}, "'../x' is not a valid name"),
    ({"targets": ["fp16="]}, "'' is not a server URL"),
    ({"targets": ["fp16=h"]}, "--target fp16: 'h' has no port; write it, as in http://h:8000"),
    ({"targets": ["fp16=8001"]}, "8001 is only a port; write http://127.0.0.1:8001"),
    ({"targets": ["fp16=http:/h:8001"]}, "is not a server URL"),
    ({"targets": {"fp16": None}}, "'' is not a server URL"),
    ({"targets": ["fp16=ftp://h:1"]}, "is not a server URL"),
    ({"targets": ["fp16=http://"]}, "is not a server URL"),
    ({"targets": ["fp16=http://h:99999"]}, "is not a server URL"),
    ({"targets": ["fp16=http://h:x"]}, "is not a server URL"),
    ({"targets": ["fp16=http://[::1"]}, "is not a server URL"),
    ({"targets": ["fp16=http://a..b:1"]}, "is not a server URL"),
    ({"targets": ["fp16=http://h:1/?a=b"]}, "--target fp16: omit what follows ? or # in the URL; give a key with"),
    ({"metrics_url": ["http://h:1"]}, "--metrics-url http://h:1 needs --target"),
    ({"targets": {"fp16": URL}, "metrics_url": ["awq=http://h:1"]}, "no target is called awq; the targets are fp16"),
    ({"targets": {"fp16": URL}, "metrics_url": ["ftp://h:1/metrics"]}, "write http://HOST:PORT/metrics"),
    ({"targets": {"fp16": URL}, "metrics_url": ["http://u:p@h:1"]}, "omit user and password from the URL"),
    ({"targets": {"fp16": URL}, "metrics_url": ["http://h:1", "http://h:1/metrics"]}, "is listed twice for fp16"),
    ({"targets": {"fp16": URL, "awq": URL}, "metrics_url": ["http://h:1"]}, "name its target, as in fp16=http://h:1"),
    ({"targets": {"fp16": URL}, "serve": "awq"}, "--target and --serve exclude each other"),
    ({"serve": "fp17", "model": "m"}, "fp17"),
    ({"serve": "fp16,,awq", "model": "m"}, "'' is not a valid name"),
    ({"serve": "fp16,fp16", "model": "m"}, "target 'fp16' is listed twice"),
    ({"serve": "fp16"}, "--serve needs --model"),
    *(
        ({"serve": "fp16,awq=a/b", "model": "m", "tensor_parallel": given}, f"--tensor-parallel {said}")
        for given, said in (
            (0, "0: give a number of GPUs from 1"),
            ("x", "x: give a number of GPUs"),
            ("fp16=-1", "fp16=-1: give a"),
            ("fp16=2,2", "2: fp16 has a number already"),
            ("gptq=2", "gptq=2: no such target; the targets are fp16"),
        )
    ),
    ({"tensor_parallel": 2}, "--tensor-parallel 2 needs --serve"),
    ({"targets": {"fp16": URL}, "max_model_len": 8192}, "--max-model-len 8192 needs --serve"),
    ({"serve": "fp16", "model": "m", "max_model_len": 64, "max_tokens": 64}, "--max-model-len 64: no room for a"),
    ({"vllm_args": "--enforce-eager"}, "--vllm-args --enforce-eager needs --serve"),
    *(
        ({"serve": "fp16", "model": "m", "vllm_args": given}, f"--vllm-args: {said}")
        for given, said in (
            (["enforce-eager"], "'enforce-eager' is not an option of vLLM"),
            ("--port 1", "--port: loadgen chooses where its servers listen"),
            ("--max_num_seqs=8", "--max_num_seqs: give --max-num-seqs before the `--`"),
            ("--tensor-parallel-s 2", "--tensor-parallel-s: give --tensor-parallel before the `--`"),
            ("-tp=2", "-tp: give --tensor-parallel before the `--`"),
            ("-q awq", "-q: the recipe decides it"),
            ("--enforce-eager --stream-interval 4", "--stream-interval: one event per token"),
            ("--api-key abc", "--api-key: every user of this machine can read a command line: set VLLM_API_KEY"),
            ("--my-secret-key abcdefgh", "they hold a secret"),
        )
    ),
    ({"serve": "fp16", "model": "m", "vllm_args": "--x 'y"}, "--vllm-args --x 'y: No closing quotation"),
    ({"serve": "fp16", "model": "./none"}, "--model ./none: there is no such folder"),
    ({"model": "m"}, "--model m needs --serve or --target"),
    ({"vllm": "vllm"}, "--vllm vllm needs --serve"),
    ({"targets": {"fp16": URL}, "max_num_seqs": 8}, "--max-num-seqs 8 needs --serve"),
    ({"requests": 255}, "--requests 255: B = 128 needs at least 256"),
    ({"duration": 5.0, "requests": 5}, "--duration and --requests exclude each other"),
    ({"max_tokens": 5, "fixed_length": 5}, "--max-tokens and --fixed-length exclude each other"),
    ({"warmup": -1.0}, "--warmup -1: give zero or more seconds"),
    ({"max_error_rate": 1.0}, "--max-error-rate 1: give a share from 0 up to, but not including, 1"),
    ({"max_error_rate": float("nan")}, "--max-error-rate nan: give a share from 0 up to, but not including, 1"),
    ({"arrival": "poisson:3", "workers": 2}, "--workers 2 is for a closed loop; with --arrival poisson:3"),
    ({"slo": "itl:20ms"}, "--slo itl:20ms: 'itl' is not a latency of a request; write ttft, tpot, e2e"),
    ({"warmup": math.nan}, "--warmup nan"),
    ({"extra_body": "top_k=1"}, "--extra-body top_k=1: not JSON"),
    ({"extra_body": "[1]"}, "--extra-body [1]: not a JSON object"),
    *(
        ({"extra_body": {name: None}}, f"--extra-body: '{name}' cannot be changed, loadgen sets it")
        for name in ("model", "prompt", "messages", "stream")
    ),
    ({"extra_body": {"max_tokens": 9}}, "--extra-body: 'max_tokens' is set by --max-tokens 9"),
    ({"extra_body": {"n": 2}}, "--extra-body: 'n' is 2, but one answer per request is measured"),
    ({"wait_ready": -1.0, "targets": {"fp16": URL}}, "--wait-ready -1: give zero or more seconds"),
    ({"wait_ready": 5.0}, "--wait-ready 5 needs --target"),
    ({"drain": 0.0}, "--drain 0: give a finite number above zero"),
    ({"seed": -1}, "--seed -1: give a whole number"),
    ({"seed": 2**63}, "--seed 9223372036854775808: give a whole number"),
    ({"api": "embeddings"}, "--api embeddings: unknown; write completions or chat"),
    ({"transport": "curl"}, "--transport curl: unknown; write raw or openai"),
    ({"device": "tpu"}, "--device tpu: unknown; did you mean cpu? write cuda or cpu"),
    ({"reference": "fp8"}, "--reference fp8: no such target; the targets are fp16, awq, gptq, bnb-nf4"),
    (
        {"api_key_env": "NO_SUCH_VARIABLE"},
        "--api-key-env NO_SUCH_VARIABLE: the environment has no variable of that name, or it is empty",
    ),
    ({"power": "exporter=http://u:p@h:1"}, "--power exporter: omit user and password from the URL"),
    ({"arrival": "poisson"}, "--arrival poisson: write closed, poisson:RATE or constant:RATE"),
    (
        {"arrival": "poisson:3", "concurrency": [16, 64]},
        "--concurrency 16,64: with --arrival poisson:3 it is the most requests in flight; give one number",
    ),
    ({"arrival": "fp16=poisson:3"}, "--arrival fp16=poisson:3: awq has none; give every target its own"),
    ({"arrival": "fp8=poisson:3"}, "--arrival fp8=poisson:3: no such target; the targets are fp16, awq, gptq, bnb-nf4"),
    ({"arrival": "fp16=closed"}, "--arrival fp16=closed: a target's own arrivals are poisson:RATE, constant:RATE or"),
    ({"arrival": "fp16=poisson:3,fp16=poisson:4"}, "fp16 is listed twice; write all its rates once"),
    (
        {"arrival": "fp16=poisson:3,awq=constant:4,gptq=poisson:1,bnb-nf4=poisson:2"},
        "give rates of one kind, poisson or constant, to all targets",
    ),
    ({"power": "nvml"}, "--power nvml measures a real machine, but these servers are simulated"),
    ({"power": "exporter=here"}, "--power exporter: 'here' has no port; write it, as in http://here:9401"),
    ({"tdp_w": -700.0}, "--tdp-w -700"),
    ({"carbon": 0.0}, "--carbon 0"),
    ({"start_sd": "1.5"}, "--start-sd 1.5: give a standard deviation above 0 and below 50%, as in 1.5%"),
    ({"start_sd": "small"}, "--start-sd small: not a share; write it as in 0.1 or 10%"),
    ({"start_sd": "0%"}, "--start-sd 0: give a standard deviation"),
    ({"gpu": "GPU-1,,GPU-2"}, "--gpu GPU-1,,GPU-2: name each GPU's UUID once"),
    *(
        ({option: number}, f"--{option.replace('_', '-')} {number:g}: give a finite number above zero")
        for option in ("limit", "requests", "repeats", "max_tokens", "fixed_length", "duration", "timeout")
        for number in (0, -1)
    ),
    *(
        ({option: number}, f"--{option} {number:g}: give a finite number above zero")
        for option in ("duration", "timeout")
        for number in (math.nan, math.inf)
    ),
]


@pytest.mark.parametrize(("options", "sentence"), WRONG, ids=[str(options) for options, _ in WRONG])
def test_wrong_use_is_one_sentence_that_names_the_value(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        configure(**options)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_given_instead_of_its_variables_name_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        configure(api_key_env="hf_canary0123456789")
    assert str(caught.value) == "--api-key-env: the environment has no variable of that name, or it is empty"


@pytest.mark.parametrize("key", ["sk-1234\n", "sk-1234\r\nX-Evil: 1", "sk 1234", "schlüssel"])
def test_a_key_that_would_break_a_header_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("A_KEY", key)
    with pytest.raises(UsageError, match="--api-key-env A_KEY: the key holds a space") as caught:
        configure(api_key_env="A_KEY")
    assert "1234" not in str(caught.value)


def test_the_noise_between_starts_is_stated_in_percent_or_as_a_share() -> None:
    assert configure(start_sd="1.5%").start_sd == pytest.approx(0.015)
    assert configure(start_sd=0.015).start_sd == pytest.approx(0.015)
    assert configure().start_sd is None
