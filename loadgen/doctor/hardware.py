"""The hardware: GPUs and their energy readings, what vLLM's CPU build can run, disk for checkpoints, and whether this
machine can stamp tokens to a millisecond."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import pynvml
import uvloop

from loadgen.doctor.finding import Finding, Mode, absent, judged
from loadgen.errors import UsageError
from loadgen.load.load import ClientProbe
from loadgen.power.nvml import NvmlReader
from loadgen.power.sample import GpuInfo, UnreadableGpu
from loadgen.power.sampler import select_gpus
from loadgen.serving.checkpoint import cache_folder, cached_snapshot, free_bytes, has_weights
from loadgen.serving.environment import LIBRARY, library_is_here
from loadgen.serving.recipe import Capability, Recipe, checkpoints_of, load_models, load_recipes
from loadgen.serving.requirements import CPU_INFO, emulated_at, gpu_capability, served_at

_SOURCES = {"counter_j": "energy counter", "power_instant_w": "instant power", "power_average_w": "average power"}


class SeenGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU and its persistence mode."""

    info: GpuInfo
    persistence: bool | None = None
    """None: NVML does not say."""
    capability: Capability | None = None
    """The CUDA compute capability; None: NVML does not say."""


def seen_gpus() -> tuple[list[SeenGpu], tuple[UnreadableGpu, ...]]:
    """The GPUs that NVML shows, and those of them that cannot be read. Raises UsageError without a driver, its library,
    or a GPU that can be read."""
    reader = NvmlReader()
    try:
        gpus = [
            SeenGpu(info=info, persistence=_persistence(info.index), capability=gpu_capability(info.index))
            for info in reader.gpus()
        ]
        return gpus, reader.unreadable
    finally:
        reader.close()


def examine_gpus(mode: Mode, recipes: Mapping[str, Recipe] | None = None) -> list[Finding]:
    """The driver, what CUDA sees, and five findings per GPU."""
    recipes = load_recipes() if recipes is None else recipes
    try:
        gpus, unreadable = seen_gpus()
    except UsageError as error:
        seen, _, remedy = str(error).partition(": ")
        needed = mode == "gpu"
        return [absent("GPU driver", seen, remedy if needed else "", needed=needed)]
    infos = [gpu.info for gpu in gpus]
    chosen = visible_gpus(infos, mode, unreadable)
    names = ", ".join(f"{info.index}: {info.name}" for info in infos)
    found = Finding("GPU driver", "ok", f"driver {infos[0].driver or 'of unknown version'}; {names}")
    findings = [found, chosen, *map(unreadable_gpu, unreadable)]
    for gpu in gpus:
        findings += [energy_fields(gpu.info), persistence_mode(gpu), slices(gpu.info), power_limits(gpu.info)]
        findings.append(recipes_of(gpu, recipes))
    return findings


def recipes_of(gpu: SeenGpu, recipes: Mapping[str, Recipe]) -> Finding:
    """Which recipes a GPU does not serve, and which it serves without units for their format."""
    check = f"GPU {gpu.info.index} recipes"
    if gpu.capability is None:
        return Finding(check, "not applicable", "NVML does not say the compute capability")
    served = served_at(gpu.capability, recipes)
    refused = [f"{name} (from {recipe.gpu_capability})" for name, recipe in recipes.items() if name not in served]
    seen = f"compute capability {gpu.capability}"
    seen += f"; does not serve {', '.join(refused)}" if refused else "; serves every recipe"
    if emulated := emulated_at(gpu.capability, recipes):
        seen += f"; computes {', '.join(emulated)} in 16 bits"
    return Finding(check, "ok", seen)


def unreadable_gpu(gpu: UnreadableGpu) -> Finding:
    """A GPU that does not answer: it is refused where it is chosen, and costs the others nothing."""
    remedy = "reset it or reboot the machine to use it"
    if gpu.code == "NVML_ERROR_NO_PERMISSION":
        remedy = "let this user or container read it"
    return judged(f"GPU {gpu.index}", str(gpu), f"choose other GPUs, or {remedy}")


def visible_gpus(infos: Sequence[GpuInfo], mode: Mode, unreadable: Sequence[UnreadableGpu]) -> Finding:
    """Which GPUs a server and its measurement would use, by CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER."""
    check, visible = "visible GPUs", os.environ.get("CUDA_VISIBLE_DEVICES")
    order = os.environ.get("CUDA_DEVICE_ORDER")
    try:
        chosen = select_gpus(infos, asked=None, visible=visible, order=order, unreadable=unreadable)
    except UsageError as error:
        if visible is None:
            advice = "set CUDA_VISIBLE_DEVICES to the servers' GPUs, or give sweep --gpu; else no energy is measured"
            return judged(check, f"{len(infos)} GPUs and CUDA_VISIBLE_DEVICES is not set", advice)
        return absent(check, str(error), "set CUDA_VISIBLE_DEVICES to GPUs that exist", needed=mode == "gpu")
    by = "the only GPU" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"
    return Finding(check, "ok", f"{by}: {', '.join(chosen)}")


def energy_fields(info: GpuInfo) -> Finding:
    """Whether NVML's energy counter and its instant and average power (fields 83, 186, 185) are there."""
    there = {name: info.supported.get(name, False) for name in _SOURCES}
    has, lacks = (", ".join(_SOURCES[name] for name in _SOURCES if there[name] is held) for held in (True, False))
    seen = "; ".join([f"has {has}"] * bool(has) + [f"lacks {lacks}"] * bool(lacks))
    check = f"GPU {info.index} energy"
    if info.scope == "module":
        advice = "its energy is the integral of its power: the counter is the whole module's, with CPU and memory"
        if not (there["power_instant_w"] or there["power_average_w"]):
            advice = "the counter is the whole module's, with CPU and memory: the GPU's energy cannot be measured"
        return judged(check, f"superchip; {seen}", advice)
    if there["counter_j"] and there["power_instant_w"]:
        return judged(check, seen)
    advice = "counter and integral of power cannot check each other: update the driver if it is old"
    if there["power_average_w"] and not there["power_instant_w"]:
        advice = "average power over about 1 s is used instead of instant power: use windows of at least 30 s"
    if not has:
        advice = "its energy cannot be measured: give the board's power with sweep --tdp-w for a bound"
    return judged(check, seen, advice)


def persistence_mode(gpu: SeenGpu) -> Finding:
    """Persistence mode keeps the driver's state, and so clocks and the energy counter, between two servers."""
    index, check = gpu.info.index, f"GPU {gpu.info.index} persistence"
    if gpu.persistence is None:
        return Finding(check, "not applicable", "NVML does not say")
    if gpu.persistence:
        return judged(check, "on")
    return judged(check, "off", f"let root run `nvidia-smi -i {index} -pm 1`: else the driver unloads between servers")


def slices(info: GpuInfo) -> Finding:
    """MIG: a slice has no power reading."""
    advice = "leave the other slices idle, or ask the GPU's owner to turn MIG off: power is the whole GPU's"
    return judged(f"GPU {info.index} MIG", "on" if info.mig else "off", advice if info.mig else "")


def power_limits(info: GpuInfo) -> Finding:
    """The enforced limit against the default one."""
    check = f"GPU {info.index} power limit"
    enforced_w, default_w = info.power_limit_enforced_w, info.power_limit_default_w
    if enforced_w is None:
        return judged(check, "NVML does not say", "give the board's power with sweep --tdp-w for the HLI bound")
    seen = f"{enforced_w:g} W enforced"
    if default_w is None:
        return judged(check, seen)
    remedy = f"`nvidia-smi -i {info.index} -pl {default_w:g}`"
    advice = f"results hold for this limit only; for the default let root run {remedy}"
    return judged(check, f"{seen}, {default_w:g} W default", advice if abs(enforced_w - default_w) >= 1 else "")


def _persistence(index: int) -> bool | None:
    with contextlib.suppress(pynvml.NVMLError):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return bool(pynvml.nvmlDeviceGetPersistenceMode(handle) == pynvml.NVML_FEATURE_ENABLED)
    return None


_TOLD = ("avx2", "avx512f", "avx512_bf16", "amx_tile")


def cpu_flags(mode: Mode, recipes: Mapping[str, Recipe], info: Path = CPU_INFO) -> Finding:
    """AVX-512 and AMX for some recipes, as their `cpu_flags` say; recipes that no CPU runs are named too."""
    check = "CPU flags"
    if mode != "cpu":
        return Finding(check, "not applicable", f"mode {mode} computes nothing on the CPU")
    try:
        flags = set(info.read_text(encoding="utf-8").split())
    except OSError:
        return Finding(check, "warning", f"{info} cannot be read", "AWQ and GPTQ need AVX-512: see the CPU's manual")
    seen = ", ".join(flag for flag in _TOLD if flag in flags) or "neither AVX2 nor AVX-512"
    others = [name for name, recipe in recipes.items() if recipe.runs_on_cpu(flags)]
    never = [name for name, recipe in recipes.items() if recipe.cpu_refusal]
    needs = {
        flag: [name for name, recipe in recipes.items() if flag in recipe.cpu_flags and name not in never]
        for flag in sorted({flag for recipe in recipes.values() for flag in recipe.cpu_flags} - flags)
    }
    seen += f"; {', '.join(never)} need a GPU" if never else ""
    if not needs:
        return judged(check, seen)
    refused = "; ".join(f"{', '.join(names)} need {flag}" for flag, names in needs.items())
    return Finding(check, "warning", seen, f"{refused}: choose among {', '.join(others)}")


def cpu_library(mode: Mode, is_here: Callable[[], bool] = library_is_here) -> Finding:
    """What vLLM's CPU build is linked against, apart from its packages."""
    check = "CPU library"
    if mode != "cpu":
        return Finding(check, "not applicable", f"mode {mode} computes nothing on the CPU")
    if is_here():
        return Finding(check, "ok", LIBRARY)
    return absent(check, f"{LIBRARY} is not here", "install it (Debian: `apt-get install libnuma1`)", needed=True)


CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
SLOW_CLOCKS = frozenset({"hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit"})
"""A reading of these takes microseconds, or is as coarse as the kernel's tick."""
LAG_LIMIT_MS = 5.0
"""Between two tokens of a stream lie 5 ms and more."""
PROBE_S = 0.5
STEP_S = 0.002


def clock_source(path: Path = CLOCKSOURCE) -> Finding:
    """The kernel's clock behind CLOCK_MONOTONIC."""
    check = "clock"
    try:
        source = path.read_text(encoding="utf-8").strip()
    except OSError:
        return Finding(check, "not applicable", "this kernel does not name its clock source")
    if source not in SLOW_CLOCKS:
        return judged(check, source)
    advice = "see the kernel's log for why it gave up tsc; time stamps cost the client more here"
    return judged(check, f"{source}, slow to read", advice)


def client_timing(late_ms: float | None = None) -> Finding:
    """How late an idle event loop wakes: `late_ms`, else the 99th percentile over half a second."""
    late_ms = event_loop_lag_ms() if late_ms is None else late_ms
    advice = "something else computes here: stop it, or run the client on another machine"
    seen = f"an idle event loop wakes at most {late_ms:.1f} ms late (p99)"
    return judged("client timing", seen, advice if late_ms > LAG_LIMIT_MS else "")


def event_loop_lag_ms() -> float:
    """The 99th percentile of how late timers, one each 2 ms, come due in half a second on a sweep's event loop."""

    async def probed() -> float:
        probe = ClientProbe(STEP_S)
        await asyncio.sleep(PROBE_S)
        late_ms = probe.close().lag_ms_p99
        assert late_ms is not None, "timers come due in half a second"
        return late_ms

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(probed())


_GB = 1e9


def disk(
    mode: Mode, model: str | None, recipes: Mapping[str, Recipe], free: Callable[[Path], int] = free_bytes
) -> Finding:
    """Free bytes against those of the model's checkpoints that are not in the cache, each about."""
    check = "disk"
    if mode == "simulated":
        return Finding(check, "not applicable", "simulated servers load no checkpoint")
    if model is not None and Path(model).expanduser().is_dir():
        return Finding(check, "ok", f"{model} is a folder: nothing is downloaded")
    folder = cache_folder()
    free_gb = free(folder) / _GB
    seen = f"{free_gb:.0f} GB free for {folder}"
    if model is None:
        return Finding(check, "ok", seen, "give --model to see what it needs")
    known = load_models().get(model)
    if known is None:
        advice = f"the size of {model} is not known here: 2 bytes a parameter for 16 bits, half a byte for 4"
        return judged(check, seen, advice)
    needs_gb = {one.recipe: one.expected_bytes / _GB for one in checkpoints_of(known, recipes) if not is_cached(one.id)}
    if not needs_gb:
        return judged(check, f"{seen}; every checkpoint of {model} is in the cache")
    parts = ", ".join(f"{name} {size_gb:.1f}" for name, size_gb in needs_gb.items())
    seen += f"; still to download for {model}, about: {parts} GB"
    if sum(needs_gb.values()) <= free_gb:
        return judged(check, seen)
    advice = "free some space, or set HF_HUB_CACHE to a folder on a larger disk"
    if needs_gb.get("16-bit", 0.0) > free_gb:
        return absent(check, seen, advice, needed=True)
    return judged(check, seen, advice)


def is_cached(checkpoint: str) -> bool:
    """Whether the hub's cache holds weights of that id."""
    snapshot = cached_snapshot(checkpoint)
    return snapshot is not None and has_weights(snapshot)
