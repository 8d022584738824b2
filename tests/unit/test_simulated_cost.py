"""The cost model: terms derived by hand, and the order of precisions at small and large batches."""

import msgspec
import pytest

from loadgen.serving.simulated.cost import Activity, Cost, Gpu, Model, Precision, load_presets, speed_up

GPU = Gpu(
    name="toy",
    memory_bytes=2000,
    bandwidth_bytes_s=200,
    bandwidth_share=0.5,
    compute_flops=2000,
    compute_share=0.5,
    launch_s=0.5,
    limit_w=110,
    idle_w=10,
    activity=Activity(memory=0.5, compute=0.8, sequence=1.0, dequant=0.6),
)
# linear: 2 * 10 * 4 * (2 + 1) + 3 * 10 * 7 = 450; head 5 * 10 = 50; keys and values 2 * 1 * 4 * 2 = 16 bytes a token
MODEL = Model(name="toy", layers=1, hidden=10, heads=2, kv_heads=1, head_dim=4, mlp=7, vocab=5)
PRESETS = load_presets()


def toy(gpu=GPU, **precision):
    return Cost(gpu=gpu, model=MODEL, precision=Precision(**{"bits": 16, **precision}))


def toy_step(cost, batch, context=0, prefill=0):
    return cost.step(batch=batch, context_tokens=context, prefill_tokens=prefill)


def decode_step_s(name, batch, context_each=400):
    return PRESETS.cost(name).step(batch=batch, context_tokens=batch * context_each, prefill_tokens=0).duration_s


def test_a_small_step_is_launch_plus_weights_and_cache_over_bandwidth():
    # (450 * 2 + 50 * 2 + 5 * 16) bytes / 100 bytes/s = 10.8 s; compute 2 * 500 * 1 / 1000 = 1 s is hidden
    step = toy_step(toy(), batch=1, context=5)
    assert step.duration_s == pytest.approx(0.5 + 10.8)
    # 10 W idle and 100 W for half of 10.8 s of traffic and 80% of 1 s of arithmetic
    assert step.energy_j == pytest.approx(10 * 11.3 + 100 * (0.5 * 10.8 + 0.8 * 1.0))
    assert step.power_w == pytest.approx(step.energy_j / 11.3)


def test_a_large_prefill_is_bound_by_compute():
    # 2 * 500 * 20 / 1000 = 20 s against 10 s of memory traffic
    assert toy_step(toy(), batch=0, prefill=20).duration_s == pytest.approx(0.5 + 20)
    assert toy_step(toy(compute_factor=2), batch=0, prefill=20).duration_s == pytest.approx(0.5 + 10)


def test_no_step_draws_more_than_the_limit():
    # 10 s of traffic and 10 s of arithmetic at once would be 130% of the dynamic power
    assert toy_step(toy(), batch=0, prefill=10).power_w == 110
    assert toy_step(toy(), batch=0, prefill=2).power_w == pytest.approx(10 + 100 * (5 + 1.6) / 10.5)


def test_overheads_add_to_the_step_and_dequantization_stops_growing_at_its_cap():
    cost = toy(
        bits=4, extra_s_per_layer=0.25, buffer_bytes_per_weight=4, dequant_flops_per_weight=2, dequant_token_cap=3
    )
    # memory (450 / 2 + 100) / 100 = 3.25 s, buffer 450 * 4 / 100 = 18 s, dequantization 450 * 2 / 1000 = 0.9 s a token
    assert toy_step(cost, batch=2).duration_s == pytest.approx(0.5 + 0.25 + 3.25 + 18 + 1.8)
    assert toy_step(cost, batch=3).duration_s == pytest.approx(0.5 + 0.25 + 3.25 + 18 + 2.7)
    assert toy_step(cost, batch=4).duration_s - toy_step(cost, batch=3).duration_s == pytest.approx(4 - 3.25)
    dynamic_j = 100 * (0.5 * (3.25 + 18) + 0.8 * 2 + 0.6 * (1.8 + 0.25))
    assert toy_step(cost, batch=2).energy_j == pytest.approx(10 * 23.8 + dynamic_j)


def test_time_per_sequence_is_paid_by_decoding_sequences():
    slow = toy(msgspec.structs.replace(GPU, sequence_s=0.1))
    assert toy_step(slow, batch=3).duration_s == pytest.approx(toy_step(toy(), batch=3).duration_s + 0.3)
    assert toy_step(slow, batch=0, prefill=3) == toy_step(toy(), batch=0, prefill=3)


@pytest.mark.parametrize("name", ["awq", "gptq"])
def test_weight_only_formats_win_at_small_batches_and_lose_at_large_ones(name):
    assert decode_step_s(name, 1) < 0.6 * decode_step_s("fp16", 1)
    assert decode_step_s(name, 16) < decode_step_s("fp16", 16)
    assert decode_step_s(name, 128) > decode_step_s("fp16", 128)


@pytest.mark.parametrize("batch", [1, 16, 64, 128, 256])
def test_nf4_is_slower_and_fp8_faster_than_fp16_at_every_batch(batch):
    assert decode_step_s("bnb-nf4", batch) > decode_step_s("fp16", batch) > decode_step_s("fp8", batch)


def test_the_kv_cache_gets_what_the_weights_leave():
    # (0.92 * 2000 - 1000) / 16 and (0.92 * 2000 - 325) / 16
    assert toy().kv_capacity_tokens == 52
    assert toy(bits=4).kv_capacity_tokens == 94
    assert PRESETS.cost("fp16", gpu="l4", model="qwen2.5-14b").kv_capacity_tokens <= 0


@pytest.mark.parametrize("precision", ["fp16", "awq", "bnb-nf4", "bnb-int8", "fp8"])
def test_scaled_time_keeps_joules_and_multiplies_watts(precision):
    cost = PRESETS.cost(precision, gpu="h100")
    scaled = speed_up(cost, 8)
    for batch, prefill in ((1, 0), (64, 480), (256, 8000)):
        step, fast = toy_step(cost, batch, batch * 500, prefill), toy_step(scaled, batch, batch * 500, prefill)
        assert fast.duration_s == pytest.approx(step.duration_s / 8)
        assert fast.power_w == pytest.approx(step.power_w * 8)
    assert (scaled.gpu.limit_w, scaled.gpu.idle_w) == (8 * 700, 8 * 70)
    assert scaled.kv_capacity_tokens == cost.kv_capacity_tokens


# ML.ENERGY, Llama-3.1-8B in BF16 on one H100, LMArena chat: watts and joules per output token
ANCHORS = {8: (486, 0.4548), 64: (610, 0.1186), 256: (691, 0.0766)}


@pytest.mark.parametrize("batch", ANCHORS)
def test_a_7b_model_on_h100_draws_what_was_published_within_15_percent(batch):
    watts, joules_per_token = ANCHORS[batch]
    # answers of 500 tokens after prompts of 100: 350 tokens of context on average, a fifth of a prompt token per token
    step = PRESETS.cost("bf16", gpu="h100").step(batch=batch, context_tokens=batch * 350, prefill_tokens=batch / 5)
    assert step.power_w == pytest.approx(watts, rel=0.05)
    assert step.energy_j / batch == pytest.approx(joules_per_token, rel=0.15)
