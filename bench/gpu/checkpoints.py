"""Writes checkpoints of a public shape with random weights, in 16 bits and in each format, and a tokenizer of its size.

Runs under the Python of the server environment (torch, safetensors, tokenizers, transformers):

    PYTHON -m bench.gpu.checkpoints --out MODELS --model Mistral-7B-v0.3 --formats awq,gptq,fp8

All formats hold the same weights, rounded to nearest: `awq` and `gptq` in groups of 128 along the input, `int8` and
`fp8` as compressed-tensors with a scale per output channel. vLLM's own dummy weights are not used: they leave the
packed integers of AWQ and GPTQ at what the memory held, mostly zeros, which draw less power than weights do, and
bitsandbytes quantizes while it loads, so it needs a file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import string
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.gpu.shapes import FORMATS, GROUP, SHAPES, Format, ModelShape, config, load_shapes

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "servers" / "cpu"))
import four_bits  # noqa: E402
from make_tiny_model import BOS, CHAT_TEMPLATE, EOS, PAD, quantization_config, quantize, texts, train_tokenizer  # noqa: E402

SAMPLE = PROJECT / "loadgen" / "workload" / "sample.jsonl"
MERGED = 4096
"""At most so many tokens are learnt from text; the rest of the vocabulary is made up."""
SHARD_BYTES = 2e9
Tensors = dict[str, torch.Tensor]


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Exactly `vocabulary` tokens: byte-level BPE on the shipped problems, then letters that no text becomes but that
    read as text when a model of random weights emits them."""
    learnt = train_tokenizer(texts([SAMPLE]), min(MERGED, vocabulary), pre_tokenizers.ByteLevel(add_prefix_space=False))
    content = json.loads(learnt.backend_tokenizer.to_str())
    known: dict[str, int] = content["model"]["vocab"]
    spelt = (itertools.product(string.ascii_letters, repeat=length) for length in itertools.count(2))
    unknown = (word for letters in itertools.chain.from_iterable(spelt) if (word := "".join(letters)) not in known)
    for identity in range(len(known), vocabulary):
        known[next(unknown)] = identity
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=learnt.model_max_length,
    )


def shards(shape: ModelShape, seed: int, device: str) -> Iterator[Tensors]:
    """The 16-bit tensors, some layers at a time, embedding and head first; scaled so that activations stay in range."""
    generator = torch.Generator(device).manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        values = torch.randn(rows, columns, generator=generator, device=device)
        return (values / math.sqrt(columns)).to(torch.bfloat16)

    def ones(count: int) -> torch.Tensor:
        return torch.ones(count, dtype=torch.bfloat16, device=device)

    first = {"model.norm.weight": ones(shape.hidden)}
    first["model.embed_tokens.weight"] = matrix(shape.vocabulary, shape.hidden)
    if not shape.tied:
        first["lm_head.weight"] = matrix(shape.vocabulary, shape.hidden)
    yield first
    tensors: Tensors = {}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        tensors |= {f"{prefix}.{name}.weight": ones(count) for name, count in shape.norms.items()}
        tensors |= {f"{prefix}.{name}.weight": matrix(*size) for name, size in shape.linears.items()}
        if sum(tensor.nbytes for tensor in tensors.values()) > SHARD_BYTES or layer == shape.layers - 1:
            yield tensors
            tensors = {}


def in_format(tensors: Tensors, kind: Format) -> Tensors:
    """The same tensors with every linear map's weight replaced by what the format stores."""
    if kind in ("int8", "fp8"):
        return quantize(tensors, "int" if kind == "int8" else "float")
    return four_bits.quantize(tensors, kind, GROUP)


def write_model(
    name: str, shape: ModelShape, kinds: tuple[Format, ...], out: Path, *, device: str, seed: int = 0
) -> None:
    """The folders NAME and NAME-FORMAT in `out`; those that are whole already stay. config.json is written last."""
    folders: dict[Format | None, Path] = {None: out / name, **{kind: out / f"{name}-{kind}" for kind in kinds}}
    configs = {kind: config(shape, _quantization(kind)) for kind in folders}
    todo = {kind: folder for kind, folder in folders.items() if not _is_whole(folder, configs[kind])}
    if not todo:
        return
    tokenizer = make_tokenizer(shape.vocabulary)
    for folder in todo.values():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
    maps: dict[Format | None, dict[str, str]] = {kind: {} for kind in todo}
    for number, tensors in enumerate(shards(shape, seed, device)):
        file, written = f"model-{number:05d}.safetensors", None
        for kind, folder in todo.items():
            stored = in_format(tensors, kind) if kind and number else tensors
            if number == 0 and written is not None:
                # Embedding, norm and head are the same bytes in every format.
                (folder / file).unlink(missing_ok=True)
                os.link(written, folder / file)
            else:
                on_cpu = {key: tensor.cpu() for key, tensor in stored.items()}
                save_file(on_cpu, folder / file, metadata={"format": "pt"})
                written = folder / file
            maps[kind] |= dict.fromkeys(stored, file)
    for kind, folder in todo.items():
        index = {"metadata": {}, "weight_map": maps[kind]}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(configs[kind], indent=2) + "\n", encoding="utf-8")


def _quantization(kind: Format | None) -> dict[str, object] | None:
    if kind is None:
        return None
    if kind in ("awq", "gptq"):
        return four_bits.config(kind, GROUP)
    return quantization_config("int" if kind == "int8" else "float")


def _is_whole(folder: Path, expected: dict[str, object]) -> bool:
    try:
        return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")) == expected)
    except (OSError, ValueError):
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description="Write checkpoints of a public shape with random weights.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", required=True, help="a table of the shapes file")
    parser.add_argument("--formats", default="", help=f"comma-separated, of {', '.join(FORMATS)}")
    parser.add_argument("--shapes", type=Path, default=SHAPES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    kinds = tuple(kind for kind in FORMATS if kind in options.formats.split(","))
    shape, begun = load_shapes(options.shapes)[options.model], time.monotonic()
    write_model(options.model, shape, kinds, options.out, device=options.device)
    print(f"{options.model}: {shape.parameters:,} parameters, {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    main()
