"""Shapes: models without their weights, as their config.json describes them, and the formats they are written in."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loadgen.errors import UsageError

Format = Literal["awq", "gptq", "int8", "fp8"]
FORMATS: tuple[Format, ...] = ("awq", "gptq", "int8", "fp8")
GROUP = 128
NOTE = "random weights: speed and energy only"
SHAPES = Path(__file__).with_name("shapes.toml")
_ARCHITECTURES = {"mistral": "MistralForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of one model, from its public config.json."""

    model_type: Literal["mistral", "qwen3", "llama"]
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    rope_theta: float
    rms_norm_eps: float
    tied: bool
    """The output head is the embedding."""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Name in a layer -> (out, in) of each linear map that is quantized."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (query, self.hidden),
            "self_attn.k_proj": (key, self.hidden),
            "self_attn.v_proj": (key, self.hidden),
            "self_attn.o_proj": (self.hidden, query),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @property
    def norms(self) -> dict[str, int]:
        """Name in a layer -> elements of each norm's weight."""
        found = {"input_layernorm": self.hidden, "post_attention_layernorm": self.hidden}
        if self.model_type == "qwen3":
            found |= {"self_attn.q_norm": self.head_dim, "self_attn.k_norm": self.head_dim}
        return found

    @property
    def parameters(self) -> int:
        """All weights, a shared head counted once."""
        layer = sum(rows * columns for rows, columns in self.linears.values()) + sum(self.norms.values())
        return self.layers * layer + self.hidden + (1 if self.tied else 2) * self.vocabulary * self.hidden


def load_shapes(path: Path = SHAPES) -> dict[str, ModelShape]:
    """Model name -> shape. Raises UsageError for a file that breaks the schema."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: ModelShape(**{k: v for k, v in table.items() if k != "source"}) for name, table in tables.items()}
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a file of model shapes: {error}") from None


def config(shape: ModelShape, quantization: dict[str, Any] | None) -> dict[str, Any]:
    """config.json; `loadgen_note` says that the weights are random. `quantization`: its `quantization_config`."""
    content: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[shape.model_type]],
        "model_type": shape.model_type,
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "attention_bias": False,
        "tie_word_embeddings": shape.tied,
        "vocab_size": shape.vocabulary,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "loadgen_note": NOTE,
    }
    return content | ({"quantization_config": quantization} if quantization else {})
