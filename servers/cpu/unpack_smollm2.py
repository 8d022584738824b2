"""Unpacks SmolLM2-135M-Instruct from its GGUF file and writes copies of it in four formats.

Runs under the Python of the server environment with `gguf` and `accelerate` beside it, not under loadgen's:

    python unpack_smollm2.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out MODELS

Writes `smollm2` (bfloat16) and, from these weights rounded to nearest, `smollm2-awq` and `smollm2-gptq` in groups of
64 (its width, 576, is no multiple of 128), `smollm2-int8` and `smollm2-fp8` in the compressed-tensors format with a
scale per output channel. The file's weights have 4 bits (Q4_1, groups of 32), so `smollm2` is a real model whose
16-bit weights take few values: what a precision costs in accuracy here is not what it would cost the original.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import four_bits
import torch
from make_tiny_model import quantization_config, quantize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

GROUP = 64
NOTE = "a real model, unpacked from 4-bit weights (GGUF Q4_1)"
KINDS = ("awq", "gptq", "int8", "fp8")


def unpack(gguf: Path, folder: Path) -> None:
    """The folder of the 16-bit checkpoint."""
    how = GgufConfig(gguf_file=gguf.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=how
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("_model_name_or_path", None)
    write_config(folder, config | {"loadgen_note": NOTE})


def write_config(folder: Path, config: dict[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def in_format(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The same tensors with the weight of every linear map in a layer replaced by what the format stores."""
    if kind in ("int8", "fp8"):
        return quantize(tensors, "int" if kind == "int8" else "float")
    return four_bits.quantize(tensors, kind, GROUP)


def quantization(kind: str) -> dict[str, object]:
    if kind in ("int8", "fp8"):
        return quantization_config("int" if kind == "int8" else "float")
    return four_bits.config(kind, GROUP)


def main() -> None:
    parser = argparse.ArgumentParser(description="Unpack SmolLM2-135M-Instruct for vLLM's CPU build.")
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for smollm2 and smollm2-FORMAT")
    options = parser.parse_args()

    plain = options.out / "smollm2"
    unpack(options.gguf, plain)
    tensors = load_file(plain / "model.safetensors")
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    for kind in KINDS:
        folder = plain.with_name(f"{plain.name}-{kind}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        save_file(in_format(tensors, kind), folder / "model.safetensors", metadata={"format": "pt"})
        write_config(folder, config | {"quantization_config": quantization(kind)})
    print(f"smollm2: {sum(tensor.numel() for tensor in tensors.values()):,} parameters")


if __name__ == "__main__":
    main()
