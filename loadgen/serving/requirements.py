"""Requirements: what a recipe needs of the GPU, the CPU and vLLM's environment, checked before a server is started.

Memory: what a model's server needs of a GPU: its weights, and its keys and values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import UsageError
from loadgen.serving.checkpoint import fetch_config, is_offline, local_config, weights_of
from loadgen.serving.gguf import fault_of_gguf
from loadgen.serving.quantization import NESTED
from loadgen.serving.recipe import Capability, Device, Recipe, expected_bytes, load_models, load_recipes

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
    kv_heads: int | None = None
    """Key-value heads of a layer, 1 if all share one; None: not known."""

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

    def kv_share(self, gpus: int) -> float:
        """The share of a token's keys and values on each of the GPUs: more GPUs than heads hold copies."""
        return 1 / min(gpus, self.kv_heads or gpus)


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
        kv_heads=kv_heads if latent is None else 1,
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
    """Of a server on one GPU."""
    shared: dict[str, int]
    """The number of GPUs that share a server's model, by recipe."""
    kv_shares: dict[str, float]
    """The share of `kv_cache_bytes` that each of a server's GPUs holds."""
    needs: dict[str, int]
    """Bytes on each of its GPUs, of each server that fits."""
    placed: dict[str, tuple[int, ...]]
    """The GPUs of each server that fits beside those before it."""
    left_out: dict[str, int]
    """Bytes on each of its GPUs, of each server that does not fit."""


def fit(
    size: ModelSize,
    recipes: Mapping[str, Recipe],
    gpus: Sequence[float],
    *,
    concurrency: Sequence[int] | None = None,
    tokens: int = REQUEST_TOKENS,
    tensor_parallel: Mapping[str, int] | None = None,
) -> Sizing:
    """The largest batch sizes up to 128 that the heaviest server holds, or those of `concurrency` exactly.

    `tensor_parallel`: the number of GPUs of each recipe, unless it is the recipe's own. A server that leaves no room is
    left out. Raises UsageError, with what would fit, where none is left.
    """
    kept = size.kv_bytes_per_token()
    if kept is None:
        raise UsageError("the model's config.json does not say how large its KV cache is; set KV_CACHE_BYTES yourself")
    shared = {name: recipe.tensor_parallel or 1 for name, recipe in recipes.items()} | dict(tensor_parallel or {})
    for name, count in shared.items():
        if count > len(gpus):
            raise UsageError(f"{name} is to share {count} GPUs, and {_gpus_in_all(gpus)}: give fewer, or name more")
    usable, request = USABLE * min(gpus), tokens * kept
    shares = {name: size.kv_share(count) for name, count in shared.items()}
    bare = {name: round(size.weight_bytes(recipe) / shared[name]) + BESIDE_BYTES for name, recipe in recipes.items()}
    most = {name: int((usable - need) // (request * shares[name])) for name, need in bare.items()}
    asked = max(concurrency or (1,))
    needs = {name: need + round(asked * request * shares[name]) for name, need in bare.items()}
    fitting = [name for name in needs if most[name] >= asked]
    if not fitting:
        lightest = min(needs, key=needs.__getitem__)
        remedy = "use a larger GPU or a smaller model"
        if most[lightest] >= 1:
            remedy = f"give --concurrency {','.join(map(str, grid(most[lightest])))}"
        elif shared[lightest] < len(gpus):
            remedy = f"let more GPUs share it: --tensor-parallel {len(gpus)}"
        raise UsageError(
            f"{lightest} with B = {asked} and {tokens} tokens a request needs {needs[lightest] / GIB:.1f} GiB"
            f"{f' on each of {shared[lightest]} GPUs' * (shared[lightest] > 1)}, and {usable / GIB:.1f} of the GPU's "
            f"{min(gpus) / GIB:.1f} GiB can be used: {remedy}"
        )
    levels = tuple(concurrency or grid(min(most[name] for name in fitting)))
    kv_cache_bytes = max(levels) * request
    left_out = {name: need for name, need in needs.items() if name not in fitting}
    needs = {name: bare[name] + round(kv_cache_bytes * shares[name]) for name in fitting}
    free, placed = [USABLE * total for total in gpus], dict[str, tuple[int, ...]]()
    for name, need in needs.items():
        emptiest = sorted(range(len(free)), key=free.__getitem__, reverse=True)[: shared[name]]
        if need <= free[emptiest[-1]]:
            for gpu in emptiest:
                free[gpu] -= need
            placed[name] = tuple(sorted(emptiest))
    return Sizing(
        gpus=tuple(gpus), concurrency=levels, tokens=tokens, kv_cache_bytes=kv_cache_bytes, shared=shared,
        kv_shares=shares, needs=needs, placed=placed, left_out=left_out,
    )  # fmt: skip


def _gpus_in_all(gpus: Sequence[float]) -> str:
    return "there is 1" if len(gpus) == 1 else f"there are {len(gpus)}"


def grid(most: int) -> tuple[int, ...]:
    """The default batch sizes up to `most`, and where that cuts some off, the largest power of two."""
    kept = tuple(b for b in GRID if b <= most)
    largest = 1 << (min(most, GRID[-1]).bit_length() - 1)
    return kept if largest in kept else (*kept, largest)


CPU_INFO = Path("/proc/cpuinfo")
BNB_PLUGIN_SINCE = (0, 28)
"""From this version on vLLM serves bitsandbytes through vllm-bnb-plugin."""


def require_device(recipe: Recipe, device: Device) -> None:
    """Raises UsageError when no GPU that NVML shows on this machine, or not this CPU, serves the recipe."""
    if device == "cpu":
        return require_cpu(recipe)
    found = gpu_capabilities()
    if found and not is_at_least(highest(found), recipe.gpu_capability):
        raise UsageError(
            f"recipe {recipe.name!r} needs a GPU of compute capability {recipe.gpu_capability} or higher, and this "
            f"machine's has {highest(found)}; choose among {', '.join(served_at(highest(found), load_recipes()))}"
        )
    return None


def require_packages(recipe: Recipe, vllm: str) -> None:
    """Raises UsageError when the environment of that `vllm` command is known and lacks a package for the recipe."""
    if missing := missing_packages(recipe, packages_of(Path(vllm))):
        raise UsageError(
            f"recipe {recipe.name!r} needs {' and '.join(missing)} in vLLM's environment; run `pip install "
            f"{' '.join(missing)}` in the environment of {vllm}"
        )


def gpu_capabilities() -> list[Capability]:
    """The compute capability of each GPU that NVML shows and that says it; empty without NVML."""
    found = []
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                found.append(gpu_capability(index))
        finally:
            pynvml.nvmlShutdown()
    except Exception:
        return []
    return [capability for capability in found if capability is not None]


def gpu_capability(index: int) -> Capability | None:
    """The compute capability of a GPU, NVML being initialised; None: it does not say."""
    import pynvml

    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    except pynvml.NVMLError:
        return None
    return f"{major}.{minor}"


def is_at_least(capability: Capability, lowest: Capability) -> bool:
    """Whether a GPU of that capability can do what asks for the lowest one."""
    return _version(capability) >= _version(lowest)


def highest(capabilities: Sequence[Capability]) -> Capability:
    """The highest of several."""
    return max(capabilities, key=_version)


def served_at(capability: Capability, recipes: Mapping[str, Recipe]) -> list[str]:
    """The recipes that a GPU of that capability serves."""
    return [name for name, recipe in recipes.items() if is_at_least(capability, recipe.gpu_capability)]


def emulated_at(capability: Capability, recipes: Mapping[str, Recipe]) -> list[str]:
    """Those of them that it computes in 16 bits."""
    native = {name: recipe.native_capability for name, recipe in recipes.items()}
    return [n for n in served_at(capability, recipes) if (own := native[n]) and not is_at_least(capability, own)]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def packages_of(vllm: Path) -> dict[str, str] | None:
    """Versions of the Python packages in the environment of a `vllm` command, by normalised name, and of PYTHONPATH;
    None where vLLM is not among them."""
    sites = [str(path) for path in vllm.parent.parent.glob("lib/python3*/site-packages")]
    extra = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    held = {one.name.lower().replace("_", "-"): one.version for one in distributions(path=[*sites, *extra])}
    return held if "vllm" in held else None


def missing_packages(recipe: Recipe, held: Mapping[str, str] | None) -> tuple[str, ...]:
    """The packages that the recipe needs and that environment lacks; none where it is not known."""
    if held is None:
        return ()
    built_in = {"vllm-bnb-plugin"} if _version(held["vllm"]) < BNB_PLUGIN_SINCE else set()
    return tuple(name for name in recipe.packages if name not in held and name not in built_in)


def require_cpu(recipe: Recipe) -> None:
    """Raises UsageError when vLLM's CPU build does not serve the recipe on this CPU."""
    flags = CPU_INFO.read_text(encoding="utf-8").split() if CPU_INFO.exists() else recipe.cpu_flags
    missing = [flag for flag in recipe.cpu_flags if flag not in flags]
    if recipe.cpu_refusal or missing:
        others = [name for name, other in load_recipes().items() if other.runs_on_cpu(flags)]
        why = f"on a CPU needs {', '.join(missing)}, which this CPU lacks"
        if recipe.cpu_refusal:
            why = f"needs a GPU: {recipe.cpu_refusal}"
        raise UsageError(f"recipe {recipe.name!r} {why}; use a GPU, or one of {', '.join(others)}")


def require_place(model: str) -> None:
    """Raises UsageError when a model or checkpoint that is written as a path is not there."""
    if model.startswith("-"):
        raise UsageError(f"{model!r} is not a model: it starts with '-', and vLLM would take it for an option")
    path = Path(model).expanduser()
    if fault := fault_of_gguf(model):
        raise UsageError(fault)
    if model.startswith((".", "/", "~")) and not path.is_dir() and path.suffix != ".gguf":
        raise UsageError(f"the model folder {model} does not exist; name a folder or a Hugging Face id")
