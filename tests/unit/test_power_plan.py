"""Where a sweep's power comes from: what `auto` cannot have costs the energy, never the sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.errors import ServerError, UsageError
from loadgen.measure import power
from loadgen.measure.config import configure
from loadgen.measure.power import exporter_of, plan_power, serving_gpus
from loadgen.power.sample import GpuInfo, PowerSample
from loadgen.record.cell import SweepConfig
from loadgen.record.manifest import PowerPlan


def config(**options: object) -> SweepConfig:
    return configure(targets={"fp16": "http://127.0.0.1:9"}, **options)  # type: ignore[arg-type]


class Broken:
    """Sensors that fail in a way nobody thought of."""

    def __init__(self) -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


def test_auto_says_why_there_is_no_energy_whatever_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "NvmlReader", Broken)
    plan = plan_power(config(), simulated=False)
    assert plan.kind == "none"
    assert plan.reason is not None
    assert plan.reason.startswith("NVML failed (UnicodeDecodeError: ")


def test_exclusive_needs_sensors_that_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "NvmlReader", Broken)
    for source in ("auto", "none"):
        with pytest.raises(UsageError, match="--exclusive cannot be checked without the GPUs' sensors"):
            plan_power(config(power=source, exclusive=True), simulated=False)


class Fine:
    """One GPU that can be read."""

    unreadable = ()

    def gpus(self) -> list[GpuInfo]:
        return [GpuInfo(uuid="GPU-a", index=0, name="H200")]

    def read(self, uuid: str, *, slow: bool) -> PowerSample:
        return PowerSample(t_ns=1, latency_ns=1, gpu=uuid, processes=())

    def close(self) -> None: ...


def test_only_a_source_that_was_named_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "NvmlReader", Fine)
    assert plan_power(config(power="nvml"), simulated=False) == PowerPlan(kind="nvml", gpus=("GPU-a",))
    assert plan_power(config(), simulated=False) == PowerPlan(kind="nvml", gpus=("GPU-a",), required=False)


@pytest.mark.parametrize("required", [True, False])
def test_an_exporter_that_does_not_start(required: bool, tmp_path: Path) -> None:
    said: list[str] = []
    plan = PowerPlan(kind="nvml", gpus=("GPU-nowhere",), required=required)
    if required:
        with pytest.raises(ServerError), exporter_of(plan, tmp_path, said.append):
            pass
        return
    with exporter_of(plan, tmp_path, said.append) as url:
        assert url is None
    assert said[0].startswith("energy is not measured: the power exporter did not start: ")


class Four(Fine):
    """Four GPUs that can be read, not in the order of their numbers."""

    def gpus(self) -> list[GpuInfo]:
        return [GpuInfo(uuid=f"GPU-{index}", index=index, name="H200") for index in (2, 0, 1, 3)]


def served(**options: object) -> SweepConfig:
    return configure(serve="fp16,bf16", model="org/model", vllm="/bin/true", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpu", "visible", "chosen"),
    [(None, None, "0123"), (None, "3,1", "31"), ("GPU-2,GPU-0", None, "20"), ("GPU-2,GPU-0", "1", "20")],
)
def test_servers_take_the_gpus_that_are_named_else_the_visible_ones_else_the_first(
    monkeypatch: pytest.MonkeyPatch, gpu: str | None, visible: str | None, chosen: str
) -> None:
    monkeypatch.setattr(power, "NvmlReader", Four)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config, needs = served(gpu=gpu), {"fp16": 2, "bf16": 1}
    assert [info.uuid for info in serving_gpus(config.gpus, needs)] == [f"GPU-{number}" for number in chosen]
    planned = plan_power(config, simulated=False, needs=needs)
    assert planned.gpus == tuple(f"GPU-{number}" for number in chosen[:2])


def test_containers_are_metered_on_the_gpus_that_their_project_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "NvmlReader", Four)
    needs, places = {"fp16": 2, "awq": 1}, {"fp16": ("1", "3"), "awq": ("GPU-2",)}
    plan = plan_power(served(), simulated=False, needs=needs, places=places)
    assert plan.placed == {"fp16": ("GPU-1", "GPU-3"), "awq": ("GPU-2",)}
    assert plan.gpus == ("GPU-1", "GPU-3", "GPU-2")
    by_user = plan_power(served(gpu="GPU-0,GPU-1"), simulated=False, needs=needs, places=places)
    assert (by_user.gpus, by_user.placed) == (("GPU-0", "GPU-1"), {})
    with pytest.raises(UsageError, match=r"gives awq the GPU '7', and NVML shows 2 GPU-2, .* set AWQ_GPU in its .env"):
        plan_power(served(power="nvml"), simulated=False, needs=needs, places={"awq": ("7",)})


@pytest.mark.parametrize(
    ("reader", "visible", "said"),
    [
        (
            Four,
            None,
            "fp16 needs 8 GPUs and 4 are visible: give a smaller --tensor-parallel, or make more GPUs visible",
        ),
        (Four, "2", "fp16 needs 8 GPUs and 1 is visible"),
        (Broken, "0,1", "fp16 needs 8 GPUs and 2 are visible"),
    ],
)
def test_more_gpus_than_are_visible_are_refused(
    monkeypatch: pytest.MonkeyPatch, reader: type, visible: str | None, said: str
) -> None:
    monkeypatch.setattr(power, "NvmlReader", reader)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UsageError, match=said):
        serving_gpus(None, {"fp16": 8})


def test_without_sensors_a_server_is_left_to_say_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "NvmlReader", Broken)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert serving_gpus(None, {"fp16": 8}) == ()
