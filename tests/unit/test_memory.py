"""What a server needs of a GPU follows from its model's config.json, or from the table of known models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.serving.memory import size_by_config, size_of
from loadgen.serving.recipe import load_models, load_recipe

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
