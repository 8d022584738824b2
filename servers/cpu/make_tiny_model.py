"""Writes tiny Llama checkpoints with random weights and a tokenizer trained on word problems.

Runs under the Python of the server environment (torch, safetensors, tokenizers, transformers), not under loadgen's:

    python make_tiny_model.py --out MODELS sample.jsonl [more.jsonl ...]

Writes `tiny` (bfloat16) and, from the same weights rounded to nearest, `tiny-int8` and `tiny-fp8` in the
compressed-tensors format: one scale per output channel, activations quantized per token while serving.
The answers are noise; the tokenizer, the checkpoint formats and the work per token are real.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

MAX_POSITIONS = 8192
VOCABULARY = 2048
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama, without its vocabulary."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


# Deep and thin: a decode step is long against the API server's work on a request (else a refill costs many steps and
# the batch is never full), and a prompt step is short against an answer.
TINY = Shape(hidden=128, intermediate=256, layers=24, heads=2, kv_heads=1)


def texts(files: list[Path]) -> Iterator[str]:
    """The strings to train on: every string value of a JSONL file's rows, every line of any other file."""
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if file.suffix == ".jsonl":
                yield from (value for value in json.loads(line).values() if isinstance(value, str))
            else:
                yield line


def train_tokenizer(
    lines: Iterable[str], vocabulary: int, pre_tokenizer: pre_tokenizers.PreTokenizer
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens that starts every text with BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
    )


def random_weights(shape: Shape, vocabulary: int, seed: int) -> dict[str, torch.Tensor]:
    """The model's tensors under Llama's names, bfloat16, scaled so that activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        values = torch.randn(rows, columns, generator=generator) / math.sqrt(columns)
        return values.to(torch.bfloat16)

    hidden, inner, kv = shape.hidden, shape.intermediate, shape.kv_heads * shape.head_dim
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    weights = {
        "model.embed_tokens.weight": matrix(vocabulary, hidden),
        "model.norm.weight": ones.clone(),
        "lm_head.weight": matrix(vocabulary, hidden),
    }
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.input_layernorm.weight": ones.clone(),
            f"{name}.post_attention_layernorm.weight": ones.clone(),
            f"{name}.self_attn.q_proj.weight": matrix(hidden, hidden),
            f"{name}.self_attn.k_proj.weight": matrix(kv, hidden),
            f"{name}.self_attn.v_proj.weight": matrix(kv, hidden),
            f"{name}.self_attn.o_proj.weight": matrix(hidden, hidden),
            f"{name}.mlp.gate_proj.weight": matrix(inner, hidden),
            f"{name}.mlp.up_proj.weight": matrix(inner, hidden),
            f"{name}.mlp.down_proj.weight": matrix(hidden, inner),
        }
    return weights


def quantize(weights: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The same tensors with every linear layer's weight in 8 bits and a `weight_scale` [out, 1] beside it."""
    limit = 127.0 if kind == "int" else float(torch.finfo(torch.float8_e4m3fn).max)
    quantized: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if "_proj." not in name:
            quantized[name] = weight
            continue
        scale = weight.float().abs().amax(dim=1, keepdim=True) / limit
        scaled = (weight.float() / scale).clamp(-limit, limit)
        quantized[name] = scaled.round().to(torch.int8) if kind == "int" else scaled.to(torch.float8_e4m3fn)
        quantized[name.replace(".weight", ".weight_scale")] = scale
    return quantized


def quantization_config(kind: str) -> dict[str, object]:
    """The `quantization_config` of config.json in the compressed-tensors schema; `kind` is `int` or `float`."""
    eight_bits = {"num_bits": 8, "type": kind, "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": f"{kind}-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
                "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
            }
        },
    }


def model_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    """config.json of the 16-bit model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def write_checkpoints(
    out: Path, name: str, shape: Shape, tokenizer: PreTrainedTokenizerFast, weights: dict[str, torch.Tensor]
) -> None:
    """The folders NAME (bfloat16), NAME-int8 and NAME-fp8 in `out`."""
    config = model_config(shape, tokenizer)
    for folder, kind in ((out / name, None), (out / f"{name}-int8", "int"), (out / f"{name}-fp8", "float")):
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
        tensors = quantize(weights, kind) if kind else weights
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        extra = {"quantization_config": quantization_config(kind)} if kind else {}
        (folder / "config.json").write_text(json.dumps(config | extra, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write tiny checkpoints for vLLM's CPU build.")
    parser.add_argument("--out", type=Path, required=True, help="folder for tiny, tiny-int8 and tiny-fp8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("text", type=Path, nargs="+", help="JSONL or plain text to train the tokenizer on")
    options = parser.parse_args()

    tokenizer = train_tokenizer(texts(options.text), VOCABULARY, pre_tokenizers.ByteLevel(add_prefix_space=False))
    weights = random_weights(TINY, len(tokenizer), options.seed)
    write_checkpoints(options.out, "tiny", TINY, tokenizer, weights)
    print(f"vocabulary {len(tokenizer)}, parameters {sum(w.numel() for w in weights.values()):,}")


if __name__ == "__main__":
    main()
