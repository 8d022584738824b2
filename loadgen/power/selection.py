"""Selection: which of a machine's GPUs are measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loadgen.errors import UsageError
from loadgen.power.sample import GpuInfo


def select_gpus(
    infos: Sequence[GpuInfo], *, asked: Sequence[str] | None, visible: str | None, order: str | None = None
) -> list[str]:
    """UUIDs to measure, each once: those `asked` for, else CUDA's visible ones, else the only one there is.

    `asked`: UUIDs or beginnings of them that fit one GPU. `visible`, `order`: the values of CUDA_VISIBLE_DEVICES and
    CUDA_DEVICE_ORDER, None when unset. Raises UsageError where the choice is open: never all of several by accident.
    """
    if asked:
        return _each_once(_by_uuid(infos, name.strip(), "--gpu") for name in asked)
    if visible is not None:
        return _visible(infos, visible, order)
    if len(infos) == 1:
        return [infos[0].uuid]
    raise UsageError(f"{len(infos)} GPUs are here and none was chosen: pass --gpu with the server's ({_listed(infos)})")


def _visible(infos: Sequence[GpuInfo], visible: str, order: str | None) -> list[str]:
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if not names or names[0] == "-1":
        raise UsageError(f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU: pass --gpu UUID to measure one anyway")
    return _each_once(_of_visible(infos, name, order) for name in names)


def _of_visible(infos: Sequence[GpuInfo], name: str, order: str | None) -> str:
    """The UUID of one entry of CUDA_VISIBLE_DEVICES: an index or a UUID."""
    if not name.isdecimal():
        return _by_uuid(infos, name, "CUDA_VISIBLE_DEVICES")
    # CUDA numbers the fastest first unless told otherwise, NVML by PCI bus: the same for GPUs of one kind only.
    if order != "PCI_BUS_ID" and len({info.name for info in infos}) > 1:
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES names GPU {name} by number and the GPUs here differ, so that CUDA may count them in "
            f"another order: set CUDA_DEVICE_ORDER=PCI_BUS_ID or pass --gpu ({_listed(infos)})"
        )
    for info in infos:
        if info.index == int(name):
            return info.uuid
    raise UsageError(f"CUDA_VISIBLE_DEVICES names GPU {name}, which is not here: pass --gpu ({_listed(infos)})")


def _by_uuid(infos: Sequence[GpuInfo], name: str, where: str) -> str:
    if name.startswith("MIG-"):
        raise UsageError(f"{where} names the MIG slice {name}, whose energy cannot be told from its GPU's: name a GPU")
    fitting = [info.uuid for info in infos if name and info.uuid.startswith(name)]
    if name in fitting:
        return name
    if len(fitting) != 1:
        fits = f"fits {len(fitting)} GPUs" if fitting else "fits no GPU"
        raise UsageError(f"{where} {name!r} {fits} here: choose from {_listed(infos)}")
    return fitting[0]


def _each_once(uuids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(uuids))


def _listed(infos: Sequence[GpuInfo]) -> str:
    return ", ".join(f"{info.uuid} {info.name}" for info in infos) or "none"
