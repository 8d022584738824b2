"""What a step of the simulated engine costs: seconds and watts, pure functions of batch, context and prefill.

docs/simulator.md derives the formulas; presets.toml has the constants with their sources.
"""

from __future__ import annotations

import math

import msgspec

MEMORY_SHARE = 0.92
"""vLLM's default --gpu-memory-utilization."""


class Activity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Share of a GPU's dynamic power (limit - idle) that each kind of work draws while it lasts.

    Fitted to ML.ENERGY's Llama-3.1-8B on H100 but for `dequant`, which is assumed.
    """

    memory: float = 0.72
    compute: float = 0.90
    sequence: float = 0.80
    dequant: float = 0.55
    """Dequantization, and kernels beside those of FP16."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU by what bounds a step and what it draws."""

    name: str
    memory_bytes: float
    bandwidth_bytes_s: float
    bandwidth_share: float = 1.0
    """Share of the bandwidth that kernels reach."""
    compute_flops: float
    """16-bit dense tensor throughput, FLOP/s."""
    compute_share: float = 1.0
    launch_s: float
    """Scheduling and graph launch of one step; the GPU idles."""
    sequence_s: float = 0.0
    """Sampling and attention beyond the model's arithmetic, per sequence and step."""
    limit_w: float
    """Board power limit."""
    idle_w: float
    activity: Activity = Activity()
    source: str = ""


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dense decoder-only model by the sizes in its config.json."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    source: str = ""

    @property
    def linear_params(self) -> float:
        """Weights of the layers' linear maps: what quantization shrinks."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def head_params(self) -> float:
        """Weights of the output head, 16 bits in every precision."""
        return self.vocab * self.hidden

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token in all layers, 16 bits each."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2


class Precision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the linear weights are stored and what it costs to multiply with them."""

    bits: float
    """Bits per linear weight, scales and zero points included."""
    compute_factor: float = 1.0
    """Tensor throughput over the GPU's 16-bit throughput."""
    extra_s_per_layer: float = 0.0
    """Kernels that a step runs beside those of FP16."""
    buffer_bytes_per_weight: float = 0.0
    """Traffic per weight and step for a dequantized copy in memory."""
    dequant_flops_per_weight: float = 0.0
    """Dequantization inside the matrix kernels per weight and token of the step, as FLOPs of the 16-bit throughput."""
    dequant_token_cap: float = math.inf
    """Tokens from which on the kernels dequantize once per step instead."""
    source: str = ""


class Step(msgspec.Struct, frozen=True):
    """The cost of one engine step."""

    duration_s: float
    power_w: float
    """Mean over the step."""

    @property
    def energy_j(self) -> float:
        return self.duration_s * self.power_w


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """A model at a precision on a GPU."""

    gpu: Gpu
    model: Model
    precision: Precision

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights that a step reads."""
        return self.model.linear_params * self.precision.bits / 8 + self.model.head_params * 2

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens whose keys and values fit beside the weights; 0 or less when the weights alone do not fit."""
        return int((MEMORY_SHARE * self.gpu.memory_bytes - self.weight_bytes) // self.model.kv_bytes_per_token)

    def step(self, *, batch: float, context_tokens: float, prefill_tokens: float) -> Step:
        """Seconds and watts of a step.

        `batch` sequences decode one token each over `context_tokens` cached tokens in all, and `prefill_tokens`
        prompt tokens are processed beside them.
        """
        gpu, model, precision = self.gpu, self.model, self.precision
        bandwidth = gpu.bandwidth_bytes_s * gpu.bandwidth_share
        compute = gpu.compute_flops * gpu.compute_share
        linear_params = model.linear_params
        tokens = batch + prefill_tokens
        memory_s = (self.weight_bytes + context_tokens * model.kv_bytes_per_token) / bandwidth
        compute_s = 2 * (linear_params + model.head_params) * tokens / (compute * precision.compute_factor)
        buffer_s = linear_params * precision.buffer_bytes_per_weight / bandwidth
        dequant_flops = linear_params * precision.dequant_flops_per_weight * min(tokens, precision.dequant_token_cap)
        dequant_s = dequant_flops / compute
        sequence_s = gpu.sequence_s * batch
        extra_s = precision.extra_s_per_layer * model.layers
        duration_s = gpu.launch_s + extra_s + max(memory_s, compute_s) + buffer_s + dequant_s + sequence_s
        activity = gpu.activity
        busy_s = (
            activity.memory * (memory_s + buffer_s)
            + activity.compute * compute_s
            + activity.dequant * (dequant_s + extra_s)
            + activity.sequence * sequence_s
        )
        return Step(duration_s, gpu.idle_w + (gpu.limit_w - gpu.idle_w) * min(1.0, busy_s / duration_s))


def speed_up(cost: Cost, factor: float) -> Cost:
    """The same work `factor` times faster for the same joules: every power, idle and limit too, is `factor` times
    higher, so that joules per token, and energy over limit times time, stay what they are."""
    gpu, precision = cost.gpu, cost.precision
    return Cost(
        gpu=msgspec.structs.replace(
            gpu,
            bandwidth_bytes_s=gpu.bandwidth_bytes_s * factor,
            compute_flops=gpu.compute_flops * factor,
            launch_s=gpu.launch_s / factor,
            sequence_s=gpu.sequence_s / factor,
            limit_w=gpu.limit_w * factor,
            idle_w=gpu.idle_w * factor,
        ),
        model=cost.model,
        precision=msgspec.structs.replace(precision, extra_s_per_layer=precision.extra_s_per_layer / factor),
    )
