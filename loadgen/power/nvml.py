"""NVML: power, energy and state of NVIDIA GPUs, through nvidia-ml-py.

Processes on a GPU: NVML's lists, and what /proc says of each process.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import pynvml

from loadgen.errors import UsageError
from loadgen.power.sample import GpuInfo, GpuLostError, GpuProcess, PowerSample, Scope, SourceKind, UnreadableGpu

PROC = Path("/proc")
_Kind = Literal["compute", "graphics", "mps"]
_LISTS: dict[_Kind, str] = {
    "mps": "nvmlDeviceGetMPSComputeRunningProcesses",
    "compute": "nvmlDeviceGetComputeRunningProcesses",
    "graphics": "nvmlDeviceGetGraphicsRunningProcesses",
}
"""A process on several lists has the kind of the first: clients of the Multi-Process Service are on two."""
_VERSIONS = ("_v3", "_v2")
_UNKNOWN_LIST = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
_DEPTH = 64
"""Most ancestors that are followed."""

Lists = dict[_Kind, tuple[str, ...]]
"""Kind -> the functions to ask, the newest first; the next is for drivers that do not know the one before."""


def known_lists() -> Lists:
    """Every list that this nvidia-ml-py knows."""
    named = {kind: tuple(f"{name}{version}" for version in _VERSIONS) for kind, name in _LISTS.items()}
    return {kind: tuple(name for name in names if hasattr(pynvml, name)) for kind, names in named.items()}


def read_processes(handle: Any, lists: Lists) -> tuple[GpuProcess, ...] | None:
    """The processes on a device by `lists`, ascending by pid; None where it has no list at all.

    What the device or driver does not support is taken out of `lists`. Raises NVMLError for any other failure.
    """
    found: dict[int, GpuProcess] = {}
    for kind in tuple(lists):
        for entry in _listed(handle, kind, lists):
            pid = int(entry.pid)
            if pid not in found:
                name, lineage = seen_process(pid)
                memory = entry.usedGpuMemory
                found[pid] = GpuProcess(
                    pid=pid, kind=kind, memory_bytes=None if memory is None else int(memory), name=name, lineage=lineage
                )
    return tuple(found[pid] for pid in sorted(found)) if lists else None


def _listed(handle: Any, kind: _Kind, lists: Lists) -> list[Any]:
    while functions := lists[kind]:
        try:
            entries: list[Any] = getattr(pynvml, functions[0])(handle)
            return entries
        except pynvml.NVMLError as error:
            if error.value not in _UNKNOWN_LIST:
                raise
            lists[kind] = functions[1:]
    del lists[kind]
    return []


def seen_process(pid: int) -> tuple[str | None, tuple[int, ...]]:
    """A process's name and lineage (see GpuProcess); (None, ()) where /proc does not show it."""
    first = _stat(pid)
    if first is None:
        return None, ()
    name, parent, group, session = first
    lineage = list(dict.fromkeys((pid, group, session)))
    while parent > 0 and parent not in lineage[3:] and len(lineage) < _DEPTH:
        lineage.append(parent)
        above = _stat(parent)
        if above is None:
            break
        parent = above[1]
    return name, tuple(dict.fromkeys(lineage))


def _stat(pid: int) -> tuple[str, int, int, int] | None:
    """(name, parent, process group, session) of a process."""
    with contextlib.suppress(OSError, ValueError):
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        begin, end = text.index("("), text.rindex(")")
        _state, parent, group, session = text[end + 1 :].split()[:4]
        return text[begin + 1 : end], int(parent), int(group), int(session)
    return None


_FIELDS = {
    "counter_j": pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION,  # 83, mJ
    "power_instant_w": pynvml.NVML_FI_DEV_POWER_INSTANT,  # 186, mW
    "power_average_w": pynvml.NVML_FI_DEV_POWER_AVERAGE,  # 185, mW
}
_MILLI = 1e-3
_MEGA = 1e6
_PERCENT = 1e-2
_NEVER = frozenset(
    {
        pynvml.NVML_ERROR_INVALID_ARGUMENT,  # what a driver older than a field may say of its number
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    }
)
"""Codes that will not change while the process runs: the field is given up."""
_GONE = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED})
_VALUE_MEMBERS = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}
_SUPERCHIP = re.compile(r"\bG[HB]\d{2,3}\b|\bGrace\b", re.IGNORECASE)
"""GH200, GB200, GB300, "Grace Hopper": GPU and CPU in one module."""
_CODE_NAMES: dict[int, str] = {code: name for name, code in vars(pynvml).items() if name.startswith("NVML_ERROR_")}
_Ask = Callable[[Any], float]
"""A device's handle -> a value in the unit of its PowerSample field; raises NVMLError."""

_SLOW: dict[str, tuple[_Ask, ...]] = {
    "temperature_c": (lambda h: pynvml.nvmlDeviceGetTemperature(h, pynvml.NVML_TEMPERATURE_GPU),),
    "sm_clock_hz": (lambda h: pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_SM) * _MEGA,),
    "memory_clock_hz": (lambda h: pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_MEM) * _MEGA,),
    "throttle_reasons": (
        lambda h: pynvml.nvmlDeviceGetCurrentClocksEventReasons(h),
        lambda h: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(h),  # its name until driver 535
    ),
    "power_limit_w": (lambda h: pynvml.nvmlDeviceGetEnforcedPowerLimit(h) * _MILLI,),
    "memory_used_bytes": (
        lambda h: pynvml.nvmlDeviceGetMemoryInfo(h, pynvml.nvmlMemory_v2).used,  # without what the driver reserves
        lambda h: pynvml.nvmlDeviceGetMemoryInfo(h).used,
    ),
    "utilization": (lambda h: pynvml.nvmlDeviceGetUtilizationRates(h).gpu * _PERCENT,),
}
"""Field -> the ways to ask for it, the better first; the next is for drivers that do not know the one before."""
_TOTAL_ENERGY: dict[str, tuple[_Ask, ...]] = {
    "counter_j": (lambda h: pynvml.nvmlDeviceGetTotalEnergyConsumption(h) * _MILLI,)
}


def _power_usage(handle: Any) -> dict[str, tuple[_Ask, ...]]:
    """nvmlDeviceGetPowerUsage under the name that fits it.

    NVML says of it: a mean of one second from Ampere on, momentary before. (GA100 is momentary too, but not told apart
    here: its value gets the name that claims less.)
    """
    try:
        momentary = pynvml.nvmlDeviceGetArchitecture(handle) < pynvml.NVML_DEVICE_ARCH_AMPERE
    except pynvml.NVMLError:
        momentary = False
    name = "power_instant_w" if momentary else "power_average_w"
    return {name: (lambda h: pynvml.nvmlDeviceGetPowerUsage(h) * _MILLI,)}


@dataclass
class _Gpu:
    """A device and what it was found to have; fields are given up as they prove unsupported."""

    handle: Any
    info: GpuInfo
    fields: dict[str, int] = field(default_factory=lambda: dict(_FIELDS))
    fast: dict[str, tuple[_Ask, ...]] = field(default_factory=dict)
    slow: dict[str, tuple[_Ask, ...]] = field(default_factory=lambda: dict(_SLOW))
    lists: Lists = field(default_factory=known_lists)
    """Process lists that it has."""


class NvmlReader:
    """Every GPU that NVML shows and that can be read, by UUID. Not thread-safe."""

    kind: SourceKind = "nvml"

    def __init__(self) -> None:
        """Reads each GPU once to learn its fields; one that does not answer is listed in `unreadable`.

        Raises UsageError without a driver, its library, or a GPU that can be read.
        """
        self._gpus: dict[str, _Gpu] = {}
        self.unreadable: tuple[UnreadableGpu, ...] = ()
        self._initialised = False
        self._open()

    def _open(self) -> None:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise UsageError(_no_nvml(error)) from error
        self._initialised = True
        try:
            self._list_gpus()
        except UsageError:
            self.close()
            raise

    def _list_gpus(self) -> None:
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise UsageError(f"NVML cannot list the GPUs ({_code(error)}): check whether nvidia-smi works") from error
        if not count:
            raise UsageError("NVML shows no GPU: in a container set NVIDIA_VISIBLE_DEVICES, or choose --power none")
        self._gpus = {}
        unreadable: list[UnreadableGpu] = []
        for index in range(count):
            uuid: str | None = None
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = _text(pynvml.nvmlDeviceGetUUID, handle)
                gpu = _open(index, handle, uuid)
                _read(gpu, uuid, slow=True)
            except pynvml.NVMLError as error:
                unreadable.append(UnreadableGpu(index=index, code=_code(error), uuid=uuid))
            except GpuLostError as error:
                unreadable.append(UnreadableGpu(index=index, code=str(error), uuid=uuid))
            else:
                self._gpus[uuid] = gpu
        self.unreadable = tuple(unreadable)
        if not self._gpus:
            raise UsageError(_none_readable(unreadable))

    def reopen(self) -> None:
        """Initialise NVML again, as is needed after the driver was loaded again. Raises UsageError as `__init__` does;
        it can then be called again."""
        self.close()
        self._open()

    def gpus(self) -> list[GpuInfo]:
        """In NVML's order (by PCI bus); `supported` is what the readings so far have shown."""
        return [_with_support(gpu) for gpu in self._gpus.values()]

    def read(self, uuid: str, *, slow: bool) -> PowerSample:
        """One nvmlDeviceGetFieldValues, stamped; then, when `slow`, the rest. Raises GpuLostError."""
        if uuid not in self._gpus:
            raise GpuLostError("NVML_ERROR_NOT_FOUND")
        return _read(self._gpus[uuid], uuid, slow=slow)

    def close(self) -> None:
        if self._initialised:
            self._initialised = False
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()


def _read(gpu: _Gpu, uuid: str, *, slow: bool) -> PowerSample:
    errors: list[str] = []
    before_ns = time.monotonic_ns()
    values = _field_values(gpu, errors)
    if gpu.fast:
        if not gpu.fields:
            before_ns = time.monotonic_ns()
        values |= _ask_each(gpu.handle, gpu.fast, errors)
    after_ns = time.monotonic_ns()
    processes: tuple[GpuProcess, ...] | None = None
    if slow:
        values |= _ask_each(gpu.handle, gpu.slow, errors)
        try:
            processes = read_processes(gpu.handle, gpu.lists)
        except pynvml.NVMLError as error:
            errors.append(f"processes: {_failure(error)}")
    return PowerSample(
        t_ns=(before_ns + after_ns) // 2,
        latency_ns=after_ns - before_ns,
        gpu=uuid,
        counter_j=values.get("counter_j"),
        power_instant_w=values.get("power_instant_w"),
        power_average_w=values.get("power_average_w"),
        temperature_c=values.get("temperature_c"),
        sm_clock_hz=values.get("sm_clock_hz"),
        memory_clock_hz=values.get("memory_clock_hz"),
        throttle_reasons=_whole(values.get("throttle_reasons")),
        power_limit_w=values.get("power_limit_w"),
        memory_used_bytes=_whole(values.get("memory_used_bytes")),
        utilization=values.get("utilization"),
        processes=processes,
        errors=tuple(errors),
    )


def _field_values(gpu: _Gpu, errors: list[str]) -> dict[str, float]:
    """The energy fields of one call, each by its own return code; gives up what is not supported."""
    if not gpu.fields:
        return {}
    try:
        answers = pynvml.nvmlDeviceGetFieldValues(gpu.handle, list(gpu.fields.values()))
    except pynvml.NVMLError as error:
        if error.value in _NEVER:
            gpu.fields.clear()
            gpu.fast = _TOTAL_ENERGY | _power_usage(gpu.handle)
        else:
            errors.extend(f"{name}: {_failure(error)}" for name in gpu.fields)
        return {}
    values: dict[str, float] = {}
    for name, answer in zip(tuple(gpu.fields), answers, strict=True):
        if answer.nvmlReturn == pynvml.NVML_SUCCESS:
            values[name] = getattr(answer.value, _VALUE_MEMBERS[answer.valueType]) * _MILLI
        elif answer.nvmlReturn in _NEVER:
            _give_up(gpu, name)
        else:
            errors.append(f"{name}: {_failure(pynvml.NVMLError(answer.nvmlReturn))}")
    return values


def _give_up(gpu: _Gpu, name: str) -> None:
    """A field that the GPU does not have; nvmlDeviceGetPowerUsage is asked for power where field 186 is missing."""
    del gpu.fields[name]
    if "power_instant_w" not in gpu.fields and name != "counter_j":
        # Its value is a mean where it is not momentary, and field 185 gives that mean too.
        gpu.fast |= {known: ways for known, ways in _power_usage(gpu.handle).items() if known not in gpu.fields}


def _ask_each(handle: Any, asks: dict[str, tuple[_Ask, ...]], errors: list[str]) -> dict[str, float]:
    """Each field by the first way that the driver knows; a way, then a field, that it does not know is given up."""
    values: dict[str, float] = {}
    for name in tuple(asks):
        while name in asks and name not in values:
            try:
                values[name] = asks[name][0](handle)
            except pynvml.NVMLError as error:
                if error.value not in _NEVER:
                    errors.append(f"{name}: {_failure(error)}")
                    break
                asks[name] = asks[name][1:]
                if not asks[name]:
                    del asks[name]
    return values


def _failure(error: pynvml.NVMLError) -> str:
    """The code's name, for a field that failed this once; raises GpuLostError when the GPU is gone."""
    if error.value in _GONE:
        raise GpuLostError(_code(error)) from error
    return _code(error)


def _code(error: pynvml.NVMLError) -> str:
    code = int(error.value)
    return _CODE_NAMES.get(code, f"NVML_ERROR_{code}")


def _open(index: int, handle: Any, uuid: str) -> _Gpu:
    constraints_mw = _optional(lambda: pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle))
    mig = _optional(lambda: pynvml.nvmlDeviceGetMigMode(handle))
    name = _optional(lambda: _text(pynvml.nvmlDeviceGetName, handle)) or "GPU of unknown name"
    return _Gpu(
        handle=handle,
        info=GpuInfo(
            uuid=uuid,
            index=index,
            name=name,
            driver=_optional(lambda: _text(pynvml.nvmlSystemGetDriverVersion)),
            vbios=_optional(lambda: _text(pynvml.nvmlDeviceGetVbiosVersion, handle)),
            power_limit_enforced_w=_watts(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)),
            power_limit_default_w=_watts(lambda: pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle)),
            power_limit_max_w=None if constraints_mw is None else constraints_mw[1] * _MILLI,
            memory_total_bytes=_optional(lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)),
            mig=mig is not None and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
            scope=scope_of(name),
        ),
    )


def scope_of(name: str) -> Scope:
    """What the energy counter of a GPU of that name counts: on superchips (GH200, GB200, GB300) the whole module, CPU
    and memory included (found by Zeus on GH200, its pull request 172)."""
    return "module" if _SUPERCHIP.search(name) else "gpu"


def _text(ask: Callable[..., Any], *arguments: Any) -> str:
    """A string as NVML gives it; bytes that are not UTF-8, as seen under WSL2, are replaced."""
    answer = getattr(ask, "__wrapped__", ask)(*arguments)
    return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)


def _optional(ask: Callable[[], Any]) -> Any:
    """The answer, or None where this GPU or driver has none."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None


def _watts(ask_mw: Callable[[], int]) -> float | None:
    milliwatts = _optional(ask_mw)
    return None if milliwatts is None else milliwatts * _MILLI


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _with_support(gpu: _Gpu) -> GpuInfo:
    there = {*gpu.fields, *gpu.fast, *gpu.slow}
    return msgspec.structs.replace(gpu.info, supported={name: name in there for name in (*_FIELDS, *_SLOW)})


def _none_readable(gpus: Sequence[UnreadableGpu]) -> str:
    if all(gpu.code == "NVML_ERROR_NO_PERMISSION" for gpu in gpus):
        remedy = "let this user or container read it, or choose --power none"
    else:
        remedy = "reset it or reboot the machine, or choose --power none"
    if len(gpus) == 1:
        return f"the GPU {gpus[0].uuid or gpus[0].index} does not answer ({gpus[0].code}): {remedy}"
    return f"no GPU answers ({'; '.join(map(str, gpus))}): {remedy}"


def _no_nvml(error: pynvml.NVMLError) -> str:
    if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return (
            "libnvidia-ml.so.1 is not here: install NVIDIA's driver (in a container set "
            "NVIDIA_DRIVER_CAPABILITIES=utility), or choose --power none"
        )
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "NVML's library and the loaded driver differ in version: reboot the machine after the driver's update"
    return f"NVIDIA's driver does not answer ({_code(error)}): see whether nvidia-smi works, or choose --power none"
