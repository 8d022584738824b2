"""Quantization: what a config.json says of its weights, which recipe serves them, and the sentence where none does."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from made_hub import AWQ, made_hub, packed, put_in_folder

from loadgen.errors import UsageError
from loadgen.serving.checkpoint import (
    fault_of_config,
    fetch_config,
    hub_token,
    local_config,
    mismatch,
    token_variables,
    token_warning,
)
from loadgen.serving.launch import plan_launch
from loadgen.serving.quantization import quantization_of
from loadgen.serving.recipe import load_recipe, load_recipes


def stored(**entry: Any) -> dict[str, Any]:
    return {"quantization_config": entry}


def groups(weights: Any, activations: Any = None, **entry: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return stored(quant_method="compressed-tensors", config_groups={"group_0": group}, **entry)


def floats(strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": 8, "type": "float", "strategy": strategy, **more}


def recipes_for(config: dict[str, Any]) -> list[str]:
    return [name for name, recipe in load_recipes().items() if mismatch(recipe, "M", config, in_flight=False) is None]


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
SERVED: list[tuple[dict[str, Any], str, str]] = [
    (stored(quant_method="awq", bits=4, group_size=64, version="gemm"), "awq", "awq int4 (group 64)"),
    (stored(quant_method="AWQ", w_bit=4, q_group_size=128), "awq", "awq int4 (group 128)"),
    (stored(quant_method="awq", bits=4, group_size=128, modules_to_not_convert=["visual", "lm_head"]), "awq",
     "awq int4 (group 128, 1 module left in 16 bits)"),
    (stored(quant_method="gptq", bits=4, group_size=32, desc_act=True, sym=True), "gptq",
     "gptq int4 (group 32, act-order)"),
    (stored(quant_method="gptq", bits=4, group_size=-1, desc_act=False), "gptq", "gptq int4 (per channel)"),
    (stored(quant_method="gptq", bits=4, group_size=128, dynamic={"+:.*up.*": {"bits": 8}, "-:.*down.*": {}}), "gptq",
     "gptq int4 (group 128, mixed with int8, 1 module left in 16 bits)"),
    (groups({"num_bits": 8, "type": "int", "strategy": "channel"}, {"num_bits": 8, "type": "int", "dynamic": True}),
     "int8", "compressed-tensors int8/int8 (per channel, dynamic activations)"),
    (groups(floats("tensor"), floats("tensor", dynamic=False)), "fp8",
     "compressed-tensors float8/float8 (per tensor, static activations)"),
    (groups(floats("block", block_structure=[128, 128]), floats("group", dynamic=True)), "fp8-block",
     "compressed-tensors float8/float8 (blocks of 128x128, dynamic activations)"),
    (groups(floats("channel"), floats("token", dynamic=True), ignore=["lm_head", "model.layers.0.mlp.gate"]), "fp8",
     "compressed-tensors float8/float8 (per channel, dynamic activations, 1 module left in 16 bits)"),
    (groups(floats("channel"), floats("token"), kv_cache_scheme={"num_bits": 8, "type": "float"}), "fp8",
     "compressed-tensors float8/float8 (per channel, asks for a float8 KV cache)"),
    (stored(quant_method="fp8", weight_block_size=[128, 128], activation_scheme="dynamic"), "fp8-block",
     "fp8 float8/float8 (blocks of 128x128, dynamic activations)"),
    (stored(quant_method="fp8", weight_block_size=None, activation_scheme="static"), "fp8",
     "fp8 float8/float8 (per tensor, static activations)"),
    (stored(**BNB), "bnb-nf4", "bitsandbytes nf4"),
    (stored(**BNB, llm_int8_skip_modules=["lm_head", "model.layers.1.mlp", "model.layers.2.self_attn"]), "bnb-nf4",
     "bitsandbytes nf4 (2 modules left in 16 bits)"),
    (stored(quant_method="bitsandbytes", load_in_8bit=True), "bnb-int8", "bitsandbytes int8"),
    ({"text_config": stored(quant_method="awq", bits=4, group_size=128)}, "awq",
     "awq int4 (group 128, said in text_config)"),
    (stored(quant_method="gptq", bits=8, group_size=128), "gptq-int8", "gptq int8 (group 128)"),
    (groups({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "actorder": "static"},
            format="pack-quantized"), "w4a16", "compressed-tensors int4 (group 128)"),
    (groups({"num_bits": 8, "type": "int", "strategy": "channel"}, format="pack-quantized"), "w8a16",
     "compressed-tensors int8 (per channel)"),
    (groups({"num_bits": 4, "type": "float"}, {"num_bits": 4, "type": "float"}, format="nvfp4-pack-quantized"),
     "nvfp4", "compressed-tensors float4/float4 (NVFP4)"),
    (groups({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}), "nvfp4",
     "compressed-tensors float4 (NVFP4, group 16)"),
    (stored(quant_method="modelopt", quant_algo="NVFP4", kv_cache_scheme={"num_bits": 8, "type": "float"}), "nvfp4",
     "modelopt (NVFP4, asks for a float8 KV cache)"),
    (groups({"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}, {"num_bits": 4, "type": "float"}),
     "mxfp4", "compressed-tensors float4/float4 (MXFP4, group 32)"),
    (stored(quant_method="mxfp4", modules_to_not_convert=["lm_head"]), "mxfp4", "mxfp4"),
    (stored(quant_method="modelopt", quant_algo="FP8"), "modelopt-fp8", "modelopt (FP8)"),
    (stored(quant_method="modelopt", quant_algo="fp8_pb_wo"), "fp8-block", "modelopt (FP8_PB_WO)"),
    (stored(quant_method="torchao", quant_type={"default": {"_type": "Int4WeightOnlyConfig"}}), "torchao",
     "torchao (Int4WeightOnlyConfig)"),
]  # fmt: skip
NAMED: list[tuple[dict[str, Any], str]] = [
    (stored(quant_method="auto-round", bits=4, group_size=128), "auto-round int4 (group 128)"),
    (groups({"num_bits": 3, "type": "int", "strategy": "group", "group_size": 128, "actorder": "group"}),
     "compressed-tensors int3 (group 128, act-order)"),
    (groups({"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}),
     "compressed-tensors float8 (MXFP8, group 32)"),
    (stored(quant_method="modelopt", quant_algo="MIXED_PRECISION"), "modelopt (MIXED_PRECISION)"),
    (stored(quant_method="quark", export={}), "quark"),
    (stored(bits=4), "unnamed"),
]  # fmt: skip
OBSTACLES: list[tuple[dict[str, Any], str]] = [
    (stored(quant_method="awq", bits=4, version="gemv_fast"), "AutoAWQ's GEMV_FAST layout"),
    (stored(quant_method="gptq", bits=4, sym=False), "zero points (sym: false)"),
    (stored(quant_method="gptq", bits=3), "in 4 and 8 bits, not in 3"),
    (stored(quant_method="gptq", bits="4"), "its `bits` is the text '4', which vLLM refuses: write the number 4"),
    (stored(quant_method="awq", bits=[4]), "its `bits` is [4], which is not a number"),
    (stored(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "has no quant_method"),
    (stored(quant_method="bitsandbytes"), "sets neither load_in_4bit nor load_in_8bit"),
    (stored(quant_method="compressed-tensors", config_groups=None), "config_groups is null"),
    (stored(quant_method="compressed-tensors"), "config_groups is missing"),
    (stored(quant_method="compressed-tensors", config_groups=["Linear"]), "config_groups is a list"),
    (stored(quant_method="compressed-tensors", config_groups={"W8A8": ["Linear"]}), "gives 'W8A8' as a list"),
    (groups([8]), "the weights of its config_groups are a list where a mapping is expected"),
    (groups({"num_bits": 8, "type": "float"}, "dynamic"), "the input_activations of its config_groups are a text"),
    (groups(floats("channel"), floats("token"), kv_cache_scheme="fp8"), "kv_cache_scheme is a text where a mapping"),
    ({"quantization_config": ["awq"]}, "its quantization_config is a list where a mapping is expected"),
    ({"text_config": {"quantization_config": "awq"}}, "entry in its text_config is a text where a mapping"),
    (stored(quant_method="modelopt"), "does not name its quant_algo"),
    (groups({"num_bits": 4, "type": "int"}, format="marlin-24"), "is 2:4 sparse, which vLLM no longer serves"),
    (groups({"num_bits": 4, "type": "int"}, format="int-quantized"), "weights of int4 alone only as pack-quantized"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "recipe", "shown"), SERVED)
def test_a_checkpoint_is_served_by_one_recipe_and_told_from_others_of_its_kind(
    config: dict[str, Any], recipe: str, shown: str
) -> None:
    assert recipes_for(config) == [recipe]
    assert str(quantization_of(config)) == shown
    sentence = mismatch(load_recipe("fp16"), "M", config, in_flight=False)
    assert sentence is not None
    assert f"M holds {shown}; " in sentence
    assert f"(recipe '{recipe}' serves it: --serve {recipe}=M)" in sentence


@pytest.mark.parametrize(("config", "shown"), NAMED)
def test_what_no_recipe_serves_is_named(config: dict[str, Any], shown: str) -> None:
    assert recipes_for(config) == []
    for name in ("fp16", "gptq", "bnb-nf4"):
        sentence = mismatch(load_recipe(name), "M", config, in_flight=False)
        assert sentence is not None
        assert f"M holds {shown}; " in sentence
        assert "no recipe serves it" in sentence


@pytest.mark.parametrize(("config", "clause"), OBSTACLES)
def test_what_vllm_does_not_load_is_refused_with_the_reason(config: dict[str, Any], clause: str) -> None:
    assert recipes_for(config) == []
    sentence = mismatch(load_recipe("awq"), "M", config, in_flight=False)
    assert sentence is not None
    assert sentence.startswith("vLLM does not load M, which holds ")
    assert clause in sentence
    assert sentence.endswith("; give another (an id or a folder): --serve awq=ORG/NAME")


@pytest.mark.parametrize("value", [None, [], {}, "", 7, True, ["x"], [[{}]], {"a": []}, "text"])
def test_no_shape_of_any_field_is_an_exception(value: Any) -> None:
    fields = (
        "quant_method", "bits", "group_size", "desc_act", "dynamic", "modules_to_not_convert", "weight_block_size",
        "config_groups", "ignore", "kv_cache_scheme", "quantization", "quant_algo", "quant_type", "producer", "version",
        "llm_int8_skip_modules", "activation_scheme",
    )  # fmt: skip
    for method in ("awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors", "modelopt", "torchao", "quark"):
        for field in fields:
            str(quantization_of(stored(**{"quant_method": method, field: value})))
    for field in ("weights", "input_activations", "strategy", "actorder", "block_structure"):
        side = {"num_bits": value, "type": value, field: value}
        one = groups(side, side) if field in ("strategy", "actorder", "block_structure") else groups(value)
        str(quantization_of(one))
    assert quantization_of({"text_config": value}) is None
    str(quantization_of({"quantization_config": value}))


def test_the_older_file_of_modelopt_is_read_beside_config_json(tmp_path: Path) -> None:
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    folder = put_in_folder(tmp_path / "M", {"model_type": "llama"})
    (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    found = quantization_of(local_config(str(folder)) or {})
    assert str(found) == "modelopt (FP8, asks for a float8 KV cache, said in hf_quant_config.json)"
    with pytest.raises(UsageError, match=re.escape("holds modelopt (FP8,")):
        plan_launch(load_recipe("bf16"), model=str(folder), port=1, device="cpu", max_num_seqs=1, vllm="vllm")
    own = put_in_folder(tmp_path / "own", AWQ)
    (own / "hf_quant_config.json").write_text(json.dumps(beside))
    assert str(quantization_of(local_config(str(own)) or {})) == "awq int4"


def test_the_older_file_of_modelopt_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with made_hub({"a/old": {}, "a/plain": {}, "a/awq": AWQ}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.beside["a/old"] = {"quantization": {"quant_algo": "NVFP4"}}
        assert str(quantization_of(fetch_config("a/old").config or {})).startswith("modelopt (NVFP4, said in")
        assert fetch_config("a/plain").config == {}
        assert fetch_config("a/awq").config == AWQ


@pytest.mark.parametrize(("text", "said"), [("[1]", "is a JSON list where an object"), ("{", "cannot be read as JSON")])
def test_a_config_json_that_is_no_object_ends_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    folder = put_in_folder(tmp_path / "M", {})
    assert fault_of_config(str(folder)) is None
    (folder / "config.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        plan_launch(load_recipe("bf16"), model=str(folder), port=1, device="cpu", max_num_seqs=1, vllm="vllm")


def test_a_token_that_was_saved_by_a_login_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert hub_token() is None
    (tmp_path / "token").write_text("hf_saved\n")
    assert hub_token() == "hf_saved"
    monkeypatch.setenv("HF_TOKEN", "hf_named")
    assert hub_token() == "hf_named"


def test_a_token_is_read_from_a_file_that_holds_it_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert (token_variables(), token_warning()) == ({}, None)
    held, fifo = tmp_path / "token", tmp_path / "fifo"
    monkeypatch.setenv("HF_TOKEN_FILE", str(held))
    held.write_text("hf_held\n")
    held.chmod(0o640)
    assert (hub_token(), token_variables()) == ("hf_held", {"HF_TOKEN_PATH": str(held)})
    assert token_warning() == f"HF_TOKEN_FILE: other users of this machine can read {held}; run `chmod 600 {held}`"
    held.chmod(0o600)
    assert token_warning() is None
    os.mkfifo(fifo)
    for content, path, said in (
        ("", held, "does not hold exactly one token"),
        ("two words", held, "does not hold exactly one token"),
        ("", tmp_path / "absent", "cannot be read (No such file or directory)"),
        ("", fifo, "only regular files are read"),
    ):
        held.write_text(content)
        monkeypatch.setenv("HF_TOKEN_FILE", str(path))
        with pytest.raises(UsageError, match=re.escape(said)) as error:
            hub_token()
        assert str(error.value).startswith(f"HF_TOKEN_FILE names {path}")


def test_kinds_that_share_a_method_are_told_apart_by_their_numbers() -> None:
    eight_weights = packed("int", 8, activations=False)
    assert recipes_for(eight_weights) == ["w8a16"]
    assert str(quantization_of(eight_weights)) == "compressed-tensors int8"
