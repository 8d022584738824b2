"""A resumed run measures what it measured before: other data, servers or GPUs are refused, doubts are warnings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_run import manifest_record
from msgspec.structs import replace

from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.measure.machine import (
    compare_gpus,
    compare_machines,
    require_same_data,
    require_same_power,
    require_same_server,
)
from loadgen.power.feed import PowerFacts
from loadgen.power.sample import ClockOffset, GpuInfo
from loadgen.record.manifest import (
    ClientRecord,
    DatasetRecord,
    HostRecord,
    PowerBlock,
    PowerPlan,
    ProtocolRecord,
    ServerRecord,
)
from loadgen.serving.checkpoint import checkpoint_identity
from loadgen.serving.recipe import load_recipes, recipe_sha256, recipes_dir

ARGV = ("/a/vllm", "serve", "org/model-AWQ", "--port", "4711", "--seed", "0")
SERVER = ServerRecord(
    name="awq", repeat=1, version="0.32.0", model="org/model-AWQ", checkpoint_identity="commit 1234",
    max_model_len=4096, kernels=("MarlinLinearKernel",), argv=ARGV,
)  # fmt: skip
BEGUN = msgspec.structs.replace(manifest_record(configure()), servers=(SERVER,))
DATASET = DatasetRecord(name="gsm8k", sha256="d" * 64, published=True, items=1319)
PROTOCOL = ProtocolRecord(name="gsm8k", sha256="p" * 64, api="chat", max_tokens=9)
RECIPES = {"fp16": "f" * 64, "awq": "a" * 64}


def gpu(uuid: str = "GPU-1", **fields: Any) -> GpuInfo:
    return GpuInfo(**({"uuid": uuid, "index": 0, "name": "H100", "driver": "570.1"} | fields))


def sensors(*gpus: GpuInfo) -> PowerFacts:
    clock = ClockOffset(offset_ns=0, bound_ns=0, same_machine=True)
    return PowerFacts(source="nvml", simulated=False, gpus=gpus, calibration={}, clock=clock)


def refused(said: str) -> Any:
    return pytest.raises(UsageError, match=re.escape(said))


DATA = msgspec.structs.replace(BEGUN, dataset=DATASET, protocol=PROTOCOL, recipes=RECIPES)


def test_the_same_data_and_recipes_pass() -> None:
    require_same_data(DATA, DATASET, PROTOCOL, RECIPES)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            (replace(DATASET, sha256="e" * 64), PROTOCOL, RECIPES),
            f"sha256 of the dataset gsm8k was {'d' * 64} when the run was begun and is {'e' * 64} now",
        ),
        ((replace(DATASET, items=9), PROTOCOL, RECIPES), "number of items of the dataset was 1319"),
        ((DATASET, replace(PROTOCOL, sha256="q" * 64), RECIPES), "sha256 of the protocol gsm8k was"),
        ((DATASET, PROTOCOL, RECIPES | {"awq": "b" * 64}), "sha256 of the recipe awq was"),
    ],
)
def test_other_data_or_recipes_are_refused(
    changed: tuple[DatasetRecord, ProtocolRecord, dict[str, str]], said: str
) -> None:
    with refused(said):
        require_same_data(DATA, *changed)


def test_a_recipe_is_known_by_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({recipe_sha256(name) for name in load_recipes()}) == len(load_recipes())
    folder = tmp_path / "servers"
    folder.mkdir()
    for path in recipes_dir().glob("*.toml"):
        (folder / path.name).write_text(path.read_text() + "\n# a remark\n")
    before = recipe_sha256("awq")
    monkeypatch.setattr("loadgen.serving.recipe.recipes_dir", lambda: folder)
    assert recipe_sha256("awq") == before, "a remark is no change"
    text = (folder / "_fair.toml").read_text()
    (folder / "_fair.toml").write_text(text.replace("args = [", 'args = ["--one-more", ', 1))
    assert recipe_sha256("awq") != before, "what is equal for all is part of it"


def test_other_sensors_are_refused_with_the_reason() -> None:
    begun = PowerPlan(kind="nvml", gpus=("GPU-1",), idle_w={})
    require_same_power(begun, PowerPlan(kind="nvml", gpus=("GPU-1",)))
    with refused("source of power was nvml when the run was begun and is none now (no driver)"):
        require_same_power(begun, PowerPlan(kind="none", reason="no driver"))
    with refused("GPUs of power was GPU-1 when the run was begun and is GPU-2 now"):
        require_same_power(begun, PowerPlan(kind="nvml", gpus=("GPU-2",)))


def test_the_same_server_passes_though_its_port_and_command_path_are_others() -> None:
    argv = ("/b/vllm", "serve", "org/model-AWQ", "--port", "4712", "--seed", "0")
    require_same_server(BEGUN, replace(SERVER, argv=argv, pid=3, repeat=2))
    require_same_server(manifest_record(configure()), replace(SERVER, version="9"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version": "0.33.0"}, "version of target awq was 0.32.0 when the run was begun and is 0.33.0 now"),
        ({"checkpoint_identity": "commit 5678"}, "checkpoint of target awq was commit 1234"),
        ({"max_model_len": 2048}, "longest context of target awq was 4096"),
        ({"kernels": ("ExllamaLinearKernel",)}, "kernels of target awq was MarlinLinearKernel"),
        ({"argv": (*ARGV, "--enforce-eager")}, "command of target awq was serve org/model-AWQ --seed 0 when"),
    ],
)  # fmt: skip
def test_another_server_is_refused(changed: dict[str, Any], said: str) -> None:
    with refused(said):
        require_same_server(BEGUN, replace(SERVER, **changed))


def test_another_model_or_a_simulated_server_is_refused() -> None:
    with refused("model of target awq was org/model-AWQ"):
        require_same_server(BEGUN, replace(SERVER, model="other"))
    with refused("simulated of target awq was False"):
        require_same_server(BEGUN, replace(SERVER, simulated=True))


def test_another_gpu_is_refused_another_driver_or_limit_is_a_warning() -> None:
    block = PowerBlock(target="awq", repeat=1, gpus=(gpu(power_limit_enforced_w=700.0),))
    begun = replace(BEGUN, power_blocks=(block,))
    assert compare_gpus(begun, "awq", sensors(gpu(power_limit_enforced_w=700.0))) == []
    assert compare_gpus(begun, "fp16", sensors(gpu("GPU-9"))) == [], "was not measured before"
    with refused("GPU of target awq was GPU-1 when the run was begun and is GPU-2 now"):
        compare_gpus(begun, "awq", sensors(gpu("GPU-2")))
    assert compare_gpus(begun, "awq", sensors(gpu(driver="580.2", power_limit_enforced_w=500.0))) == [
        "the driver of GPU-1 was 570.1, now 580.2",
        "the power limit (W) of GPU-1 was 700.0, now 500.0",
    ]


def test_another_client_is_a_warning_another_cpu_under_the_servers_is_refused() -> None:
    client = ClientRecord(loadgen="0.1.0", python="3.11.2", packages={"uvloop": "0.21", "numpy": "2.0"})
    newer = ClientRecord(loadgen="0.2.0", python="3.11.2", packages={"uvloop": "0.21"})
    here, there = HostRecord(cpu="EPYC", cpus=2), HostRecord(cpu="Xeon", cpus=2)
    begun = replace(BEGUN, client=client, host=here)
    assert compare_machines(begun, client=client, host=here, serves=True) == []
    assert compare_machines(begun, client=newer, host=there, serves=False) == [
        "the client's CPU was EPYC, now Xeon",
        "the client's loadgen was 0.1.0, now 0.2.0",
        "the client's numpy was 2.0, now not known",
    ]
    with refused("CPU of this machine was EPYC when the run was begun and is Xeon now"):
        compare_machines(begun, client=client, host=there, serves=True)


def test_a_folder_of_weights_is_known_by_its_config_and_its_files_sizes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    first = checkpoint_identity(str(tmp_path))
    assert first is not None
    assert first == checkpoint_identity(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    larger = checkpoint_identity(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    (tmp_path / "config.json").write_text('{"hidden_size": 65}')
    assert len({first, larger, checkpoint_identity(str(tmp_path))}) == 3


def test_an_id_is_known_by_its_cached_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--org--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "snapshots" / "0a1b").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0a1b")
    assert checkpoint_identity("org/model") == "commit 0a1b"
    assert checkpoint_identity("org/another") is None
