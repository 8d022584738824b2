"""The cost model: terms derived by hand, and the order of precisions at small and large batches."""

import pytest

from loadgen.errors import UsageError
from loadgen.serving.simulated.cost import (
    H100,
    MISTRAL_7B,
    PRECISIONS,
    Gpu,
    Model,
    Precision,
    find_precision,
    kv_capacity_tokens,
    step_s,
)

GPU = Gpu(name="toy", memory_bytes=2000, bandwidth_bytes_s=100, compute_flops=1000, launch_s=0.5)
MODEL = Model(name="toy", linear_params=400, head_params=50, kv_bytes_per_token=2)


def toy_step(precision: Precision, batch: int, context: int = 0, prefill: int = 0) -> float:
    return step_s(GPU, MODEL, precision, batch=batch, context_tokens=context, prefill_tokens=prefill)


def decode_step(name: str, batch: int, context_each: int = 400) -> float:
    return step_s(
        H100, MISTRAL_7B, PRECISIONS[name], batch=batch, context_tokens=batch * context_each, prefill_tokens=0
    )


def test_a_small_step_is_launch_plus_weights_and_cache_over_bandwidth():
    # (400 * 2 + 50 * 2 + 30 * 2) bytes / 100 bytes/s = 9.6 s; compute 2 * 450 * 1 / 1000 = 0.9 s is hidden
    assert toy_step(Precision(bits=16), batch=1, context=30) == pytest.approx(0.5 + 9.6)


def test_a_large_prefill_is_bound_by_compute():
    # 2 * 450 * 20 / 1000 = 18 s against 9 s of memory traffic
    assert toy_step(Precision(bits=16), batch=0, prefill=20) == pytest.approx(0.5 + 18)
    assert toy_step(Precision(bits=16, compute_factor=2), batch=0, prefill=20) == pytest.approx(0.5 + 9)


def test_overheads_add_to_the_step_and_dequantization_stops_growing_at_its_cap():
    precision = Precision(
        bits=4, extra_launch_s=0.25, buffer_bytes_per_weight=4, dequant_s_per_token=0.01, dequant_token_cap=3
    )
    # memory (400 / 2 + 100) / 100 = 3 s, buffer 400 * 4 / 100 = 16 s
    assert toy_step(precision, batch=2) == pytest.approx(0.5 + 0.25 + 3 + 16 + 0.02)
    assert toy_step(precision, batch=3) == pytest.approx(0.5 + 0.25 + 3 + 16 + 0.03)
    assert toy_step(Precision(bits=16, dequant_s_per_token=1.0, dequant_token_cap=3), batch=8) == pytest.approx(
        0.5 + 9 + 3
    )


@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_weight_only_formats_win_at_small_batches_and_lose_at_large_ones(name):
    assert decode_step(name, 1) < 0.6 * decode_step("fp16", 1)
    assert decode_step(name, 16) < decode_step("fp16", 16)
    assert decode_step(name, 128) > decode_step("fp16", 128)


@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_the_crossover_of_pure_decoding_is_saved_bytes_over_dequantization(name):
    precision = PRECISIONS[name]
    saved_bytes = MISTRAL_7B.linear_params * (16 - precision.bits) / 8
    crossing = saved_bytes / H100.bandwidth_bytes_s / precision.dequant_s_per_token
    below, above = int(crossing), int(crossing) + 1
    assert decode_step(name, below) < decode_step("fp16", below)
    assert decode_step(name, above) > decode_step("fp16", above)


@pytest.mark.parametrize("batch", [1, 16, 64, 128, 256])
def test_nf4_is_slower_and_fp8_faster_than_fp16_at_every_batch(batch):
    assert decode_step("bnb-nf4", batch) > decode_step("fp16", batch) > decode_step("fp8", batch)


def test_bf16_costs_what_fp16_costs():
    assert PRECISIONS["bf16"] == PRECISIONS["fp16"]


def test_the_preset_has_the_shape_of_mistral_7b():
    # 7.248e9 parameters, of which the input embedding (32768 x 4096) is looked up and not read
    total = MISTRAL_7B.linear_params + 2 * MISTRAL_7B.head_params
    assert total == pytest.approx(7.248e9, rel=1e-3)
    assert MISTRAL_7B.kv_bytes_per_token == 131072


def test_the_kv_cache_gets_what_the_weights_leave():
    # (0.92 * 2000 - 900) / 2
    assert kv_capacity_tokens(GPU, MODEL, Precision(bits=16)) == 470
    assert kv_capacity_tokens(GPU, MODEL, Precision(bits=4)) == 770


def test_an_unknown_precision_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'int3'.*fp16"):
        find_precision("int3")
