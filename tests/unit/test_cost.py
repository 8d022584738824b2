"""What a sweep costs is said before it starts, and a dry run refuses what the run would refuse, leaving nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_hub import put_in_folder
from made_run import make_run

from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.observer import Observer
from loadgen.measure.plan import cost_sentences, plan_sweep
from loadgen.measure.run import rehearse_rest, rehearse_sweep, resume_sweep, run_sweep
from loadgen.record.journal import held
from loadgen.serving.launch import plan_launch
from loadgen.serving.recipe import load_recipe

SHAPE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "vocab_size": 32000, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 4096,
}  # fmt: skip
KV_BYTES = 2 * 24 * 8 * 64 * 2
"""Bytes of one token: keys and values, layers, heads, their size, bytes of a 16-bit number."""
WEIGHTS = 3 * 2**20


class Notes(Observer):
    """Keeps what is said before a sweep."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config.json and 3 MiB of weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = put_in_folder(tmp_path / "model", SHAPE)
    (folder / "model.safetensors").write_bytes(bytes(WEIGHTS))
    return folder


def served(model: Path | str, **options: Any) -> dict[str, Any]:
    given = {"device": "cpu", "vllm": "/bin/true", "dataset": "sample", "concurrency": "4,1024", "repeats": 2}
    return {"serve": "bf16,bnb-nf4", "model": str(model), "max_tokens": 100, **given, **options}


def test_minutes_and_the_memory_of_each_server_are_said(model: Path) -> None:
    notes = Notes()
    plan = rehearse_sweep(configure(**served(model)), notes).plan
    starts, bf16, nf4 = notes.said
    assert starts.startswith(f"8 cells and 4 starts of a server: about {plan.expected_s / 60:.1f} min")
    prompt = max(len(plan.protocol.prompt(item)) for item in plan.dataset.items) / 3
    kept_gib = 1024 * (round(prompt) + 100) * KV_BYTES / 2**30
    total_gib = kept_gib + WEIGHTS / 2**30
    assert bf16 == (
        f"bf16 needs about {total_gib:.1f} GiB of memory: weights 3 MiB, keys and values {kept_gib:.1f} GiB "
        f"(B = 1024, prompts of at most about {prompt:.0f} tokens, answers of at most 100)"
    )
    assert nf4.startswith("bnb-nf4 needs about ")


def test_memory_is_shared_by_the_gpus_of_a_target(model: Path) -> None:
    notes = Notes()
    rehearse_sweep(configure(**served(model, device="cuda", tensor_parallel=4, power="none")), notes)
    whole, share = (float(notes.said[1].split(mark)[1].split()[0]) for mark in ("needs about ", "GPU memory, "))
    assert share == pytest.approx(whole / 4, abs=0.06)
    assert "on each of 4: weights" in notes.said[1]


def test_what_a_gpu_cannot_hold_is_said_with_what_to_change(model: Path) -> None:
    plan = plan_sweep(configure(**served(model, device="cuda")))
    launch = plan_launch(
        load_recipe("bf16"), model=str(model), port=1, device="cuda", max_num_seqs=1032, vllm="/bin/true"
    )
    *_, large = cost_sentences(plan, {"bf16": launch}, 80 * 2**30)
    *_, small = cost_sentences(plan, {"bf16": launch}, 8 * 2**30)
    assert small.removeprefix(large) == (
        "; that is more than the 7.4 GiB that vLLM takes of a GPU with 8.0 GiB: choose smaller --concurrency or "
        "--max-tokens, fewer bits, or more GPUs with --tensor-parallel"
    )


def test_downloads_are_said_once_for_each_checkpoint(model: Path) -> None:
    notes = Notes()
    mistral = "mistralai/Mistral-7B-Instruct-v0.3"
    rehearse_sweep(configure(**served(mistral, serve="fp16,bf16,awq", device="cuda", power="none")), notes)
    (downloads,) = [sentence for sentence in notes.said if sentence.startswith("still to download")]
    assert downloads.count(f"{mistral} 14.5 GB") == 1
    assert "solidrust/Mistral-7B-Instruct-v0.3-AWQ 4." in downloads
    assert "GB are free in" in downloads


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"serve": "int8"}, "recipe 'int8' needs a quantized checkpoint"),
        ({"out": "model"}, "--out model: exists already and is not empty"),
        ({"data_file": "none.jsonl", "dataset": "jsonl"}, "none.jsonl"),
        ({"exclusive": True}, "--exclusive cannot be checked"),
        ({"vllm": "no-such-vllm"}, "no-such-vllm"),
        ({"concurrency": "99999999", "max_num_seqs": 8}, "open files"),
        (
            {"dataset": "synthetic:6000/10", "limit": 2, "max_tokens": None},
            "bf16: 2 of 2 requests need up to 6010 tokens of prompt and answer, and it takes 4096 (max_model_len); "
            "serve it with --max-model-len 6010 or more",
        ),
    ],
    ids=str,
)
def test_a_dry_run_refuses_what_the_run_refuses(model: Path, options: dict[str, Any], said: str) -> None:
    before = sorted(Path.cwd().rglob("*"))
    sentences = []
    for start in (rehearse_sweep, run_sweep):
        with pytest.raises(UsageError) as error:
            start(configure(**served(model, **options)))
        sentences.append(str(error.value))
    assert said in sentences[0]
    assert sentences[0] == sentences[1]
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_dry_run_says_what_would_be_measured_and_where(model: Path) -> None:
    rows = Path("rows.jsonl")
    rows.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    given = served(model, dataset="jsonl", data_file=rows, out="new/run", duration="2m", power="none")
    places = rehearse_sweep(configure(**given)).places
    assert places["load"] == "B 4,1024, windows of 120 s, 2 repeats"
    assert places["questions"] == "jsonl, 1 item from rows.jsonl"
    assert places["asked by"].endswith("an answer has at most 100 tokens")
    assert places["servers"] == f"bf16: /bin/true serve {model}; bnb-nf4: /bin/true serve {model}"
    assert places["power"].startswith("not measured: ")
    assert places["run"] == "new/run, /metrics on 127.0.0.1:9402"
    assert rehearse_sweep(configure()).places["servers"] == "fp16, awq, gptq, bnb-nf4: simulated, on 127.0.0.1"
    asked = rehearse_sweep(configure(dataset="synthetic:100/16")).places["asked by"]
    assert asked.endswith("an answer has as many tokens as its request asks for")


def test_a_dry_run_of_a_run_that_is_being_measured_is_refused_as_its_resume_is(tmp_path: Path) -> None:
    make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    with held(tmp_path / "run"):
        for start in (rehearse_rest, resume_sweep):
            with pytest.raises(UsageError, match="is being measured by another loadgen"):
                start(tmp_path / "run", {})


def test_a_dry_run_leaves_no_folder(model: Path) -> None:
    before = sorted(Path.cwd().rglob("*"))
    rehearse_sweep(configure(**served(model, out="new/run")))
    rehearse_sweep(configure(**served(model)))
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_dry_run_asks_a_running_server_what_the_run_asks(model: Path) -> None:
    with pytest.raises(UsageError, match="does not answer"):
        rehearse_sweep(configure(targets={"fp16": "http://127.0.0.1:9"}, dataset="sample", power="none"))
