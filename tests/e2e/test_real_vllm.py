"""The main job on real vLLM servers on this machine's CPU: true tokens, true batch, refusals for the right reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from published import FOLDER

import loadgen
from loadgen.serving.environment import CpuEnvironment

pytestmark = pytest.mark.vllm

GSM8K = FOLDER / "gsm8k_test.jsonl"


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadgen", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def tiny(cpu_environment: CpuEnvironment) -> Path:
    """The 16-bit tiny model."""
    return cpu_environment.model


def gsm8k() -> list[str | Path]:
    """The published test split where it is at hand, else the shipped questions."""
    return ["--dataset", "gsm8k", "--data-file", GSM8K] if GSM8K.exists() else ["--dataset", "sample"]


def test_three_precisions_in_one_command(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    swept = command(
        "sweep", "--serve", "bf16,bnb-nf4,int8", "--model", tiny, "--device", "cpu", "--concurrency", "1,16",
        *gsm8k(), "--max-tokens", "40", "--duration", "6", "--repeats", "1", "--out", out,
    )  # fmt: skip
    print(swept.stdout, swept.stderr)
    run = loadgen.load_run(out)
    cells = run.cells
    assert len(cells) == 3 * 2
    failed = run.requests[run.requests["status"] != "ok"]
    print(failed[["target", "concurrency", "repeat", "phase", "slot", "t_send_ns", "t_end_ns", "status", "error"]])
    # A request that fails on a starved machine is told, and its cell's token count unknown; more than one is a fault.
    assert len(failed) == cells["failures"].sum() <= 1, list(cells["first_failure"])
    assert sum("of its requests failed" in told for told in run.analysis.warnings) == len(failed)
    whole = cells[cells["failures"] == 0]
    assert (whole["server_tokens"] == whole["recorded_tokens"]).all(), "recorded requests and server count differ"
    valid, invalid = cells[cells["valid"]], cells[~cells["valid"]]
    assert ((valid["running_mean"] / valid["concurrency"] - 1).abs() <= 0.03).all()
    # Other work on this machine starves server or client now and then: such a cell must say so, and nothing else.
    slow = invalid["running_mean"] < 0.97 * invalid["concurrency"]
    queued = invalid["waiting_mean"] > 0.03 * invalid["concurrency"]
    unended = invalid["requests"] == 0
    client = invalid["reasons"].str.contains("client-bound")
    assert (slow | queued | unended | client | (invalid["errors"] > 0)).all(), list(invalid["reasons"])
    assert set(valid["concurrency"]) == {1, 16}, list(invalid["reasons"])
    assert set(valid["target"]) == {"bf16", "bnb-nf4", "int8"}, list(invalid["reasons"])
    assert swept.returncode == (0 if run.complete else 1)
    assert not run.manifest.simulated
    servers = {server.name: server for server in run.manifest.servers}
    assert servers["bf16"].version.startswith("0.32")
    assert "vllm:num_requests_running" in servers["bf16"].metric_names
    assert any("Int8" in kernel for kernel in servers["int8"].kernels)
    assert "bitsandbytes" in servers["bnb-nf4"].argv
    assert "SIMULATED" not in (out / "report.html").read_text()


def test_a_server_that_caps_its_batch_makes_the_cell_invalid(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    swept = command(
        "sweep", "--serve", "bf16", "--model", tiny, "--device", "cpu", "--concurrency", "16", "--max-num-seqs", "8",
        "--dataset", "synthetic:30-120/40", "--duration", "6", "--repeats", "1", "--out", out,
    )  # fmt: skip
    assert swept.returncode == 1, swept.stdout + swept.stderr
    run = loadgen.load_run(out)
    (cell,) = run.cells.to_dict("records")
    answered = run.requests[(run.requests["status"] == "ok") & (run.requests["phase"] == "measured")]
    assert len({*answered["prompt_tokens"]}) > 5
    assert (answered["prompt_tokens"] == answered["prompt_tokens_asked"]).all(), "by the served tokenizer"
    assert (answered["output_tokens"] == answered["output_tokens_asked"]).all()
    assert not cell["valid"]
    assert 7.0 < cell["running_mean"] <= 8.0
    assert cell["waiting_mean"] > 6
    assert "did not reach B = 16" in cell["reasons"]
    assert "--max-num-seqs" in cell["reasons"]
    assert cell["server_tokens"] == cell["recorded_tokens"]


def test_a_checkpoint_that_is_not_its_recipes_is_refused(tiny: Path, tmp_path: Path) -> None:
    """The W8A8 recipe pointed at the plain BF16 checkpoint."""
    out = tmp_path / "run"
    swept = command(
        "sweep", "--serve", f"int8={tiny}", "--model", tiny, "--device", "cpu", "--concurrency", "1",
        "--dataset", "sample", "--requests", "2", "--repeats", "1", "--out", out,
    )  # fmt: skip
    assert swept.returncode != 0
    assert "recipe 'int8' serves compressed-tensors int8/int8" in swept.stderr
    assert "has no quantization_config" in swept.stderr
    assert not out.exists(), "refused by its config.json, before anything is created or started"
