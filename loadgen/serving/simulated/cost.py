"""Step time of the simulated engine: a pure function of precision, batch, context and prefill.

docs/simulator.md derives the formula and gives the source of every constant.
"""

from __future__ import annotations

import math

import msgspec

from loadgen.errors import UsageError


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU by what bounds a step: data sheet figures times the share that kernels reach."""

    name: str
    memory_bytes: float
    bandwidth_bytes_s: float
    compute_flops: float
    """16-bit dense tensor throughput, FLOP/s."""
    launch_s: float
    """Scheduling, graph launch and sampling of one step."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder-only model by its sizes."""

    name: str
    linear_params: float
    """Weights of the layers' linear maps: what quantization shrinks."""
    head_params: float
    """Weights of the output head, 16 bits in every precision."""
    kv_bytes_per_token: float


class Precision(msgspec.Struct, frozen=True, kw_only=True):
    """How the linear weights are stored and what it costs to multiply with them."""

    bits: float
    """Bits per linear weight, scales and zero points included."""
    compute_factor: float = 1.0
    """Tensor throughput over the GPU's 16-bit throughput."""
    extra_launch_s: float = 0.0
    """Kernels that a step runs beside those of FP16."""
    buffer_bytes_per_weight: float = 0.0
    """Traffic per weight and step for a dequantized copy in memory."""
    dequant_s_per_token: float = 0.0
    """Dequantization inside the matrix kernels, per token of the step."""
    dequant_token_cap: float = math.inf
    """Tokens from which on the kernels dequantize once per step instead."""


H100 = Gpu(
    name="H100-like",
    memory_bytes=80e9,
    bandwidth_bytes_s=0.80 * 3.35e12,
    compute_flops=0.60 * 989e12,
    launch_s=1.0e-3,
)

MISTRAL_7B = Model(
    name="simulated-mistral-7b",
    linear_params=32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336),
    head_params=32768 * 4096,
    kv_bytes_per_token=32 * 2 * 8 * 128 * 2,
)

_SIXTEEN_BIT = Precision(bits=16)

PRECISIONS = {
    "fp16": _SIXTEEN_BIT,
    "bf16": _SIXTEEN_BIT,
    "awq": Precision(bits=4 + 20 / 128, dequant_s_per_token=40e-6, dequant_token_cap=256),
    "gptq": Precision(bits=4 + 16 / 128, dequant_s_per_token=44e-6, dequant_token_cap=256),
    "bnb-nf4": Precision(bits=4 + 0.127, buffer_bytes_per_weight=4.0),
    "bnb-int8": Precision(bits=8, extra_launch_s=4.5e-3, dequant_s_per_token=10e-6),
    "fp8": Precision(bits=8, compute_factor=2.0, extra_launch_s=0.2e-3, dequant_s_per_token=1.0e-6),
    "int8": Precision(bits=8, compute_factor=2.0, extra_launch_s=0.3e-3, dequant_s_per_token=1.5e-6),
}


def find_precision(name: str) -> Precision:
    """The constants of a precision by its recipe name; raises UsageError for one that has none."""
    if name not in PRECISIONS:
        raise UsageError(f"no simulated precision {name!r}; choose from {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def weight_bytes(model: Model, precision: Precision) -> float:
    """Bytes of all weights that a step reads."""
    return model.linear_params * precision.bits / 8 + model.head_params * 2


def step_s(
    gpu: Gpu,
    model: Model,
    precision: Precision,
    *,
    batch: int,
    context_tokens: int,
    prefill_tokens: int,
) -> float:
    """Seconds of one engine step.

    `batch` sequences decode one token each over `context_tokens` cached tokens in all, and `prefill_tokens`
    prompt tokens are processed beside them.
    """
    tokens = batch + prefill_tokens
    read_bytes = weight_bytes(model, precision) + context_tokens * model.kv_bytes_per_token
    memory_s = read_bytes / gpu.bandwidth_bytes_s
    flops = 2 * (model.linear_params + model.head_params) * tokens
    compute_s = flops / (gpu.compute_flops * precision.compute_factor)
    buffer_s = model.linear_params * precision.buffer_bytes_per_weight / gpu.bandwidth_bytes_s
    dequant_s = precision.dequant_s_per_token * min(tokens, precision.dequant_token_cap)
    return gpu.launch_s + precision.extra_launch_s + max(memory_s, compute_s) + buffer_s + dequant_s


def kv_capacity_tokens(gpu: Gpu, model: Model, precision: Precision) -> int:
    """Tokens whose keys and values fit beside the weights in 92% of the memory (vLLM's default share)."""
    return int((0.92 * gpu.memory_bytes - weight_bytes(model, precision)) / model.kv_bytes_per_token)
