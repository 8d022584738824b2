"""The mistakes that everybody makes: one sentence says what to type, and that is taken."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from loadgen import sweep
from loadgen.cli import given_options, group, main
from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.options import SweepOptions

URL = "http://localhost:8000"
PAIR = f"--target fp16={URL} --target awq=h:1"

MISTAKES: list[tuple[str, str, str]] = [
    ("run --concurrency 16", "write loadgen sweep --concurrency 16", "sweep --concurrency 16"),
    ("bench", "write loadgen sweep", "sweep"),
    ("swep", "did you mean sweep?", "sweep"),
    (f"--target fp16={URL}", f"write loadgen sweep --target fp16={URL}", f"sweep --target fp16={URL}"),
    (URL, f"write loadgen sweep --target fp16={URL}", f"sweep --target fp16={URL}"),
    ("help", "write loadgen --help", "--help"),
    ("version", "write loadgen --version", "--version"),
    ("-v", "write a command first, as in loadgen sweep", "sweep"),
    ("download gsm8k", "write loadgen data fetch gsm8k", "data fetch gsm8k"),
    ("data gsm8k", "write loadgen data fetch gsm8k", "data fetch gsm8k"),
    ("sweep --url localhost:8000", "write --target fp16=localhost:8000", "sweep --target fp16=localhost:8000"),
    ("sweep --host gpu1 --port 8000", "write --target fp16=http://gpu1:8000", "sweep --target fp16=http://gpu1:8000"),
    ("sweep --port 8000", "write --target fp16=http://127.0.0.1:8000", "sweep --target fp16=http://127.0.0.1:8000"),
    (f"sweep {URL}", f"write --target fp16={URL}", f"sweep --target fp16={URL}"),
    (f"sweep fp16={URL} awq=h:1", f"write {PAIR}", f"sweep {PAIR}"),
    (f"sweep --target fp16={URL} awq=h:1", f"write {PAIR}", f"sweep {PAIR}"),
    (f"sweep --target {URL}", f"as in fp16={URL}", f"sweep --target fp16={URL}"),
    ("sweep --target fp16=localhost", "write it, as in http://localhost:8000", f"sweep --target fp16={URL}"),
    ("sweep --target fp16=8000", "write http://127.0.0.1:8000", "sweep --target fp16=http://127.0.0.1:8000"),
    ("sweep --target fp61=h:1", "did you mean fp16?", "sweep --target fp16=h:1"),
    (f"sweep --target fp16={URL}?key=abc", "omit what follows ? or # in the URL", f"sweep --target fp16={URL}"),
    ("sweep --api-key sk-123456", "write --api-key-env VLLM_API_KEY", "sweep --api-key-env VLLM_API_KEY"),
    ("sweep --model-name org/m", "write --model org/m", "sweep --model org/m --serve fp16"),
    ("sweep --model org/m", "add --serve fp16,awq", "sweep --model org/m --serve fp16,awq"),
    ("sweep org/m", "write --serve fp16,awq --model org/m", "sweep --serve fp16,awq --model org/m"),
    ("sweep fp16 AWQ", "write --serve fp16,awq --model ORG/MODEL", "sweep --serve fp16,awq --model ORG/MODEL"),
    ("sweep --serve fp16,awq", "as in --model Qwen/Qwen3-0.6B", "sweep --serve fp16,awq --model Qwen/Qwen3-0.6B"),
    ("sweep --model m --serve fp16 fp16", "write --serve fp16,fp16", "sweep --model m --serve fp16,b:fp16"),
    ("sweep --model m --serve fp16 awq", "write --serve fp16,awq", "sweep --model m --serve fp16,awq"),
    ("sweep --precision fp16,awq", "write --serve fp16,awq", "sweep --serve fp16,awq --model m"),
    ("sweep --batch-size 16", "write --concurrency 16", "sweep --concurrency 16"),
    ("sweep --max-concurrency 16", "write --concurrency 16", "sweep --concurrency 16"),
    ("sweep --concurency 16", "did you mean --concurrency?", "sweep --concurrency 16"),
    ("sweep --concurrency 1 16 64", "write --concurrency 1,16,64", "sweep --concurrency 1,16,64"),
    ("sweep --concurrency 1, 16, 64", "write --concurrency 1,16,64", "sweep --concurrency 1,16,64"),
    ("sweep --concurrency 128-1", "write 1-128", "sweep --concurrency 1-128"),
    ("sweep --concurrency 0,16", "as in 1,16,64 or 1..128x2", "sweep --concurrency 1..128x2"),
    ("sweep --num-prompts 1000", "write --requests 1000", "sweep --requests 1000"),
    ("sweep --request-rate 5", "write --arrival poisson:5", "sweep --arrival poisson:5"),
    ("sweep --arrival 5", "as in poisson:5", "sweep --arrival poisson:5"),
    ("sweep --arrival possion:5", "did you mean poisson?", "sweep --arrival poisson:5"),
    ("sweep --duration 10 --duration 20", "more than once (10 and 20); give it once", "sweep --duration 10"),
    ("sweep --duration 1min30", "as in 60, 90s, 2m or 1h30m", "sweep --duration 1h30m"),
    ("sweep -t 60s", "write --duration 60s", "sweep --duration 60s"),
    ("sweep --limit 1,000", "write digits only", "sweep --limit 1000"),
    ("sweep --max-error-rate 5", "as in 0.5%", "sweep --max-error-rate 0.5%"),
    ("sweep --slo ttft:200", "as in 200ms or 2s", "sweep --slo ttft:200ms"),
    ("sweep --datasets gsm8k", "write --dataset gsm8k", "sweep --dataset gsm8k"),
    ("sweep --dataset gsmk8", "did you mean gsm8k?", "sweep --dataset gsm8k"),
    ("sweep --dataset q.jsonl", "write --dataset jsonl --data-file q.jsonl", "sweep --dataset jsonl --data-file q"),
    ("sweep --protocol gsm8k_cto", "did you mean gsm8k_cot?", "sweep --protocol gsm8k_cot"),
    ("sweep --input-len 1024", "write --dataset synthetic:1024/128", "sweep --dataset synthetic:1024/128"),
    ("sweep --top-k 1", """write --extra-body '{"top_k": 1}'""", """sweep --extra-body '{"top_k": 1}'"""),
    ("sweep --gpu 0,1", "write UUIDs, as nvidia-smi -L prints them", "sweep --gpu GPU-1"),
    ("sweep --power http://h:9401", "write --power exporter=http://h:9401", "sweep --power exporter=http://h:9401"),
    ("sweep --power nvlm", "did you mean nvml?", f"sweep --power nvml --target fp16={URL}"),
    ("sweep --device gpu", "write cuda or cpu", "sweep --device cuda"),
    ("sweep --reference fp61", "did you mean fp16?", "sweep --reference fp16"),
    ("sweep --output-dir out", "write --out out", "sweep --out out"),
    ("sweep --tp 2", "write --tensor-parallel 2", "sweep --tensor-parallel 2 --serve fp16 --model m"),
    (
        "sweep --serve fp16 --model m --enforce-eager",
        "if it is vLLM's, write it behind `--`: -- --enforce-eager",
        "sweep --serve fp16 --model m -- --enforce-eager",
    ),
    ("serve fp61 --model m", "did you mean fp16?", "serve fp16 --model m"),
    (
        "serve fp16 --model m --max-num-batched-tokens 8",
        "behind `--`: -- --max-num-batched-tokens 8",
        "serve fp16 --model m -- --max-num-batched-tokens 8",
    ),
    ("serve fp16 awq --model m", "loadgen serve awq", "serve awq --model m"),
    ("simulate awq --port 1", "write --precision awq", "simulate --precision awq --port 1"),
    ("simulate --precision awk --port 1", "did you mean awq?", "simulate --precision awq --port 1"),
    ("simulate --precision awq --gpu h-100x --port 1", "did you mean h100?", "simulate --precision awq --gpu h100"),
    ("data fetch gsmk8", "did you mean gsm8k?", "data fetch gsm8k"),
    ("quantize --model m --to int-88", "did you mean int8?", "quantize --model m --to int8"),
    ("compose --serve fp61", "did you mean fp16?", "compose --serve fp16"),
    ("doctor --mode gpus", "did you mean gpu?", "doctor --mode gpu"),
    ("doctor --prometheus 9090", "write http://127.0.0.1:9090", "doctor --prometheus http://127.0.0.1:9090"),
    ("exporter 9401", "write --port 9401", "exporter --port 9401"),
    ("plan --accuracy-delta 3.72", "write it as in 0.05 or 5%", "plan --accuracy-delta 3.72%"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_API_KEY", "a-key")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """What `loadgen ARGUMENTS` says on stderr as it ends with status 2."""

    def run(arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["loadgen", *shlex.split(arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert end.value.code == 2
        assert captured.out == ""
        return captured.err

    return run


def understood(arguments: str) -> None:
    """Parses a command, and checks a sweep's options together. Raises what its user would be told."""
    words = shlex.split(arguments)
    if words[0].startswith("-"):
        assert words[0] in {option for parameter in group.get_params(click.Context(group)) for option in parameter.opts}
        return
    context = click.Context(group, info_name="loadgen")
    name, command, rest = group.resolve_command(context, words)
    assert command is not None
    with command.make_context(name, rest, parent=context):
        if name == "sweep":
            configure(**given_options(SweepOptions))


@pytest.mark.parametrize(("typed", "said", "instead"), MISTAKES, ids=[typed for typed, _, _ in MISTAKES])
def test_a_common_mistake_is_answered_with_what_to_type(
    refused: Callable[[str], str], typed: str, said: str, instead: str
) -> None:
    sentence = refused(typed)
    assert said in sentence
    assert sentence.startswith("loadgen: ")
    assert sentence.count("\n") == 1
    understood(instead)


def test_the_key_in_a_mistake_is_not_repeated(refused: Callable[[str], str]) -> None:
    for typed in ("sweep --api-key sk-123456", "sweep --target fp16=h:1?key=sk-123456", "sweep --key=sk-123456"):
        assert "123456" not in refused(typed)


def test_a_folder_that_is_a_run_is_reported_or_resumed(refused: Callable[[str], str]) -> None:
    Path("old").mkdir()
    Path("old/manifest.json").write_text("{}")
    assert "write loadgen report old" in refused("old")
    assert "write --resume old" in refused("sweep old")
    assert "write --config s.yaml" in refused("sweep s.yaml")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "h:1"}, "'url' is not an option; write targets='fp16=h:1'"),
        ({"request_rate": 5}, "'request_rate' is not an option; write arrival='poisson:5'"),
        ({"concurency": 16}, "'concurency' is not an option; did you mean concurrency?"),
        ({"duration": "1 week"}, "--duration 1 week: not a time"),
        ({"targets": {"fp61": "h:1"}}, "did you mean fp16?"),
    ],
    ids=str,
)
def test_python_says_the_same(given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as error:
        sweep(**given)  # type: ignore[arg-type]
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("request-rate: 5", "write arrival: poisson:5"),
        ("Concurency: 5", "did you mean concurrency?"),
        ("repeats: 1\nrepeats: 2", "repeats is given more than once"),
        ("max-tokens: 1\nmax_tokens: 2", "max-tokens is given more than once"),
        ("target:\n  fp16: h:1\n  fp16: h:2", "fp16 is given more than once"),
        ("duration: soon", "--duration soon: not a time"),
        ("duration: 1:30", "--duration 1:30: not a time"),
    ],
)
def test_yaml_says_the_same(refused: Callable[[str], str], text: str, said: str) -> None:
    Path("sweep.yaml").write_text(text)
    assert said in refused("sweep --config sweep.yaml")
