"""GPUs: the driver, which of NVML's energy fields each GPU has, and what would disturb a measurement."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import msgspec
import pynvml

from loadgen.doctor.finding import Finding, Mode, absent
from loadgen.errors import UsageError
from loadgen.power.nvml import NvmlReader
from loadgen.power.sample import GpuInfo, UnreadableGpu
from loadgen.power.selection import select_gpus

_SOURCES = {"counter_j": "energy counter", "power_instant_w": "instant power", "power_average_w": "average power"}


class SeenGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU and its persistence mode."""

    info: GpuInfo
    persistence: bool | None = None
    """None: NVML does not say."""


def seen_gpus() -> tuple[list[SeenGpu], tuple[UnreadableGpu, ...]]:
    """The GPUs that NVML shows, and those of them that cannot be read. Raises UsageError without a driver, its library,
    or a GPU that can be read."""
    reader = NvmlReader()
    try:
        gpus = [SeenGpu(info=info, persistence=_persistence(info.index)) for info in reader.gpus()]
        return gpus, reader.unreadable
    finally:
        reader.close()


def examine_gpus(mode: Mode) -> list[Finding]:
    """The driver, what CUDA sees, and four findings per GPU."""
    try:
        gpus, unreadable = seen_gpus()
    except UsageError as error:
        seen, _, remedy = str(error).partition(": ")
        needed = mode == "gpu"
        return [absent("GPU driver", seen, remedy if needed else "", needed=needed)]
    infos = [gpu.info for gpu in gpus]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    order = os.environ.get("CUDA_DEVICE_ORDER")
    chosen = visible_gpus(infos, visible=visible, order=order, mode=mode, unreadable=unreadable)
    findings = [driver(infos), chosen, *map(unreadable_gpu, unreadable)]
    for gpu in gpus:
        findings += [energy_fields(gpu.info), persistence_mode(gpu), slices(gpu.info), power_limits(gpu.info)]
    return findings


def driver(infos: Sequence[GpuInfo]) -> Finding:
    """The driver's version and the GPUs."""
    names = ", ".join(f"{info.index}: {info.name}" for info in infos)
    return Finding(check="GPU driver", state="ok", seen=f"driver {infos[0].driver or 'of unknown version'}; {names}")


def unreadable_gpu(gpu: UnreadableGpu) -> Finding:
    """A GPU that does not answer: it is refused where it is chosen, and costs the others nothing."""
    if gpu.code == "NVML_ERROR_NO_PERMISSION":
        advice = "choose other GPUs, or let this user or container read it"
    else:
        advice = "choose other GPUs; reset it or reboot the machine to use it"
    return Finding(check=f"GPU {gpu.index}", state="warning", seen=str(gpu), advice=advice)


def visible_gpus(
    infos: Sequence[GpuInfo],
    *,
    visible: str | None,
    order: str | None,
    mode: Mode,
    unreadable: Sequence[UnreadableGpu] = (),
) -> Finding:
    """Which GPUs a server and its measurement would use, by CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER."""
    check = "visible GPUs"
    try:
        chosen = select_gpus(infos, asked=None, visible=visible, order=order, unreadable=unreadable)
    except UsageError as error:
        if visible is None:
            return Finding(
                check=check,
                state="warning",
                seen=f"{len(infos)} GPUs and CUDA_VISIBLE_DEVICES is not set",
                advice="set CUDA_VISIBLE_DEVICES to the servers' GPUs, or give sweep --gpu; else no energy is measured",
            )
        return absent(check, str(error), "set CUDA_VISIBLE_DEVICES to GPUs that exist", needed=mode == "gpu")
    by = "the only GPU" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"
    return Finding(check=check, state="ok", seen=f"{by}: {', '.join(chosen)}")


def energy_fields(info: GpuInfo) -> Finding:
    """Whether NVML's energy counter and its instant and average power (fields 83, 186, 185) are there."""
    there = {name: info.supported.get(name, False) for name in _SOURCES}
    has = [_SOURCES[name] for name in _SOURCES if there[name]]
    lacks = [_SOURCES[name] for name in _SOURCES if not there[name]]
    seen = "; ".join(
        part for part in (f"has {', '.join(has)}" if has else "", f"lacks {', '.join(lacks)}" if lacks else "") if part
    )
    check = f"GPU {info.index} energy"
    if info.scope == "module":
        advice = "its energy is the integral of its power: the counter is the whole module's, with CPU and memory"
        if not (there["power_instant_w"] or there["power_average_w"]):
            advice = "the counter is the whole module's, with CPU and memory: the GPU's energy cannot be measured"
        return Finding(check=check, state="warning", seen=f"superchip; {seen}", advice=advice)
    if there["counter_j"] and there["power_instant_w"]:
        return Finding(check=check, state="ok", seen=seen)
    advice = "counter and integral of power cannot check each other: update the driver if it is old"
    if there["power_average_w"] and not there["power_instant_w"]:
        advice = "average power over about 1 s stands in for instant power: use windows of at least 30 s"
    if not has:
        advice = "its energy cannot be measured: name the board's power with sweep --tdp-w for a bound"
    return Finding(check=check, state="warning", seen=seen, advice=advice)


def persistence_mode(gpu: SeenGpu) -> Finding:
    """Persistence mode keeps the driver's state, and so clocks and the energy counter, between two servers."""
    check = f"GPU {gpu.info.index} persistence"
    if gpu.persistence is None:
        return Finding(check=check, state="not applicable", seen="NVML does not say")
    if gpu.persistence:
        return Finding(check=check, state="ok", seen="on")
    advice = f"let root run `nvidia-smi -i {gpu.info.index} -pm 1`: the driver unloads between two servers otherwise"
    return Finding(check=check, state="warning", seen="off", advice=advice)


def slices(info: GpuInfo) -> Finding:
    """MIG: a slice has no power reading of its own."""
    check = f"GPU {info.index} MIG"
    if not info.mig:
        return Finding(check=check, state="ok", seen="off")
    advice = "leave the other slices idle, or ask the GPU's owner to turn MIG off: power is the whole GPU's"
    return Finding(check=check, state="warning", seen="on", advice=advice)


def power_limits(info: GpuInfo) -> Finding:
    """The enforced limit against the default one."""
    check = f"GPU {info.index} power limit"
    enforced_w, default_w = info.power_limit_enforced_w, info.power_limit_default_w
    if enforced_w is None:
        advice = "name the board's power with sweep --tdp-w for the HLI bound"
        return Finding(check=check, state="warning", seen="NVML does not say", advice=advice)
    seen = f"{enforced_w:g} W enforced"
    if default_w is None:
        return Finding(check=check, state="ok", seen=seen)
    seen += f", {default_w:g} W default"
    if abs(enforced_w - default_w) < 1:
        return Finding(check=check, state="ok", seen=seen)
    remedy = f"`nvidia-smi -i {info.index} -pl {default_w:g}`"
    advice = f"results hold for this limit only; for the default let root run {remedy}"
    return Finding(check=check, state="warning", seen=seen, advice=advice)


def _persistence(index: int) -> bool | None:
    with contextlib.suppress(pynvml.NVMLError):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return bool(pynvml.nvmlDeviceGetPersistenceMode(handle) == pynvml.NVML_FEATURE_ENABLED)
    return None
