"""AWQ's and GPTQ's storage of a linear map: 4-bit integers, eight in an int32, with a scale for each group of weights.

`group` weights along the input of a map share a scale; it divides the input. The integers are rounded to nearest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["awq", "gptq"]


def config(kind: Kind, group: int) -> dict[str, object]:
    """The `quantization_config` of a checkpoint, as public ones of these formats have it."""
    common = {"quant_method": kind, "bits": 4, "group_size": group}
    if kind == "awq":
        return {**common, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}
    return {**common, "sym": True, "desc_act": False, "checkpoint_format": "gptq", "lm_head": False}


def quantize(weights: dict[str, Tensor], kind: Kind, group: int) -> dict[str, Tensor]:
    """The same tensors, each linear map's weight as `qweight`, `qzeros`, `scales` and, GPTQ, `g_idx`."""
    quantized: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if "_proj." not in name:
            quantized[name] = weight
            continue
        stored = awq(weight, group) if kind == "awq" else gptq(weight, group)
        quantized |= {name.replace("weight", part): tensor for part, tensor in stored.items()}
    return quantized


def awq(weight: Tensor, group: int) -> dict[str, Tensor]:
    """Asymmetric int4: weight[out, in] ~ (q - zero) * scale; eight columns in an int32, even ones first."""
    groups = _groups(weight, group)
    low, high = groups.amin(dim=1).clamp(max=0), groups.amax(dim=1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-8)
    zeros = (-low / scales).round().clamp(0, 15)
    q = (groups / scales[:, None] + zeros[:, None]).round().clamp(0, 15).reshape(-1, weight.shape[0])
    return {"qweight": _packed(q, 1, _AWQ_ORDER), "qzeros": _packed(zeros, 1, _AWQ_ORDER), "scales": scales.half()}


def gptq(weight: Tensor, group: int) -> dict[str, Tensor]:
    """Symmetric int4 around 8, without act-order; eight rows in an int32. The format stores zeros less one."""
    groups = _groups(weight, group)
    scales = (groups.abs().amax(dim=1) / 7).clamp(min=1e-8)
    q = (groups / scales[:, None] + 8).round().clamp(0, 15).reshape(-1, weight.shape[0])
    numbers = groups.new_ones(len(groups)).cumsum(0).int() - 1
    return {
        "qweight": _packed(q, 0, range(8)),
        "qzeros": _packed(scales.new_full(scales.shape, 7), 1, range(8)),
        "scales": scales.half(),
        "g_idx": numbers.repeat_interleave(group),
    }


_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _groups(weight: Tensor, group: int) -> Tensor:
    """[out, in] -> [in / group, group, out], float32."""
    return weight.float().t().reshape(-1, group, weight.shape[0])


def _packed(values: Tensor, dim: int, order: range | tuple[int, ...]) -> Tensor:
    """Eight 4-bit values along `dim` in each int32, the one at `order[i]` of eight in bits 4i to 4i + 3."""
    nibbles = values.int().unflatten(dim, (-1, 8))
    packed = nibbles.select(dim + 1, 0).clone().zero_()
    for bit, place in enumerate(order):
        packed |= nibbles.select(dim + 1, place) << (4 * bit)
    return packed.contiguous()
