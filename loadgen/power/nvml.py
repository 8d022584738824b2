"""NVML: power, energy and state of NVIDIA GPUs through nvidia-ml-py, and the processes that use them."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pynvml

from loadgen.errors import UsageError
from loadgen.guardian import process_stat
from loadgen.power.sample import READINGS, GpuInfo, GpuLostError, GpuProcess, PowerSample, Scope, UnreadableGpu

_MILLI = 1e-3
_MEGA = 1e6
_PERCENT = 1e-2
_MOST_ANCESTORS = 64
_NEVER = frozenset(
    {
        pynvml.NVML_ERROR_INVALID_ARGUMENT,  # what a driver older than a field may answer to its number
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    }
)
"""Codes that will not change while the process runs: the field is given up."""
_GONE = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED})
_CODE_NAMES: dict[int, str] = {code: name for name, code in vars(pynvml).items() if name.startswith("NVML_ERROR_")}
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

_Calls = dict[str, tuple[Callable[[Any], Any], ...]]
"""Field -> functions of a device's handle, the best first, each for drivers that do not know the one before. They
return the value in the unit of its PowerSample field and raise NVMLError."""

_FIELDS = {
    "counter_j": pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION,  # 83, mJ
    "power_instant_w": pynvml.NVML_FI_DEV_POWER_INSTANT,  # 186, mW
    "power_average_w": pynvml.NVML_FI_DEV_POWER_AVERAGE,  # 185, mW
}
_TOTAL_ENERGY: _Calls = {"counter_j": (lambda h: pynvml.nvmlDeviceGetTotalEnergyConsumption(h) * _MILLI,)}
_SLOW: _Calls = {
    "temperature_c": (lambda h: pynvml.nvmlDeviceGetTemperature(h, pynvml.NVML_TEMPERATURE_GPU),),
    "sm_clock_hz": (lambda h: pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_SM) * _MEGA,),
    "memory_clock_hz": (lambda h: pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_MEM) * _MEGA,),
    "throttle_reasons": (
        lambda h: int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(h)),
        lambda h: int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(h)),  # its name until driver 535
    ),
    "power_limit_w": (lambda h: pynvml.nvmlDeviceGetEnforcedPowerLimit(h) * _MILLI,),
    "memory_used_bytes": (
        lambda h: int(pynvml.nvmlDeviceGetMemoryInfo(h, pynvml.nvmlMemory_v2).used),  # without the driver's reserve
        lambda h: int(pynvml.nvmlDeviceGetMemoryInfo(h).used),
    ),
    "utilization": (lambda h: pynvml.nvmlDeviceGetUtilizationRates(h).gpu * _PERCENT,),
}
_PROCESSES: dict[str, str] = {
    "mps": "nvmlDeviceGetMPSComputeRunningProcesses",
    "compute": "nvmlDeviceGetComputeRunningProcesses",
    "graphics": "nvmlDeviceGetGraphicsRunningProcesses",
}
"""Kind -> NVML's list. A process on several gets the kind of the first: clients of the Multi-Process Service are on
two."""
_PROCESS_CALLS: _Calls = {
    kind: tuple(getattr(pynvml, f"{name}{version}") for version in ("_v3", "_v2") if hasattr(pynvml, name + version))
    for kind, name in _PROCESSES.items()
}


def _power_usage(handle: Any) -> _Calls:
    """nvmlDeviceGetPowerUsage under the name that fits it: by NVML's documentation a mean of one second from Ampere on,
    momentary before. (GA100 is momentary too; it is not told apart here and gets the name that claims less.)"""
    try:
        momentary = pynvml.nvmlDeviceGetArchitecture(handle) < pynvml.NVML_DEVICE_ARCH_AMPERE
    except pynvml.NVMLError:
        momentary = False
    name = "power_instant_w" if momentary else "power_average_w"
    return {name: (lambda h: pynvml.nvmlDeviceGetPowerUsage(h) * _MILLI,)}


def seen_process(pid: int) -> tuple[str | None, tuple[int, ...]]:
    """A process's name and lineage (see GpuProcess); (None, ()) where /proc does not show it."""
    stat = process_stat(pid)
    if stat is None:
        return None, ()
    name, _state, parent, group, session = stat[:5]
    ancestors: list[int] = []
    while int(parent) > 0 and int(parent) not in ancestors and len(ancestors) < _MOST_ANCESTORS:
        ancestors.append(int(parent))
        above = process_stat(ancestors[-1])
        parent = above[2] if above else "0"
    return name, tuple(dict.fromkeys((pid, int(group), int(session), *ancestors)))


def _failure(error: pynvml.NVMLError) -> str:
    """The code's name, for a field that failed this once; raises GpuLostError when the GPU is gone."""
    if error.value in _GONE:
        raise GpuLostError(_code(error)) from error
    return _code(error)


def _code(error: pynvml.NVMLError) -> str:
    return _CODE_NAMES.get(int(error.value), f"NVML_ERROR_{int(error.value)}")


@dataclass
class _Gpu:
    """A device and what it was found to have; fields are given up as they prove unsupported."""

    handle: Any
    info: GpuInfo
    fields: dict[str, int] = field(default_factory=lambda: dict(_FIELDS))
    fast: _Calls = field(default_factory=dict)
    slow: _Calls = field(default_factory=lambda: dict(_SLOW))
    lists: _Calls = field(default_factory=lambda: {kind: calls for kind, calls in _PROCESS_CALLS.items() if calls})

    def read(self, *, slow: bool) -> PowerSample:
        errors: list[str] = []
        before_ns = time.monotonic_ns()
        values = self._field_values(errors)
        if self.fast:
            if not self.fields:
                before_ns = time.monotonic_ns()
            values |= self._ask_each(self.fast, errors)
        after_ns = time.monotonic_ns()
        if slow:
            values |= self._ask_each(self.slow, errors)
            values["processes"] = self._processes(errors)
        return PowerSample(
            t_ns=(before_ns + after_ns) // 2,
            latency_ns=after_ns - before_ns,
            gpu=self.info.uuid,
            errors=tuple(errors),
            **values,
        )

    @property
    def supported(self) -> dict[str, bool]:
        return {name: any(name in known for known in (self.fields, self.fast, self.slow)) for name in READINGS}

    def _field_values(self, errors: list[str]) -> dict[str, Any]:
        """The energy fields of one nvmlDeviceGetFieldValues, each by its own return code."""
        if not self.fields:
            return {}
        try:
            answers = pynvml.nvmlDeviceGetFieldValues(self.handle, list(self.fields.values()))
        except pynvml.NVMLError as error:
            if error.value in _NEVER:
                self.fields.clear()
                self.fast = _TOTAL_ENERGY | _power_usage(self.handle)
            else:
                errors.extend(f"{name}: {_failure(error)}" for name in self.fields)
            return {}
        values: dict[str, Any] = {}
        for name, answer in zip(tuple(self.fields), answers, strict=True):
            if answer.nvmlReturn == pynvml.NVML_SUCCESS:
                values[name] = getattr(answer.value, _VALUE_MEMBERS[answer.valueType]) * _MILLI
            elif answer.nvmlReturn in _NEVER:
                self._give_up(name)
            else:
                errors.append(f"{name}: {_failure(pynvml.NVMLError(answer.nvmlReturn))}")
        return values

    def _give_up(self, name: str) -> None:
        """A field that the GPU does not have; nvmlDeviceGetPowerUsage is asked for power where field 186 is missing."""
        del self.fields[name]
        if "power_instant_w" not in self.fields and name != "counter_j":
            # Its value is a mean where it is not momentary, and field 185 gives that mean too.
            self.fast |= {name: calls for name, calls in _power_usage(self.handle).items() if name not in self.fields}

    def _ask_each(self, calls: _Calls, errors: list[str]) -> dict[str, Any]:
        """Each field by the first call that the driver knows; unknown calls, and fields without one, are given up."""
        values: dict[str, Any] = {}
        for name in tuple(calls):
            while name in calls and name not in values:
                try:
                    values[name] = calls[name][0](self.handle)
                except pynvml.NVMLError as error:
                    if error.value not in _NEVER:
                        errors.append(f"{name}: {_failure(error)}")
                        break
                    calls[name] = calls[name][1:]
                    if not calls[name]:
                        del calls[name]
        return values

    def _processes(self, errors: list[str]) -> tuple[GpuProcess, ...] | None:
        """The processes on the GPU, ascending by pid; None where it has no list, or one of its lists failed."""
        failures: list[str] = []
        listed = self._ask_each(self.lists, failures)
        if failures:
            errors.append(f"processes: {failures[0].partition(': ')[2]}")
            return None
        found: dict[int, GpuProcess] = {}
        for kind, entries in listed.items():
            for entry in entries:
                if (pid := int(entry.pid)) not in found:
                    name, lineage = seen_process(pid)
                    memory = None if entry.usedGpuMemory is None else int(entry.usedGpuMemory)
                    process = {"pid": pid, "kind": kind, "memory_bytes": memory, "name": name, "lineage": lineage}
                    found[pid] = msgspec.convert(process, GpuProcess)
        return tuple(found[pid] for pid in sorted(found)) if self.lists else None


class NvmlReader:
    """Every GPU that NVML shows and that can be read, by UUID. Not thread-safe."""

    def __init__(self) -> None:
        """Reads each GPU once to learn its fields; one that does not answer is listed in `unreadable`.

        Raises UsageError without a driver, its library, or a GPU that can be read.
        """
        self._gpus: dict[str, _Gpu] = {}
        self.unreadable: tuple[UnreadableGpu, ...] = ()
        self._initialised = False
        self.reopen()

    def reopen(self) -> None:
        """Initialise NVML again, as is needed after the driver was loaded again. Raises UsageError as `__init__` does;
        it can then be called again."""
        self.close()
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
                gpu = _Gpu(handle, _info(index, handle, uuid))
                gpu.read(slow=True)
            except (pynvml.NVMLError, GpuLostError) as error:
                code = str(error) if isinstance(error, GpuLostError) else _code(error)
                unreadable.append(UnreadableGpu(index=index, code=code, uuid=uuid))
            else:
                self._gpus[uuid] = gpu
        self.unreadable = tuple(unreadable)
        if not self._gpus:
            raise UsageError(_none_readable(unreadable))

    def gpus(self) -> list[GpuInfo]:
        """In NVML's order (by PCI bus); `supported` is what the readings so far have shown."""
        return [msgspec.structs.replace(gpu.info, supported=gpu.supported) for gpu in self._gpus.values()]

    def read(self, uuid: str, *, slow: bool) -> PowerSample:
        """One nvmlDeviceGetFieldValues, stamped; then, when `slow`, the rest. Raises GpuLostError."""
        if uuid not in self._gpus:
            raise GpuLostError("NVML_ERROR_NOT_FOUND")
        return self._gpus[uuid].read(slow=slow)

    def close(self) -> None:
        if self._initialised:
            self._initialised = False
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()


def _info(index: int, handle: Any, uuid: str) -> GpuInfo:
    limits = pynvml.nvmlDeviceGetPowerManagementLimitConstraints
    mig = _optional(pynvml.nvmlDeviceGetMigMode, handle)
    name = _optional(_text, pynvml.nvmlDeviceGetName, handle) or "GPU of unknown name"
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return GpuInfo(
        uuid=uuid,
        index=index,
        name=name,
        driver=_optional(_text, pynvml.nvmlSystemGetDriverVersion),
        vbios=_optional(_text, pynvml.nvmlDeviceGetVbiosVersion, handle),
        power_limit_enforced_w=_optional(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) * _MILLI),
        power_limit_default_w=_optional(lambda: pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) * _MILLI),
        power_limit_max_w=_optional(lambda: limits(handle)[1] * _MILLI),
        memory_total_bytes=None if memory is None else int(memory.total),
        mig=mig is not None and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
        scope=scope_of(name),
    )


def scope_of(name: str) -> Scope:
    """What the energy counter of a GPU of that name counts: on superchips (GH200, GB200, GB300) the whole module, CPU
    and memory included (found by Zeus on GH200, its pull request 172)."""
    return "module" if _SUPERCHIP.search(name) else "gpu"


def _text(ask: Callable[..., Any], *arguments: Any) -> str:
    """A string as NVML gives it; bytes that are not UTF-8, as seen under WSL2, are replaced."""
    answer = getattr(ask, "__wrapped__", ask)(*arguments)
    return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)


def _optional(ask: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where this GPU or driver has none."""
    try:
        return ask(*arguments)
    except pynvml.NVMLError:
        return None


def _none_readable(gpus: Sequence[UnreadableGpu]) -> str:
    denied = all(gpu.code == "NVML_ERROR_NO_PERMISSION" for gpu in gpus)
    fix = "let this user or container read it" if denied else "reset it or reboot the machine"
    if len(gpus) == 1:
        return (
            f"the GPU {gpus[0].uuid or gpus[0].index} does not answer ({gpus[0].code}): {fix}, or choose --power none"
        )
    return f"no GPU answers ({'; '.join(map(str, gpus))}): {fix}, or choose --power none"


def _no_nvml(error: pynvml.NVMLError) -> str:
    if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return (
            "libnvidia-ml.so.1 is not installed: install NVIDIA's driver (in a container set "
            "NVIDIA_DRIVER_CAPABILITIES=utility), or choose --power none"
        )
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "NVML's library and the loaded driver differ in version: reboot the machine after the driver's update"
    return f"NVIDIA's driver does not answer ({_code(error)}): check whether nvidia-smi works, or choose --power none"
