"""Where a sweep's power comes from: what `auto` cannot have costs the energy, never the sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.errors import ServerError, UsageError
from loadgen.measure import power
from loadgen.measure.config import configure
from loadgen.measure.power import exporter_of, plan_power
from loadgen.power.sample import GpuInfo, PowerSample
from loadgen.record.config import SweepConfig
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
