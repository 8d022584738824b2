"""A real model, served by vLLM in all four precisions of the paper's table and in INT8."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import loadgen
from loadgen.serving.environment import default_environment
from loadgen.serving.requirements import CPU_INFO

pytestmark = pytest.mark.vllm


@pytest.mark.skipif("avx512f" not in CPU_INFO.read_text().split(), reason="AWQ and GPTQ need AVX-512 (avx512f)")
def test_each_is_served_as_its_recipe_says_and_every_token_is_recorded(tmp_path: Path) -> None:
    """Whether a cell is valid is not asked: other tests run beside it."""
    built = command("cpu-env", "--smollm2")
    assert built.returncode == 0, built.stdout + built.stderr
    assert "--serve bf16,awq,gptq,bnb-nf4,int8 " in built.stdout
    out = tmp_path / "run"
    swept = command(
        "sweep", "--serve", "bf16,awq,gptq,bnb-nf4,int8", "--model", default_environment().smollm2, "--device", "cpu",
        "--concurrency", "4", "--dataset", "sample", "--max-tokens", "40", "--duration", "6", "--repeats", "1",
        "--out", out,
    )  # fmt: skip
    print(swept.stdout, swept.stderr)
    run = loadgen.load_run(out)
    assert len(run.cells) == 5
    assert (run.requests["status"] == "ok").all()
    assert (run.cells["server_tokens"] == run.cells["recorded_tokens"]).all()
    servers = {server.name: server for server in run.manifest.servers}
    for name in ("awq", "gptq"):
        assert any("WNA16" in kernel for kernel in servers[name].kernels), servers[name].kernels
    assert all("4-bit weights" in server.note for server in servers.values())


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadgen", *map(str, arguments)], capture_output=True, text=True, check=False
    )
