"""Accuracy measured, not simulated: a model trained and quantized here, served by vLLM, graded and paired."""

from __future__ import annotations

import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

import loadgen
from loadgen.analysis.run import Run
from loadgen.serving.checkpoint import local_quantization, serves
from loadgen.serving.environment import default_environment
from loadgen.serving.recipe import load_recipe
from loadgen.serving.requirements import CPU_INFO
from loadgen.workload.questions import SAMPLE_FILE

pytestmark = pytest.mark.vllm

FORMATS = ("int8", "fp8", "w4a16-gptq")
SERVES_INT4 = "avx512f" in CPU_INFO.read_text().split()
PRECISIONS = ("bf16", "bnb-nf4", "int8", "fp8", *(["w4a16"] if SERVES_INT4 else []))
ITEMS = 300
CONCURRENCY = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 16-bit model that no recipe knows, and beside it what `loadgen quantize` makes of it."""
    built = command("cpu-env", "--trained")
    assert built.returncode == 0, built.stdout + built.stderr
    folder = tmp_path_factory.mktemp("models") / "mine"
    shutil.copytree(default_environment().trained, folder)
    texts = ["--calibration", SAMPLE_FILE, "--samples", "8"]
    for arguments in (["--env"], ["--model", folder, "--to", ",".join(FORMATS), *texts]):
        made = command("quantize", *arguments)
        print(made.stderr)
        assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One sweep over problems that the model was not trained on, each asked once per precision."""
    out = tmp_path_factory.mktemp("accuracy") / "run"
    environment = default_environment()
    swept = command(
        "sweep", "--serve", ",".join(PRECISIONS), "--model", model, "--device", "cpu",
        "--dataset", "jsonl", "--data-file", environment.problems, "--protocol", "gsm8k_cot_zeroshot",
        "--concurrency", str(CONCURRENCY), "--requests", str(ITEMS), "--repeats", "1", "--out", out,
    )  # fmt: skip
    print(swept.stdout, swept.stderr)
    # 1: a short answer of a small model is written faster than a slot is refilled, so a cell's speed may be invalid.
    assert swept.returncode in (0, 1), swept.stdout + swept.stderr
    return loadgen.load_run(out)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadgen", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_made_checkpoints_are_what_was_served_and_the_manifest_says_how_they_were_made(
    model: Path, run: Run
) -> None:
    servers = {server.name: server for server in run.manifest.servers}
    assert servers["bf16"].quantized is None
    for name in ("int8", "fp8"):
        folder, record = model.with_name(f"mine-{name}"), servers[name].quantized
        assert servers[name].argv is not None
        assert str(folder) in servers[name].argv
        assert record is not None
        assert (record.format, record.model) == (name, str(model))
        assert (record.calibration is None) == (name == "fp8"), "FP8's activations are scaled while serving"
        weights = folder / "model.safetensors"
        assert record.files["model.safetensors"] == sha256(weights.read_bytes()).hexdigest()
        assert any(name in kernel.lower() for kernel in servers[name].kernels or ()), servers[name].kernels
    found = local_quantization(f"{model}-w4a16-gptq")
    assert found is not None
    assert (found.numbers, found.group_size) == ("int4", 128)
    assert serves(load_recipe("w4a16"), found)


def test_each_precision_was_asked_every_problem_once_and_each_answer_was_graded(run: Run) -> None:
    measured = run.requests[run.requests["phase"] == "measured"]
    assert not run.manifest.simulated
    assert (measured["status"] == "ok").all()
    for precision in PRECISIONS:
        asked = measured[measured["target"] == precision]
        assert sorted(asked["item_id"]) == [f"jsonl-{row:04d}" for row in range(ITEMS)]
    assert measured["outcome"].isin({"correct", "wrong", "unparsed", "truncated", "empty"}).all()


def test_the_servers_own_token_count_is_the_recorded_one(run: Run) -> None:
    assert len(run.cells) == len(PRECISIONS)
    assert (run.cells["errors"] == 0).all()
    assert (run.cells["server_tokens"] == run.cells["recorded_tokens"]).all()


def test_the_model_solves_some_problems_and_not_all(run: Run) -> None:
    accuracy = run.summary.set_index("target")["accuracy"]
    outcomes = run.requests[run.requests["phase"] == "measured"].groupby("target")["outcome"].value_counts()
    assert 0.3 < accuracy["bf16"] < 1
    for precision in PRECISIONS:
        assert accuracy[precision] == pytest.approx(outcomes[precision, "correct"] / ITEMS)


def test_answers_of_the_trained_format_end_by_themselves_and_all_verdicts_agree_on_them(run: Run) -> None:
    measured = run.requests[run.requests["phase"] == "measured"]
    stated = measured[measured["text"].str.contains(r"The answer is \d+\.$")]
    assert len(stated) > 0.9 * len(measured)
    assert (stated["finish_reason"] == "stop").all()
    assert (stated["correct"] == stated["strict"]).all()
    assert (stated["correct"] == stated["flexible"]).all()


def test_trust_is_the_ratio_of_the_accuracies_and_its_interval_holds_it(run: Run) -> None:
    accuracy = run.summary.set_index("target")["accuracy"]
    tests = {test.target: test for test in run.analysis.trust}
    assert set(tests) == set(PRECISIONS) - {"bf16"}
    for target, test in tests.items():
        ratio = accuracy[target] / accuracy["bf16"]
        assert (test.reference, test.concurrency, test.items) == ("bf16", CONCURRENCY, ITEMS)
        assert test.t_si == pytest.approx(ratio)
        assert test.t_si_lo <= ratio <= test.t_si_hi
        assert test.won - test.lost == pytest.approx(ITEMS * (accuracy[target] - accuracy["bf16"]))
        assert test.verdict in {"worse", "equivalent", "inconclusive", "better"}


def test_quantization_to_4_bits_changes_answers(run: Run) -> None:
    """Else the three servers ran the same weights."""
    (nf4,) = (test for test in run.analysis.trust if test.target == "bnb-nf4")
    assert nf4.lost + nf4.won > 0
