"""The GPU kit's checkpoints, under the server environment's torch: packed as vLLM packs, and of the stated sizes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from loadgen.serving.environment import CpuEnvironment

pytestmark = pytest.mark.vllm

PROJECT = Path(__file__).parents[2]

PACKED = """
import torch
from bench.gpu.checkpoints import GROUP, four_bits, make_tokenizer
from vllm.model_executor.layers.quantization.utils.quant_utils import awq_pack, gptq_pack, unpack_cols

def spread(groups):  # [in / 128, out] -> [in, out]
    return groups.repeat_interleave(GROUP, dim=0)

def unpack_rows(packed):
    return unpack_cols(packed.t().contiguous(), 4, packed.shape[1], packed.shape[0] * 8).t()

torch.manual_seed(0)
weight = torch.randn(256, 512) / 20
four = four_bits.gptq(weight, GROUP)
q = unpack_rows(four["qweight"]).int()
assert torch.equal(gptq_pack(q.contiguous(), 4, 512, 256), four["qweight"])
assert torch.equal(unpack_cols(four["qzeros"], 4, 4, 256), torch.full((4, 256), 7, dtype=torch.int32))
assert torch.equal(four["g_idx"], torch.arange(512, dtype=torch.int32) // 128)
scales = spread(four["scales"].float())
assert ((q - 8) * scales - weight.t()).abs().le(0.51 * scales).all(), "rounded to nearest"

four = four_bits.awq(weight, GROUP)
order = [0, 4, 1, 5, 2, 6, 3, 7]  # undoes AWQ's even columns first
def plain(packed, rows):
    return unpack_cols(packed, 4, rows, 256).reshape(-1, 8)[:, order].reshape(rows, 256)
q, zeros = plain(four["qweight"], 512), plain(four["qzeros"], 4)
assert torch.equal(awq_pack(q.int(), 4, 512, 256), four["qweight"])
scales = spread(four["scales"].float())
error = ((q - spread(zeros)) * scales - weight.t()).abs()
assert error.le(1.01 * scales).all() and error.le(0.51 * scales).float().mean() > 0.99, "rounded to nearest"

for vocabulary in (512, 32768):
    tokenizer = make_tokenizer(vocabulary)
    assert len(tokenizer) == vocabulary == len(set(tokenizer.get_vocab().values()))
    assert all(tokenizer.decode([token]) for token in range(300, vocabulary, 997))
text = "A box holds 6 eggs. How many are in 4 boxes?"
assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
"""


def run(environment: CpuEnvironment, *arguments: str) -> str:
    done = subprocess.run([environment.python, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_four_bit_weights_are_packed_as_vllm_packs_them_and_the_vocabulary_is_exact(
    cpu_environment: CpuEnvironment,
) -> None:
    run(cpu_environment, "-c", PACKED)


def test_checkpoints_of_a_shape_are_written_once_and_share_what_is_equal(
    cpu_environment: CpuEnvironment, tmp_path: Path
) -> None:
    write = (
        "-m",
        "bench.gpu.checkpoints",
        "--out",
        str(tmp_path),
        "--model",
        "rehearsal",
        "--formats",
        "awq,gptq,int8,fp8",
    )
    assert "11,542,784 parameters" in run(cpu_environment, *write)
    plain = tmp_path / "rehearsal" / "model-00000.safetensors"
    for kind in ("awq", "gptq", "int8", "fp8"):
        folder = tmp_path / f"rehearsal-{kind}"
        assert (
            json.loads((folder / "config.json").read_text())["loadgen_note"] == "random weights: speed and energy only"
        )
        assert (folder / "model-00000.safetensors").samefile(plain), "embedding, norm and head"
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        part = "qweight" if kind in ("awq", "gptq") else "weight_scale"
        assert f"model.layers.15.mlp.down_proj.{part}" in index
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    run(cpu_environment, *write)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
