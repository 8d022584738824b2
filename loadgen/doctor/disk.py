"""Disk for checkpoints: what is free where the hub's cache lies, and what a model still needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from loadgen.doctor.finding import Finding, Mode, absent
from loadgen.serving.families import checkpoints_of, load_models
from loadgen.serving.hub import cache_folder, cached_snapshot, has_weights
from loadgen.serving.recipe import Recipe

_GB = 1e9


def free_bytes(folder: Path) -> int:
    """Free on the file system of a folder, or of its nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def disk(
    mode: Mode, model: str | None, recipes: Mapping[str, Recipe], free: Callable[[Path], int] = free_bytes
) -> Finding:
    """Free bytes against those of the model's checkpoints that are not in the cache, each about."""
    check = "disk"
    if mode == "simulated":
        return Finding(check=check, state="not applicable", seen="simulated servers load no checkpoint")
    if model is not None and Path(model).expanduser().is_dir():
        return Finding(check=check, state="ok", seen=f"{model} is a folder: nothing is downloaded")
    folder = cache_folder()
    free_gb = free(folder) / _GB
    seen = f"{free_gb:.0f} GB free for {folder}"
    if model is None:
        return Finding(check=check, state="ok", seen=seen, advice="give --model to see what it needs")
    known = load_models().get(model)
    if known is None:
        advice = f"the size of {model} is not known here: 2 bytes a parameter for 16 bits, half a byte for 4"
        return Finding(check=check, state="warning", seen=seen, advice=advice)
    absent_ones = [one for one in checkpoints_of(known, recipes) if not is_cached(one.id)]
    needs_gb = {one.recipe: one.expected_bytes / _GB for one in absent_ones}
    if not needs_gb:
        return Finding(check=check, state="ok", seen=f"{seen}; every checkpoint of {model} is in the cache")
    parts = ", ".join(f"{name} {size_gb:.1f}" for name, size_gb in needs_gb.items())
    seen += f"; still to download for {model}, about: {parts} GB"
    if sum(needs_gb.values()) <= free_gb:
        return Finding(check=check, state="ok", seen=seen)
    advice = "free some space, or let HF_HUB_CACHE name a folder on a larger disk"
    if needs_gb.get("16-bit", 0.0) > free_gb:
        return absent(check, seen, advice, needed=True)
    return Finding(check=check, state="warning", seen=seen, advice=advice)


def is_cached(checkpoint: str) -> bool:
    """Whether the hub's cache holds weights of that id."""
    snapshot = cached_snapshot(checkpoint)
    return snapshot is not None and has_weights(snapshot)
