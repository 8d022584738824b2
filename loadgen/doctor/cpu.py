"""The CPU: which recipes vLLM's CPU build can run here, and whether it can load its kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from loadgen.doctor.finding import Finding, Mode, absent
from loadgen.serving.cpu_env import LIBRARY, library_is_here
from loadgen.serving.launch import CPU_INFO
from loadgen.serving.recipe import Recipe

_TOLD = ("avx2", "avx512f", "avx512_bf16", "amx_tile")


def cpu_flags(mode: Mode, recipes: Mapping[str, Recipe], info: Path = CPU_INFO) -> Finding:
    """AVX-512 for AWQ and GPTQ, as the recipes' `cpu_flags` say."""
    check = "CPU flags"
    if mode != "cpu":
        return Finding(check=check, state="not applicable", seen=f"mode {mode} computes nothing on the CPU")
    try:
        flags = set(info.read_text(encoding="utf-8").split())
    except OSError:
        advice = "AWQ and GPTQ need AVX-512: see the CPU's manual"
        return Finding(check=check, state="warning", seen=f"{info} cannot be read", advice=advice)
    seen = ", ".join(flag for flag in _TOLD if flag in flags) or "neither AVX2 nor AVX-512"
    refused = [recipe.name for recipe in recipes.values() if not flags.issuperset(recipe.cpu_flags)]
    if not refused:
        return Finding(check=check, state="ok", seen=seen)
    others = ", ".join(name for name in recipes if name not in refused)
    lacking = sorted({flag for name in refused for flag in recipes[name].cpu_flags if flag not in flags})
    advice = f"{', '.join(refused)} need {', '.join(lacking)}: choose among {others}"
    return Finding(check=check, state="warning", seen=seen, advice=advice)


def cpu_library(mode: Mode, is_here: Callable[[], bool] = library_is_here) -> Finding:
    """What vLLM's CPU build is linked against beside its packages."""
    check = "CPU library"
    if mode != "cpu":
        return Finding(check=check, state="not applicable", seen=f"mode {mode} computes nothing on the CPU")
    if is_here():
        return Finding(check=check, state="ok", seen=LIBRARY)
    return absent(check, f"{LIBRARY} is not here", "install it (Debian: `apt-get install libnuma1`)", needed=True)
