"""A checkpoint: whether a recipe serves what its config.json says, and what tells its weights from others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import UsageError
from loadgen.serving.hub import (
    HubAnswer,
    cached_snapshot,
    endpoint,
    fault_of_config,
    fetch_config,
    is_offline,
    local_config,
    read_config,
)
from loadgen.serving.quantization import Quantization, quantization_of
from loadgen.serving.recipe import Recipe, load_recipes


def note_of(checkpoint: str) -> str | None:
    """What a checkpoint on this machine says of itself, in `loadgen_note` of its config.json: of one with random
    weights, that it shows speed and energy only. None: nothing."""
    note = (local_config(checkpoint) or {}).get("loadgen_note")
    return " ".join(note.split()) if isinstance(note, str) and note.strip() else None


def held_by(checkpoint: str) -> Quantization | None:
    """What the checkpoint's config.json on this machine says; None for 16 bits, or when this machine has none."""
    return quantization_of(local_config(checkpoint) or {})


def remarks(held: Quantization | None, kv_cache_dtype: str | None) -> tuple[str, ...]:
    """What a reader of a server's figures must know of a quantized checkpoint whose keys and values are kept so."""
    said = []
    if held is not None and held.kv_cache is not None:
        if kv_cache_dtype in ("float16", "bfloat16"):
            done = f"it is served with a {kv_cache_dtype} one, as the other targets are"
        else:
            done = f"its keys and values are kept as {kv_cache_dtype or 'it asks'}"
        said.append(f"the checkpoint asks for a {held.kv_cache} KV cache: {done}")
    if held is not None and held.mixed:
        said.append(f"some modules of the checkpoint are {' or '.join(held.mixed)} instead of {held.numbers}")
    if held is not None and held.method == "bitsandbytes" and held.left:
        shown = ", ".join(held.left[:2]) + (", ..." if len(held.left) > 2 else "")
        said.append(
            f"{len(held.left)} modules of the checkpoint are left in 16 bits ({shown}): another precision than "
            f"{held.numbers} throughout"
        )
    return tuple(said)


def serves(recipe: Recipe, found: Quantization) -> bool:
    """Whether the recipe serves a checkpoint of that kind as it is."""
    if found.obstacle or found.method not in recipe.quant_methods:
        return False
    return found.numbers in (None, recipe.numbers)


def mismatch(recipe: Recipe, checkpoint: str, config: Mapping[str, Any], *, in_flight: bool) -> str | None:
    """One sentence when the recipe does not serve a checkpoint with this config.json, else None.

    `in_flight`: the recipe quantizes it while loading, so it must be 16-bit itself.
    """
    found = quantization_of(config)
    if found is not None and found.obstacle:
        return f"vLLM does not load {checkpoint}, which holds {found}: {found.obstacle}; name another with --checkpoint"
    if in_flight or not recipe.quant_methods:
        if found is None:
            return None
        remedy = "name it with --checkpoint" if serves(recipe, found) else "give the 16-bit model"
        return (
            f"recipe {recipe.name!r} starts from 16-bit weights and {checkpoint} holds {found}; {remedy} "
            f"({_recipe_for(found)})"
        )
    wanted = " or ".join(Quantization(method, recipe.numbers).kind for method in recipe.quant_methods)
    if found is None:
        held = "has no quantization_config; name another with --checkpoint"
    elif serves(recipe, found):
        return None
    else:
        held = f"holds {found}; name another with --checkpoint ({_recipe_for(found)})"
    return f"recipe {recipe.name!r} serves {wanted} and {checkpoint} {held}"


def _recipe_for(found: Quantization) -> str:
    names = [repr(name) for name, recipe in load_recipes().items() if serves(recipe, found)]
    return f"recipe {' or '.join(names)} serves it" if names else "no recipe serves it"


def require_quantization(recipe: Recipe, checkpoint: str, *, in_flight: bool, online: bool) -> None:
    """Raises UsageError when the checkpoint's config.json can be read and is not what the recipe serves.

    It is read from the folder or the hub's cache, and when `online` from the hub (at most 5 s); what cannot be read is
    left to vLLM, except that a file of this machine must be a JSON object, and that the hub must let it be read.
    """
    if fault := fault_of_config(checkpoint):
        raise UsageError(fault)
    config = local_config(checkpoint)
    if config is None and online and not is_offline():
        answer = ask_hub(checkpoint)
        if answer.state == "gated":
            raise UsageError(gated(checkpoint, answer.reason))
        config = answer.config
    if config is not None and (sentence := mismatch(recipe, checkpoint, config, in_flight=in_flight)):
        raise UsageError(sentence)


def gated(checkpoint: str, reason: str) -> str:
    """The sentence about a checkpoint that the hub does not give to everybody."""
    return (
        f"the hub does not give {checkpoint} to this user ({reason}): accept its licence on "
        f"{endpoint()}/{checkpoint} and set HF_TOKEN to a token that may read it; it may also not exist"
    )


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
