"""Memory: what a model's server needs of a GPU before it is started: its weights, and its keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import UsageError
from loadgen.serving.checkpoint import fetch_config, is_offline, local_config, weights_of
from loadgen.serving.quantization import NESTED
from loadgen.serving.recipe import Recipe, expected_bytes, load_models

SCALES = 1.05
"""Quantized weights with their scales: 20 bits for each group of 128 at 4 bits are 4%."""
MOST_BITS = 8
"""Bits of a recipe whose checkpoints have their own: none that is published has more."""
_WITHOUT_CACHE = ("linear", "mamba", "conv", "recurrent")
"""Parts of the names of layers whose state does not grow with the context."""


class ModelSize(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a 16-bit model that its servers' memory follows from."""

    parameters: float
    embeddings: float | None = None
    """Parameters of the embedding and the output head, which quantization leaves in 16 bits; None: not known."""
    kv_values_per_token: int | None = None
    """Numbers that all layers keep of one token; None: not known."""

    def weight_bytes(self, recipe: Recipe) -> int:
        """GPU memory of the weights as the recipe serves them, over all its GPUs."""
        bits = recipe.bits or MOST_BITS
        if bits == 16 or self.embeddings is None:
            return expected_bytes(self.parameters, bits)
        stored = recipe.stored_bits or bits * SCALES
        return round(self.embeddings * 2 + (self.parameters - self.embeddings) * stored / 8)

    def kv_bytes_per_token(self, bits: int = 16) -> int | None:
        """GPU memory of one token's keys and values of `bits` each; None: not known."""
        return None if self.kv_values_per_token is None else self.kv_values_per_token * bits // 8


def size_of(model: str, *, online: bool = False) -> ModelSize | None:
    """The sizes of a 16-bit model, an id or a folder; None: nothing here knows them.

    By its config.json in the folder or the hub's cache, and if `online` on the hub (at most 5 s); else by the table of
    known models. The parameters are those of the weights' headers, else of the table, else the config.json's.
    """
    config = local_config(model)
    known = load_models().get(model)
    if config is None and known is None and online and not is_offline():
        config = fetch_config(model).config
    by_config = size_by_config(config) if config else None
    held = weights_of(Path(model).expanduser())
    parameters = held.parameters if held else None
    if parameters is None and known is not None:
        parameters = round(known.parameters)
    if by_config is None:
        kv_values = known.kv_values_per_token if known else None
        return None if parameters is None else ModelSize(parameters=parameters, kv_values_per_token=kv_values)
    return by_config if parameters is None else msgspec.structs.replace(by_config, parameters=parameters)


def size_by_config(config: Mapping[str, Any]) -> ModelSize | None:
    """The sizes by a config.json in the names of Hugging Face; None where it lacks one of them.

    Experts count, biases and norms do not (below 1%). Layers with a sliding window count as full ones: an upper bound.
    """
    text = next((part for name in NESTED if isinstance(part := config.get(name), Mapping)), config)
    hidden, layers, vocab = (_count(text, *names) for names in (_HIDDEN, _LAYERS, ("vocab_size",)))
    heads = _count(text, "num_attention_heads", "n_head")
    if hidden is None or layers is None or vocab is None or heads is None:
        return None
    kv_heads = _count(text, "num_key_value_heads", "num_kv_heads", "n_head_kv")
    kv_heads = (1 if text.get("multi_query") else heads) if kv_heads is None else kv_heads
    head_dim = _count(text, "head_dim") or hidden // heads
    mlp = _count(text, "intermediate_size", "ffn_dim", "n_inner") or 4 * hidden
    experts = _count(text, "num_local_experts", "num_experts", "n_routed_experts")
    feed_forward = 3 * hidden * (experts * (_count(text, "moe_intermediate_size") or mlp) if experts else mlp)
    attention = 2 * hidden * head_dim * (heads + kv_heads)
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    embeddings = vocab * hidden * (1 if tied else 2)
    latent = _count(text, "kv_lora_rank")
    per_layer = 2 * kv_heads * head_dim if latent is None else latent + (_count(text, "qk_rope_head_dim") or 0)
    return ModelSize(
        parameters=layers * (attention + feed_forward) + embeddings,
        embeddings=embeddings,
        kv_values_per_token=_caching(text, layers) * per_layer,
    )


_HIDDEN = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


def _caching(text: Mapping[str, Any], layers: int) -> int:
    """The layers that keep keys and values: all but those that `layer_types` names as others."""
    kinds = text.get("layer_types") or text.get("layers_block_type")
    if not isinstance(kinds, list) or len(kinds) != layers:
        return layers
    return sum(1 for kind in kinds if not any(part in str(kind) for part in _WITHOUT_CACHE))


def _count(text: Mapping[str, Any], *names: str) -> int | None:
    """The first of these entries that is a number above zero."""
    values = (text.get(name) for name in names)
    return next(
        (value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0), None
    )


GIB = 2**30
BESIDE_BYTES = 2 * GIB
"""CUDA, graphs and activations of one server (an estimate: 1 to 2 GiB were seen)."""
USABLE = 0.92
"""The share of a GPU that servers may take, vLLM's own default."""
REQUEST_TOKENS = 1300
"""Tokens of a prompt and its answer: GSM8K with worked examples needs at most about this many."""
GRID = (1, 16, 64, 128)
"""The batch sizes of a sweep, unless the user names others."""


class Sizing(msgspec.Struct, frozen=True, kw_only=True):
    """What fits on the GPUs: the batch sizes, one size of KV cache for all servers, and which are up together."""

    gpus: tuple[float, ...]
    """Bytes of each."""
    concurrency: tuple[int, ...]
    tokens: int
    """Tokens of one request."""
    kv_cache_bytes: int
    needs: dict[str, int]
    """Bytes of each server that fits on a GPU, by recipe."""
    placed: dict[str, int]
    """The GPU of each server that fits beside those before it."""
    left_out: dict[str, int]
    """Bytes of each server that fits on no GPU."""


def fit(
    size: ModelSize,
    recipes: Mapping[str, Recipe],
    gpus: Sequence[float],
    *,
    concurrency: Sequence[int] | None = None,
    tokens: int = REQUEST_TOKENS,
) -> Sizing:
    """The largest batch sizes up to 128 that the heaviest server holds, or those of `concurrency` exactly.

    A server that leaves no room is left out. Raises UsageError, with what would fit, where none is left.
    """
    kept = size.kv_bytes_per_token()
    if kept is None:
        raise UsageError("the model's config.json does not say how large its KV cache is; set KV_CACHE_BYTES yourself")
    usable, request = USABLE * min(gpus), tokens * kept
    bare = {name: size.weight_bytes(recipe) + BESIDE_BYTES for name, recipe in recipes.items()}
    keys = request * max(concurrency or (1,))
    fitting = {name: need for name, need in bare.items() if need + keys <= usable}
    if not fitting:
        lightest = min(bare, key=bare.__getitem__)
        most = int((usable - bare[lightest]) // request)
        remedy = "use a larger GPU or a smaller model"
        if most >= 1:
            remedy = f"give --concurrency {','.join(map(str, grid(most)))}"
        raise UsageError(
            f"{lightest} with B = {max(concurrency or (1,))} and {tokens} tokens a request needs "
            f"{(bare[lightest] + keys) / GIB:.1f} GiB, and {usable / GIB:.1f} of the GPU's {min(gpus) / GIB:.1f} GiB "
            f"can be used: {remedy}"
        )
    levels = tuple(concurrency or grid(int((usable - max(fitting.values())) // request)))
    kv_cache_bytes = max(levels) * request
    needs = {name: need + kv_cache_bytes for name, need in fitting.items()}
    free, placed = [USABLE * total for total in gpus], dict[str, int]()
    for name, need in needs.items():
        emptiest = max(range(len(free)), key=free.__getitem__)
        if need <= free[emptiest]:
            free[emptiest] -= need
            placed[name] = emptiest
    left_out = {name: need + keys for name, need in bare.items() if name not in fitting}
    return Sizing(
        gpus=tuple(gpus), concurrency=levels, tokens=tokens, kv_cache_bytes=kv_cache_bytes, needs=needs, placed=placed,
        left_out=left_out,
    )  # fmt: skip


def grid(most: int) -> tuple[int, ...]:
    """The default batch sizes up to `most`, and where that cuts some off, the largest power of two."""
    kept = tuple(b for b in GRID if b <= most)
    largest = 1 << (min(most, GRID[-1]).bit_length() - 1)
    return kept if largest in kept else (*kept, largest)
