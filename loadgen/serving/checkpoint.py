"""Quantization: what a checkpoint's config.json says of its numbers, and whether a recipe serves that."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import UsageError
from loadgen.serving.hub import HubAnswer, cached_snapshot, fetch_config, is_offline, local_config, read_config
from loadgen.serving.recipe import Recipe


class Quantization(msgspec.Struct, frozen=True):
    """How a checkpoint is quantized."""

    method: str
    """`quantization_config.quant_method`."""
    numbers: str | None = None
    """Weights, and activations unless 16-bit: `int4`, `int8/int8`, `float8/float8`, `nf4`; None: it does not say."""

    def __str__(self) -> str:
        return f"{self.method} {self.numbers}" if self.numbers else self.method


def quantization_of(config: Mapping[str, Any]) -> Quantization | None:
    """What a config.json says; None for a 16-bit checkpoint.

    compressed-tensors once called the entry `compression_config`.
    """
    entry = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(entry, dict):
        return None
    method = str(entry.get("quant_method", "unnamed"))
    return Quantization(method, _numbers(method, entry))


def note_of(checkpoint: str) -> str | None:
    """What a checkpoint on this machine says of itself, in `loadgen_note` of its config.json: of one with random
    weights, that it shows speed and energy only. None: nothing."""
    note = (local_config(checkpoint) or {}).get("loadgen_note")
    return " ".join(note.split()) if isinstance(note, str) and note.strip() else None


def mismatch(recipe: Recipe, checkpoint: str, config: Mapping[str, Any], *, in_flight: bool) -> str | None:
    """One sentence when the recipe does not serve a checkpoint with this config.json, else None.

    `in_flight`: the recipe quantizes it while loading, so it must be 16-bit itself.
    """
    found = quantization_of(config)
    if in_flight or not recipe.quant_methods:
        if found is None:
            return None
        remedy = "name it with --checkpoint" if in_flight else "choose the recipe of that method"
        return f"recipe {recipe.name!r} starts from 16-bit weights and {checkpoint} holds {found}; {remedy}"
    wanted = " or ".join(str(Quantization(method, recipe.numbers)) for method in recipe.quant_methods)
    if found is None:
        held = "has no quantization_config"
    elif found.method in recipe.quant_methods and found.numbers in (None, recipe.numbers):
        return None
    else:
        held = f"holds {found}"
    return f"recipe {recipe.name!r} serves {wanted} and {checkpoint} {held}; name another with --checkpoint"


def require_quantization(recipe: Recipe, checkpoint: str, *, in_flight: bool, online: bool) -> None:
    """Raises UsageError when the checkpoint's config.json can be read and is not what the recipe serves.

    It is read from the folder or the hub's cache, and when `online` from the hub (at most 5 s); what cannot be read is
    left to vLLM.
    """
    config = local_config(checkpoint)
    if config is None and online and not is_offline():
        config = ask_hub(checkpoint).config
    if config is not None and (sentence := mismatch(recipe, checkpoint, config, in_flight=in_flight)):
        raise UsageError(sentence)


def checkpoint_identity(checkpoint: str) -> str | None:
    """What tells these weights from others of the same name, without reading them; None where this machine has none.

    For an id of the hub the cached commit of its branch `main`; for a folder a sha256 of its config.json and of the
    names and sizes of its files.
    """
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        snapshot = cached_snapshot(checkpoint)
        return f"commit {snapshot.name}" if snapshot else None
    files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file())
    content = msgspec.json.encode([read_config(folder), files])
    return f"sha256 {hashlib.sha256(content).hexdigest()}"


def ask_hub(checkpoint: str) -> HubAnswer:
    """`fetch_config` for an id; `absent` for what can be no id on the hub."""
    if checkpoint.count("/") != 1 or checkpoint.startswith((".", "/", "~")):
        return HubAnswer(state="absent", reason="not of the form ORGANISATION/NAME")
    return fetch_config(checkpoint)


def _numbers(method: str, entry: Mapping[str, Any]) -> str | None:
    if method in ("awq", "gptq"):
        bits = entry.get("bits", entry.get("w_bit"))
        return f"int{bits}" if isinstance(bits, int) else None
    if method == "fp8":
        return "float8/float8"
    if method == "bitsandbytes":
        return "int8" if entry.get("load_in_8bit") else str(entry.get("bnb_4bit_quant_type", "fp4"))
    if method == "compressed-tensors":
        groups = entry.get("config_groups")
        named = {_group_numbers(group) for group in groups.values()} if isinstance(groups, dict) else set()
        return " and ".join(sorted(named)) or None
    return None


def _group_numbers(group: Mapping[str, Any]) -> str:
    sides = (group.get("weights"), group.get("input_activations"))
    return "/".join(f"{side.get('type')}{side.get('num_bits')}" for side in sides if side)
