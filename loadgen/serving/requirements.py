"""Requirements: what a recipe needs of the GPU, the CPU and vLLM's environment, checked before a server is started."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

from loadgen.errors import UsageError
from loadgen.serving.gguf import fault_of_gguf
from loadgen.serving.recipe import Capability, Device, Recipe, load_recipes

CPU_INFO = Path("/proc/cpuinfo")
BNB_PLUGIN_SINCE = (0, 28)
"""From this version on vLLM serves bitsandbytes through vllm-bnb-plugin."""


def require_device(recipe: Recipe, device: Device) -> None:
    """Raises UsageError when no GPU that NVML shows on this machine, or not this CPU, serves the recipe."""
    if device == "cpu":
        return require_cpu(recipe)
    found = gpu_capabilities()
    if found and not is_at_least(highest(found), recipe.gpu_capability):
        raise UsageError(
            f"recipe {recipe.name!r} needs a GPU of compute capability {recipe.gpu_capability} or higher, and this "
            f"machine's has {highest(found)}; choose among {', '.join(served_at(highest(found), load_recipes()))}"
        )
    return None


def require_packages(recipe: Recipe, vllm: str) -> None:
    """Raises UsageError when the environment of that `vllm` command is known and lacks a package for the recipe."""
    if missing := missing_packages(recipe, packages_of(Path(vllm))):
        raise UsageError(
            f"recipe {recipe.name!r} needs {' and '.join(missing)} in vLLM's environment; run `pip install "
            f"{' '.join(missing)}` in the environment of {vllm}"
        )


def gpu_capabilities() -> list[Capability]:
    """The compute capability of each GPU that NVML shows and that says it; empty without NVML."""
    found = []
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                found.append(gpu_capability(index))
        finally:
            pynvml.nvmlShutdown()
    except Exception:
        return []
    return [capability for capability in found if capability is not None]


def gpu_capability(index: int) -> Capability | None:
    """The compute capability of a GPU, NVML being initialised; None: it does not say."""
    import pynvml

    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    except pynvml.NVMLError:
        return None
    return f"{major}.{minor}"


def is_at_least(capability: Capability, lowest: Capability) -> bool:
    """Whether a GPU of that capability can do what asks for the lowest one."""
    return _version(capability) >= _version(lowest)


def highest(capabilities: Sequence[Capability]) -> Capability:
    """The highest of several."""
    return max(capabilities, key=_version)


def served_at(capability: Capability, recipes: Mapping[str, Recipe]) -> list[str]:
    """The recipes that a GPU of that capability serves."""
    return [name for name, recipe in recipes.items() if is_at_least(capability, recipe.gpu_capability)]


def emulated_at(capability: Capability, recipes: Mapping[str, Recipe]) -> list[str]:
    """Those of them that it computes in 16 bits."""
    native = {name: recipe.native_capability for name, recipe in recipes.items()}
    return [n for n in served_at(capability, recipes) if (own := native[n]) and not is_at_least(capability, own)]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def packages_of(vllm: Path) -> dict[str, str] | None:
    """Versions of the Python packages in the environment of a `vllm` command, by normalised name, and of PYTHONPATH;
    None where vLLM is not among them."""
    sites = [str(path) for path in vllm.parent.parent.glob("lib/python3*/site-packages")]
    extra = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    held = {one.name.lower().replace("_", "-"): one.version for one in distributions(path=[*sites, *extra])}
    return held if "vllm" in held else None


def missing_packages(recipe: Recipe, held: Mapping[str, str] | None) -> tuple[str, ...]:
    """The packages that the recipe needs and that environment lacks; none where it is not known."""
    if held is None:
        return ()
    built_in = {"vllm-bnb-plugin"} if _version(held["vllm"]) < BNB_PLUGIN_SINCE else set()
    return tuple(name for name in recipe.packages if name not in held and name not in built_in)


def require_cpu(recipe: Recipe) -> None:
    """Raises UsageError when vLLM's CPU build does not serve the recipe on this CPU."""
    flags = CPU_INFO.read_text(encoding="utf-8").split() if CPU_INFO.exists() else recipe.cpu_flags
    missing = [flag for flag in recipe.cpu_flags if flag not in flags]
    if recipe.cpu_refusal or missing:
        others = [name for name, other in load_recipes().items() if other.runs_on_cpu(flags)]
        why = f"on a CPU needs {', '.join(missing)}, which this CPU lacks"
        if recipe.cpu_refusal:
            why = f"needs a GPU: {recipe.cpu_refusal}"
        raise UsageError(f"recipe {recipe.name!r} {why}; use a GPU, or one of {', '.join(others)}")


def require_place(model: str) -> None:
    """Raises UsageError when a model or checkpoint that is written as a path is not there."""
    if model.startswith("-"):
        raise UsageError(f"{model!r} is not a model: it starts with '-', and vLLM would take it for an option")
    path = Path(model).expanduser()
    if fault := fault_of_gguf(model):
        raise UsageError(fault)
    if model.startswith((".", "/", "~")) and not path.is_dir() and path.suffix != ".gguf":
        raise UsageError(f"the model folder {model} does not exist; name a folder or a Hugging Face id")
