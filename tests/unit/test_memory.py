"""What a server needs of a GPU follows from its model's config.json, or from the table of known models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import UsageError
from loadgen.serving.recipe import load_models, load_recipe
from loadgen.serving.requirements import GIB, fit, grid, size_by_config, size_of

MISTRAL = "mistralai/Mistral-7B-Instruct-v0.3"
MISTRAL_CONFIG = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 32768,
}  # fmt: skip


def test_a_7b_models_memory_by_its_config_is_what_its_checkpoints_take() -> None:
    size = size_by_config(MISTRAL_CONFIG)
    assert size is not None
    assert size.kv_bytes_per_token() == 128 * 1024
    assert size.kv_bytes_per_token(bits=8) == 64 * 1024
    assert size.weight_bytes(load_recipe("fp16")) / 1e9 == pytest.approx(14.5, rel=0.01)
    assert size.weight_bytes(load_recipe("awq")) / 1e9 == pytest.approx(4.16, rel=0.02)


def test_scales_count_where_they_are_a_part_of_the_format() -> None:
    size = size_by_config(MISTRAL_CONFIG)
    assert size is not None and size.embeddings is not None
    quantized = size.parameters - size.embeddings
    # An FP8 scale for 16 weights, a byte for 32, a float32 for 64; torchao's checkpoints hold at most 8 bits.
    for name, bits in (("nvfp4", 4 + 8 / 16), ("mxfp4", 4 + 8 / 32), ("bnb-nf4", 4 + 32 / 64), ("torchao", 8 * 1.05)):
        assert size.weight_bytes(load_recipe(name)) == pytest.approx(size.embeddings * 2 + quantized * bits / 8)
    assert (load_recipe("fp16-kvfp8").kv_bits, load_recipe("fp8").kv_bits) == (8, 16)


@pytest.mark.parametrize("model", load_models())
def test_the_table_knows_what_no_config_on_this_machine_says(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    size = size_of(model)
    assert size is not None
    kv = size.kv_bytes_per_token()
    assert kv is not None
    # 88 KiB of Falcon3-3B to 320 KiB of a 72B model.
    assert 88 <= kv / 1024 <= 320
    assert size.weight_bytes(load_recipe("fp16")) == round(load_models()[model].parameters_e9 * 2e9)


@pytest.mark.parametrize(
    ("entries", "kv_values"),
    [
        ({"num_key_value_heads": None}, 2 * 32 * 4096),
        ({"head_dim": 64}, 2 * 32 * 8 * 64),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 32 * 576),
        ({"layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 8}, 8 * 2048),
        ({"layer_types": ["full_attention"]}, 32 * 2048),
    ],
)
def test_only_what_grows_with_the_context_counts(entries: dict[str, Any], kv_values: int) -> None:
    size = size_by_config({"text_config": MISTRAL_CONFIG | entries})
    assert size is not None
    assert size.kv_values_per_token == kv_values


def test_tied_embeddings_count_once_and_experts_all() -> None:
    one, tied, mixture = (
        size_by_config(MISTRAL_CONFIG | more) for more in ({}, {"tie_word_embeddings": True}, {"num_local_experts": 8})
    )
    assert one is not None
    assert tied is not None
    assert mixture is not None
    assert one.parameters - tied.parameters == 32768 * 4096
    assert mixture.parameters - one.parameters == 7 * 32 * 3 * 4096 * 14336


def test_what_no_file_and_no_table_knows_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert size_of("somebody/unknown-8b") is None
    assert size_by_config({"hidden_size": 4096}) is None
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL_CONFIG), encoding="utf-8")
    assert size_of(str(tmp_path)) == size_by_config(MISTRAL_CONFIG)


@pytest.mark.parametrize(
    ("gib", "levels", "together"),
    [
        ((24,), (1, 16, 32), ["fp16"]),
        ((48,), (1, 16, 64, 128), ["fp16"]),
        ((80,), (1, 16, 64, 128), ["fp16", "awq"]),
        ((141,), (1, 16, 64, 128), ["fp16", "awq", "gptq", "bnb-nf4"]),
        ((48, 48, 48, 48), (1, 16, 64, 128), ["fp16", "awq", "gptq", "bnb-nf4"]),
    ],
)
def test_the_default_grid_fits_as_far_as_the_gpu_goes(
    gib: tuple[int, ...], levels: tuple[int, ...], together: list[str]
) -> None:
    """Mistral 7B: 13.5 GiB of weights, 2 GiB beside them, 0.159 GiB of KV cache for each request of 1,300 tokens."""
    size = size_by_config(MISTRAL_CONFIG)
    assert size is not None
    recipes = {name: load_recipe(name) for name in ("fp16", "awq", "gptq", "bnb-nf4")}
    sizing = fit(size, recipes, [one * GIB for one in gib])
    assert sizing.concurrency == levels
    assert sizing.kv_cache_bytes == max(levels) * 1300 * 128 * 1024
    assert list(sizing.placed) == together
    assert sorted(set(sizing.placed.values())) == [(index,) for index in range(len(gib))]
    assert max(sizing.needs.values()) <= 0.92 * min(gib) * GIB


def test_what_does_not_fit_is_left_out_or_refused_with_what_would() -> None:
    size = size_by_config(MISTRAL_CONFIG)
    assert size is not None
    both = {name: load_recipe(name) for name in ("fp16", "awq")}
    sizing = fit(size, both, [16 * GIB])
    assert list(sizing.needs) == ["awq"]
    assert list(sizing.left_out) == ["fp16"]
    with pytest.raises(UsageError, match=r"fp16 with B = 64 .* 22.1 of the GPU's 24.0 GiB .* --concurrency 1,16,32"):
        fit(size, {"fp16": both["fp16"]}, [24 * GIB], concurrency=[1, 64])
    with pytest.raises(UsageError, match="use a larger GPU or a smaller model"):
        fit(size, both, [4 * GIB])


def test_gpus_that_share_a_model_hold_a_part_each() -> None:
    """FP16 on two GPUs: half of 13.5 GiB of weights and of the keys and values on each, and 2 GiB beside them."""
    size = size_by_config(MISTRAL_CONFIG)
    assert size is not None
    both = {name: load_recipe(name) for name in ("fp16", "awq")}
    alone, shared = (fit(size, both, [24 * GIB] * 3, tensor_parallel=n) for n in ({}, {"fp16": 2}))
    assert (alone.concurrency, shared.concurrency) == ((1, 16, 32), (1, 16, 64))  # now AWQ on one GPU is the heaviest
    kept = shared.kv_cache_bytes
    assert kept == 64 * 1300 * 128 * 1024
    assert shared.needs["fp16"] == pytest.approx(size.weight_bytes(both["fp16"]) / 2 + 2 * GIB + kept / 2, abs=2)
    assert shared.placed == {"fp16": (0, 1), "awq": (2,)}
    with pytest.raises(UsageError, match="fp16 is to share 4 GPUs, and there are 3: give fewer, or name more"):
        fit(size, both, [24 * GIB] * 3, tensor_parallel={"fp16": 4})
    with pytest.raises(UsageError, match="let more GPUs share it: --tensor-parallel 2"):
        fit(size, {"fp16": both["fp16"]}, [12 * GIB] * 2)


def test_more_gpus_than_key_value_heads_hold_copies() -> None:
    size = size_by_config(MISTRAL_CONFIG)
    assert size is not None
    assert [size.kv_share(gpus) for gpus in (1, 2, 8, 16)] == [1, 1 / 2, 1 / 8, 1 / 8]


@pytest.mark.parametrize(("most", "levels"), [(1, (1,)), (5, (1, 4)), (16, (1, 16)), (500, (1, 16, 64, 128))])
def test_a_grid_that_is_cut_ends_with_a_power_of_two(most: int, levels: tuple[int, ...]) -> None:
    assert grid(most) == levels
