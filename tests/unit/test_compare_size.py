"""How many parameters a model has: what is said, what its files hold, what its name says; never a guess."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadgen.analysis.compare.row import given_size, model_size
from loadgen.errors import UsageError
from loadgen.serving.checkpoint import weights_of


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.3", 7e9), ("Qwen/Qwen3-0.6B", 0.6e9), ("simulated-mistral-7b", 7e9),
        ("HuggingFaceTB/SmolLM2-135M", 135e6), ("org-3B/Falcon3-10B-Base", 10e9), ("Qwen2.5-32B-4bit", 32e9),
    ],
)  # fmt: skip
def test_the_name_says_the_size(name: str, parameters: float) -> None:
    size = model_size(name, None, {}, "run")
    assert (size.parameters, size.source) == (parameters, "name")


@pytest.mark.parametrize(
    "name", ["Mixtral-8x7B-v0.1", "Qwen3-30B-A3B", "Llama-4-Scout-17B-16E", "tiny", "gpt2", "draft-1B-of-7B"]
)
def test_a_mixture_of_experts_and_a_silent_name_are_asked_for(name: str) -> None:
    size = model_size(name, None, {}, "run")
    assert size.parameters is None
    assert f"give --size {name}=7.25B" in size.source


def test_what_is_given_counts_first_by_run_target_or_model() -> None:
    for key in ("run", "awq", "org/model-7B", "model-7B"):
        size = model_size("org/model-7B", None, {key: 7.25e9}, "run", "awq")
        assert (size.parameters, size.source) == (7.25e9, "--size")


def test_a_model_folder_is_counted_by_its_tensors(tmp_path: Path) -> None:
    """6 x 4 + 5 elements over two files."""
    folder = tmp_path / "model-7B"
    _checkpoint(folder, "a.safetensors", {"__metadata__": {"format": "pt"}, "w": {"shape": [6, 4]}})
    _checkpoint(folder, "b.safetensors", {"norm": {"shape": [5]}})
    size = model_size(str(folder), weights_of(folder), {}, "run")
    assert (size.parameters, size.source) == (29, "safetensors")


def test_a_folder_that_a_manifest_names_is_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "model-7B"
    _checkpoint(folder, "a.safetensors", {"w": {"shape": [6, 4]}})
    assert model_size(str(folder), None, {}, "run").source == "name"


@pytest.mark.parametrize(
    ("config", "parameters"), [({"quantization_config": {"bits": 4}}, 7e9), ({"num_local_experts": 8}, None)]
)
def test_packed_weights_and_experts_are_not_counted(tmp_path: Path, config: object, parameters: float | None) -> None:
    folder = tmp_path / "model-7B"
    _checkpoint(folder, "a.safetensors", {"w": {"shape": [6, 4]}})
    (folder / "config.json").write_text(json.dumps(config))
    assert model_size(str(folder), weights_of(folder), {}, "run").parameters == parameters


def test_a_damaged_checkpoint_falls_back_to_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "model-7B"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    assert model_size(str(folder), weights_of(folder), {}, "run").source == "name"


@pytest.mark.parametrize(("text", "parameters"), [("7.25B", 7.25e9), ("600m", 6e8), ("1.5e9", 1.5e9), (7e9, 7e9)])
def test_a_given_size_is_a_number_with_a_unit(text: str | float, parameters: float) -> None:
    assert given_size(text) == parameters


@pytest.mark.parametrize("text", ["7G", "0B", "-1B", "seven", "", "1.2.3B"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"write it as 7\.25B"):
        given_size(text)


def _checkpoint(folder: Path, name: str, header: object) -> None:
    folder.mkdir(exist_ok=True)
    content = json.dumps(header).encode()
    (folder / name).write_bytes(len(content).to_bytes(8, "little") + content + b"\0" * 8)
