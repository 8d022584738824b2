"""GPU memory in use, to see that a stopped server gave its share back."""

from __future__ import annotations


def used_bytes() -> int | None:
    """Bytes in use on all GPUs that NVML sees, by anyone; None without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    try:
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return sum(int(pynvml.nvmlDeviceGetMemoryInfo(device).used) for device in devices)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
