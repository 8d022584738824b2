"""Selection: which of a machine's GPUs are measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadgen.errors import UsageError
from loadgen.power.sample import GpuInfo, UnreadableGpu


def select_gpus(
    infos: Sequence[GpuInfo],
    *,
    asked: Sequence[str] | None,
    visible: str | None,
    order: str | None = None,
    unreadable: Sequence[UnreadableGpu] = (),
) -> list[str]:
    """UUIDs to measure, each once: those `asked` for, else CUDA's visible ones, else the only one that can be read.

    `asked`: UUIDs or beginnings of them that fit one GPU. `visible`, `order`: the values of CUDA_VISIBLE_DEVICES and
    CUDA_DEVICE_ORDER, None when unset. `unreadable`: GPUs of this machine beside `infos`. Raises UsageError where the
    choice is open (never all of several by accident) or a chosen GPU cannot be read.
    """
    here = _Here(infos, unreadable)
    if asked:
        return _each_once(here.by_uuid(name.strip(), "--gpu") for name in asked)
    if visible is not None:
        return _visible(here, visible, order)
    if len(infos) == 1:
        return [infos[0].uuid]
    raise UsageError(f"{len(infos)} GPUs are here and none was chosen: pass --gpu with the server's ({here})")


@dataclass(frozen=True)
class _Here:
    """A machine's GPUs, to be chosen from."""

    infos: Sequence[GpuInfo]
    unreadable: Sequence[UnreadableGpu]

    def by_uuid(self, name: str, where: str) -> str:
        if name.startswith("MIG-"):
            raise UsageError(
                f"{where} names the MIG slice {name}, whose energy cannot be told from its GPU's: name a GPU"
            )
        fitting = [info.uuid for info in self.infos if name and info.uuid.startswith(name)]
        if name in fitting:
            return name
        lost = [gpu for gpu in self.unreadable if name and (gpu.uuid or "").startswith(name)]
        if lost and not fitting:
            raise UsageError(f"{where} {name!r}: {lost[0]}: choose from {self}")
        if len(fitting) + len(lost) != 1:
            fits = f"fits {len(fitting) + len(lost)} GPUs" if fitting else "fits no GPU"
            raise UsageError(f"{where} {name!r} {fits} here: choose from {self}")
        return fitting[0]

    def of_number(self, number: int) -> str:
        """The UUID of the GPU with that number by PCI bus."""
        for gpu in self.unreadable:
            if gpu.index == number:
                raise UsageError(f"CUDA_VISIBLE_DEVICES names GPU {number}: {gpu}: pass --gpu ({self})")
        for info in self.infos:
            if info.index == number:
                return info.uuid
        raise UsageError(f"CUDA_VISIBLE_DEVICES names GPU {number}, which is not here: pass --gpu ({self})")

    def __str__(self) -> str:
        readable = ", ".join(f"{info.uuid} {info.name}" for info in self.infos) or "none"
        return "; ".join([readable, *map(str, self.unreadable)])


def _visible(here: _Here, visible: str, order: str | None) -> list[str]:
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if not names or names[0] == "-1":
        raise UsageError(f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU: pass --gpu UUID to measure one anyway")
    return _each_once(_of_visible(here, name, order) for name in names)


def _of_visible(here: _Here, name: str, order: str | None) -> str:
    """The UUID of one entry of CUDA_VISIBLE_DEVICES: an index or a UUID."""
    if not name.isdecimal():
        return here.by_uuid(name, "CUDA_VISIBLE_DEVICES")
    # CUDA numbers the fastest first unless told otherwise, NVML by PCI bus: the same for GPUs of one kind only.
    if order != "PCI_BUS_ID" and len({info.name for info in here.infos}) > 1:
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES names GPU {name} by number and the GPUs here differ, so that CUDA may count them in "
            f"another order: set CUDA_DEVICE_ORDER=PCI_BUS_ID or pass --gpu ({here})"
        )
    return here.of_number(int(name))


def _each_once(uuids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(uuids))
