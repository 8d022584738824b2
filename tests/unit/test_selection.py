"""Which GPUs are measured: those asked for, those CUDA sees, the only one; never all by accident."""

from __future__ import annotations

import pytest

from loadgen.errors import UsageError
from loadgen.power.sample import GpuInfo, UnreadableGpu
from loadgen.power.sampler import select_gpus

A, B, C = "GPU-aa11", "GPU-aa22", "GPU-cc33"


def gpus(*names: str) -> list[GpuInfo]:
    return [
        GpuInfo(uuid=uuid, index=i, name=name) for i, (uuid, name) in enumerate(zip((A, B, C), names, strict=False))
    ]


THREE = gpus("H200", "H200", "H200")
MIXED = gpus("H200", "L4", "H200")


def test_the_only_gpu_needs_no_choice() -> None:
    assert select_gpus(gpus("H200"), asked=None, visible=None) == [A]


def test_several_are_never_all_taken_by_accident() -> None:
    with pytest.raises(UsageError, match=f"has 3 GPUs and none was chosen: pass --gpu .*{A} H200, {B} H200"):
        select_gpus(THREE, asked=None, visible=None)


@pytest.mark.parametrize(("asked", "chosen"), [([B], [B]), (["GPU-c"], [C]), ([C, A], [C, A]), ([A, "GPU-aa1"], [A])])
def test_uuids_and_their_beginnings(asked: list[str], chosen: list[str]) -> None:
    assert select_gpus(THREE, asked=asked, visible="1") == chosen


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("GPU-aa", "--gpu 'GPU-aa' fits 2 GPUs of this machine: choose from GPU-aa11 H200"),
        ("GPU-x", "--gpu 'GPU-x' fits no GPU of this machine"),
        ("", "--gpu '' fits no GPU of this machine"),
        ("MIG-1234", "--gpu names the MIG slice MIG-1234, whose energy cannot be told"),
    ],
)
def test_names_that_fit_none_or_several_are_refused(asked: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        select_gpus(THREE, asked=[asked], visible=None)


def test_a_whole_uuid_stands_even_where_another_begins_with_it() -> None:
    infos = [GpuInfo(uuid="GPU-1", index=0, name="L4"), GpuInfo(uuid="GPU-12", index=1, name="L4")]
    assert select_gpus(infos, asked=["GPU-1"], visible=None) == ["GPU-1"]


@pytest.mark.parametrize(("visible", "chosen"), [("1", [B]), ("2, 0", [C, A]), (f"{C}", [C]), ("GPU-aa2", [B])])
def test_cudas_visible_devices_are_those_of_the_server(visible: str, chosen: list[str]) -> None:
    assert select_gpus(THREE, asked=None, visible=visible) == chosen


@pytest.mark.parametrize(
    ("visible", "said"),
    [
        ("", "CUDA_VISIBLE_DEVICES='' hides every GPU"),
        ("-1", "hides every GPU: pass --gpu"),
        ("7", "CUDA_VISIBLE_DEVICES names GPU 7, which this machine does not have"),
        ("MIG-77", "CUDA_VISIBLE_DEVICES names the MIG slice MIG-77"),
    ],
)
def test_visible_devices_that_cannot_be_measured(visible: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        select_gpus(THREE, asked=None, visible=visible)


def test_numbers_are_refused_where_cuda_may_count_otherwise() -> None:
    with pytest.raises(UsageError, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID or pass --gpu"):
        select_gpus(MIXED, asked=None, visible="0")
    assert select_gpus(MIXED, asked=None, visible="1", order="PCI_BUS_ID") == [B]
    assert select_gpus(MIXED, asked=None, visible=B) == [B]


LOST = [UnreadableGpu(index=1, code="NVML_ERROR_GPU_IS_LOST", uuid="GPU-bb"), UnreadableGpu(index=2, code="X_NO")]


def test_an_unreadable_gpu_is_refused_only_where_it_is_chosen() -> None:
    one = gpus("H200")
    assert select_gpus(one, asked=None, visible=None, unreadable=LOST) == [A]
    assert select_gpus(one, asked=[A], visible=None, unreadable=LOST) == [A]
    assert select_gpus(one, asked=None, visible="0", unreadable=LOST) == [A]
    with pytest.raises(UsageError, match=r"--gpu 'GPU-bb': GPU 1 GPU-bb cannot be read \(NVML_ERROR_GPU_IS_LOST\)"):
        select_gpus(one, asked=["GPU-bb"], visible=None, unreadable=LOST)
    with pytest.raises(UsageError, match=r"names GPU 2: GPU 2 cannot be read \(X_NO\)"):
        select_gpus(one, asked=None, visible="0,2", unreadable=LOST)
    with pytest.raises(UsageError, match=r"fits no GPU of this machine: .* GPU-aa11 H200; GPU 1 .*; GPU 2 cannot"):
        select_gpus(one, asked=["GPU-zz"], visible=None, unreadable=LOST)
