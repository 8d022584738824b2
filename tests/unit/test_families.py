"""Model families: what each recipe serves for a model, and that a checkpoint of another kind is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_hub import AWQ, GPTQ, GPTQ_8, MadeHub, made_hub, packed, put_in_cache, put_in_folder

from loadgen.cli.serve import command as serve
from loadgen.errors import UsageError
from loadgen.serving.checkpoint import cache_folder, fetch_config
from loadgen.serving.launch import Launch, confirm_checkpoint, plan_launch
from loadgen.serving.quantization import Quantization, quantization_of
from loadgen.serving.recipe import checkpoints_of, expected_bytes, load_models, load_recipe, load_recipes

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.3"
MISTRAL_AWQ = "solidrust/Mistral-7B-Instruct-v0.3-AWQ"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, no token and no wish to stay offline."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[MadeHub]:
    with made_hub({}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/")
        yield hub


def plan(recipe: str, model: str | Path, **more: Any) -> Launch:
    options = {"port": 8001, "device": "cuda", "max_num_seqs": 8, "vllm": "vllm", **more}
    return plan_launch(load_recipe(recipe), model=str(model), **options)


def test_every_family_that_was_promised_is_known() -> None:
    promised = {
        "mistralai/Mistral-7B-v0.3", MISTRAL, "Qwen/Qwen3-0.6B", "tiiuae/Falcon3-3B-Base", "tiiuae/Falcon3-3B-Instruct",
        "Qwen/Qwen2.5-14B-Instruct", "Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-72B-Instruct",
    }  # fmt: skip
    assert promised <= set(load_models())


def test_recipes_name_known_models_and_each_checkpoint_once() -> None:
    models = load_models()
    for recipe in load_recipes().values():
        assert not recipe.checkpoints.keys() & recipe.unverified_checkpoints.keys()
        assert recipe.checkpoints.keys() | recipe.unverified_checkpoints.keys() <= models.keys()
        assert bool(recipe.quant_methods) == (recipe.bits != 16)


def test_a_verified_checkpoint_then_quantizing_while_loading_then_an_unverified_one() -> None:
    fp8, gptq = load_recipe("fp8"), load_recipe("gptq")
    assert fp8.checkpoint_for(MISTRAL) == "RedHatAI/Mistral-7B-Instruct-v0.3-FP8"
    assert fp8.unverified_checkpoints["Qwen/Qwen2.5-14B-Instruct"] == "RedHatAI/Qwen2.5-14B-Instruct-FP8-dynamic"
    assert fp8.checkpoint_for("Qwen/Qwen2.5-14B-Instruct") == "Qwen/Qwen2.5-14B-Instruct"
    assert plan("fp8", "Qwen/Qwen2.5-14B-Instruct").in_flight
    assert "Qwen/Qwen2.5-32B-Instruct" in gptq.unverified_checkpoints
    assert gptq.checkpoint_for("Qwen/Qwen2.5-32B-Instruct") == "Qwen/Qwen2.5-32B-Instruct-GPTQ-Int4"
    with pytest.raises(UsageError, match="knows none for 'tiiuae/Falcon3-3B-Base'"):
        gptq.checkpoint_for("tiiuae/Falcon3-3B-Base")


def test_the_expected_size_is_about_the_published_one() -> None:
    # domain facts: AWQ 4.16 GB, FP8 7.5 GB for Mistral-7B; 1.19 GB for Qwen3-0.6B in 16 bits.
    models = load_models()
    assert expected_bytes(models[MISTRAL].parameters, 4) / 1e9 == pytest.approx(4.16, rel=0.05)
    assert expected_bytes(models[MISTRAL].parameters, 8) / 1e9 == pytest.approx(7.5, rel=0.2)
    assert expected_bytes(models["Qwen/Qwen3-0.6B"].parameters, 16) / 1e9 == pytest.approx(1.19, rel=0.05)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        (AWQ, Quantization("awq", "int4")),
        ({"quantization_config": {"quant_method": "awq", "w_bit": 4}}, Quantization("awq", "int4")),
        (GPTQ_8, Quantization("gptq", "int8")),
        ({"quantization_config": {"quant_method": "fp8"}}, Quantization("fp8", "float8/float8")),
        (packed("int", 8, activations=True), Quantization("compressed-tensors", "int8/int8")),
        (packed("int", 8, activations=False), Quantization("compressed-tensors", "int8")),
        (packed("float", 8, activations=True, entry="compression_config"),
         Quantization("compressed-tensors", "float8/float8")),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
         Quantization("bitsandbytes", "int8")),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}},
         Quantization("bitsandbytes", "nf4")),
        ({"quantization_config": {"quant_method": "torchao"}}, Quantization("torchao", None)),
        ({"quantization_config": {"bits": 4}}, Quantization("unnamed", None)),
    ],
)  # fmt: skip
def test_what_a_config_says(config: dict[str, Any], found: Quantization | None) -> None:
    assert quantization_of(config) == found


@pytest.mark.parametrize(
    ("recipe", "config", "held"),
    [
        ("awq", packed("int", 4, activations=False), "compressed-tensors int4"),
        ("awq", GPTQ, "gptq int4"),
        ("awq", {}, "has no quantization_config"),
        ("gptq", GPTQ_8, "gptq int8"),
        ("int8", packed("int", 8, activations=False), "compressed-tensors int8;"),
        ("int8", packed("float", 8, activations=True), "compressed-tensors float8/float8"),
        ("fp8", packed("int", 8, activations=True), "compressed-tensors int8/int8"),
        ("fp8", {"quantization_config": {"quant_method": "torchao"}}, "torchao"),
    ],
)
def test_a_folder_of_another_kind_than_its_name_says_is_refused(
    tmp_path: Path, recipe: str, config: dict[str, Any], held: str
) -> None:
    put_in_folder(tmp_path / "model", {})
    named = put_in_folder(tmp_path / f"model-{recipe}", config)
    with pytest.raises(UsageError, match=re.escape(held)) as error:
        plan(recipe, tmp_path / "model")
    assert str(named) in str(error.value)
    assert f"recipe {recipe!r}" in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "config"),
    [
        ("awq", AWQ),
        ("gptq", GPTQ),
        ("int8", packed("int", 8, activations=True)),
        ("fp8", packed("float", 8, activations=True)),
        ("fp8", {"quantization_config": {"quant_method": "fp8"}}),
        ("bnb-int8", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}),
    ],
)
def test_a_folder_of_the_recipes_kind_is_served(tmp_path: Path, recipe: str, config: dict[str, Any]) -> None:
    put_in_folder(tmp_path / "model", {})
    named = put_in_folder(tmp_path / f"model-{recipe}", config)
    assert plan(recipe, tmp_path / "model").checkpoint == str(named)


@pytest.mark.parametrize("recipe", ["fp16", "bnb-nf4", "fp8"])
def test_a_quantized_model_is_no_sixteen_bit_one(tmp_path: Path, recipe: str) -> None:
    with pytest.raises(UsageError, match=r"starts from 16-bit weights and .* holds awq int4"):
        plan(recipe, put_in_folder(tmp_path / "model", AWQ))


def test_a_cached_checkpoint_is_held_to_its_config_without_a_connection(own_cache: Path, hub: MadeHub) -> None:
    put_in_cache(own_cache, MISTRAL_AWQ, packed("int", 4, activations=False))
    with pytest.raises(UsageError, match=f"{MISTRAL_AWQ} holds compressed-tensors int4"):
        plan("awq", MISTRAL)
    assert hub.asked == []


def test_the_hub_is_asked_before_a_launch_and_its_answer_decides(hub: MadeHub) -> None:
    launch = plan("awq", MISTRAL)
    assert hub.asked == []
    hub.configs[MISTRAL_AWQ] = AWQ
    confirm_checkpoint(launch)
    hub.configs[MISTRAL_AWQ] = GPTQ
    with pytest.raises(UsageError, match=r"holds gptq int4; give another .*: --serve awq=ORG/NAME"):
        confirm_checkpoint(launch)
    assert [name for name, _ in hub.asked] == [MISTRAL_AWQ] * 2


def test_what_the_hub_does_not_say_is_left_to_vllm(hub: MadeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = plan("awq", MISTRAL)
    confirm_checkpoint(launch)
    hub.configs[MISTRAL_AWQ] = GPTQ
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    confirm_checkpoint(launch)
    assert len(hub.asked) == 1


def test_serve_refuses_before_it_starts_anything(hub: MadeHub) -> None:
    hub.configs[MISTRAL_AWQ] = GPTQ
    ended = CliRunner().invoke(serve, ["awq", "--model", MISTRAL, "--vllm", sys.executable])
    assert isinstance(ended.exception, UsageError)
    assert "holds gptq int4" in str(ended.exception)


def test_answers_of_the_hub(hub: MadeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add("a/gated")
    hub.configs = {"a/gated": {}, "a/there": AWQ}
    assert fetch_config("a/there").config == AWQ
    assert fetch_config("a/nowhere").state == "absent"
    assert (fetch_config("a/gated").state, fetch_config("a/gated").reason) == ("gated", "401 GatedRepo")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert fetch_config("a/gated").state == "found"
    assert hub.asked[-1] == ("a/gated", "Bearer secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert fetch_config("a/there").state == "unreachable"
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    assert fetch_config("a/there").state == "unreachable"


def test_a_token_is_not_sent_on_to_another_host(hub: MadeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with made_hub({"a/b": AWQ}) as other:
        hub.moved["a/b"] = other.url
        assert fetch_config("a/b").config == AWQ
        assert (hub.asked, other.asked) == ([("a/b", "Bearer secret")], [("a/b", None)])


def test_the_cache_folder_follows_the_hubs_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/h")
    monkeypatch.setenv("HF_HUB_CACHE", "/c")
    assert cache_folder() == Path("/c")
    monkeypatch.delenv("HF_HUB_CACHE")
    assert cache_folder() == Path("/h/hub")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/huggingface/hub")


def test_the_list_tells_verified_from_unverified_checkpoints() -> None:
    line = next(line for line in CliRunner().invoke(serve, ["--list"]).output.splitlines() if line.startswith("gptq"))
    gptq = load_recipe("gptq")
    assert f"{len(gptq.checkpoints)} verified, {len(gptq.unverified_checkpoints)} unverified" in line


def test_the_page_of_serving_has_a_row_for_each_recipe() -> None:
    rows = []
    for name, recipe in load_recipes().items():
        native = f", native from {recipe.native_capability}" if recipe.native_capability else ""
        cpu = "none" if recipe.cpu_refusal else ", ".join(recipe.cpu_flags) or "any"
        needs = " ".join(recipe.packages)
        gpu = recipe.gpu_capability + native
        rows.append(f"| `{name}` | {recipe.bits or '-'} | {recipe.format} | {gpu} | {cpu} | {needs} |")
    lines = (PAGE.parent / "serving.md").read_text(encoding="utf-8").splitlines()
    begin = lines.index("|---|---|---|---|---|---|") + 1
    assert lines[begin : lines.index("", begin)] == rows, "stale: the rows should be\n" + "\n".join(rows)


def test_the_page_lists_every_checkpoint_with_its_mark() -> None:
    rows = [
        f"| {one.model} | {one.recipe} | {one.id} | {'yes' if one.verified else '**no**'} |"
        for model in load_models().values()
        for one in checkpoints_of(model, load_recipes())
    ]
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line.endswith(("| yes |", "| **no** |"))]
    assert listed == rows, "stale: the rows should be\n" + "\n".join(rows)
