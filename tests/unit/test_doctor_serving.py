"""What the doctor says of vLLM, the hub's checkpoints, datasets, Prometheus and Grafana."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from made_exporter import served
from made_hub import AWQ, GPTQ, MadeHub, made_hub, packed, put_in_cache, put_in_folder

from loadgen.doctor.examination import dataset, grafana, prometheus
from loadgen.doctor.finding import Finding, ProgramResult
from loadgen.doctor.vllm import bitsandbytes, examine_checkpoints, examine_vllm, interpreter_of, packages_beside
from loadgen.serving.recipe import load_recipe, load_recipes
from loadgen.workload.dataset import FILES

MISTRAL = "mistralai/Mistral-7B-Instruct-v0.3"
OWN = {name: load_recipe(name).checkpoints[MISTRAL] for name in ("awq", "gptq", "fp8")}
FP8 = packed("float", 8, activations=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[MadeHub]:
    configs = {MISTRAL: {}, OWN["awq"]: AWQ, OWN["gptq"]: GPTQ, OWN["fp8"]: FP8}
    with made_hub(configs) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """A `vllm` command in an environment of its own, as pip writes it."""
    script = tmp_path / "bin" / "vllm"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\n")
    script.chmod(0o755)
    return script


def of_vllm(mode: Any, vllm: Path, version: ProgramResult | None, packages: dict[str, str]) -> list[Finding]:
    def run(argv: Sequence[str], _timeout_s: float) -> ProgramResult | None:
        if list(argv) == [str(vllm), "--version"]:
            return version
        assert argv[:2] == [sys.executable, "-c"]
        return ProgramResult(status=0, output=json.dumps(packages))

    return examine_vllm(mode, str(vllm), run)


@pytest.mark.parametrize(
    ("mode", "version", "state"),
    [
        ("cpu", "0.32.0+cpu", "ok"),
        ("gpu", "0.32.0", "ok"),
        ("gpu", "0.32.0+cpu", "missing"),
        ("cpu", "0.26.0", "missing"),
    ],
)
def test_vllm_is_a_build_for_the_device(vllm: Path, mode: str, version: str, state: str) -> None:
    found, bnb = of_vllm(mode, vllm, ProgramResult(status=0, output=f"INFO importing\n{version}\n"), {})
    assert (found.state, found.check) == (state, "vLLM")
    assert found.seen.startswith(f"{version}, {vllm}")
    assert bnb.state == "warning"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (ProgramResult(status=1, errors="Traceback\nPackageNotFoundError: vllm\n"), "PackageNotFoundError: vllm"),
        (ProgramResult(status=None), "did not end in time"),
        (ProgramResult(status=0, output="hello"), "hello"),
        (None, "cannot be executed"),
    ],
)
def test_a_vllm_that_does_not_say_its_version_is_missing(vllm: Path, answer: ProgramResult | None, why: str) -> None:
    (found,) = of_vllm("cpu", vllm, answer, {})
    assert found.state == "missing"
    assert why in found.seen


def test_no_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LOADGEN_VLLM", raising=False)
    (found,) = examine_vllm("gpu")
    assert (found.state, found.seen) == ("missing", "no vllm command for device 'cuda' was found")
    assert found.advice.startswith("install it with `pip install vllm`")
    for mode in ("simulated", "docker"):
        assert [one.state for one in examine_vllm(mode)] == ["not applicable"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "packages", "state", "named"),
    [
        ("0.27.1", {"bitsandbytes": "0.48.1"}, "ok", "bitsandbytes 0.48.1"),
        ("0.28.0", {"bitsandbytes": "0.48.1"}, "warning", "pip install vllm-bnb-plugin`"),
        ("0.32.0+cpu", {"bitsandbytes": "0.50.2", "vllm-bnb-plugin": "0.0.3"}, "ok", "vllm-bnb-plugin 0.0.3"),
        ("0.33.0", {"bitsandbytes": "0.50.2", "vllm-bnb-plugin": "0.0.3"}, "ok", "vllm-bnb-plugin 0.0.3"),
        ("0.32.0", {}, "warning", "pip install bitsandbytes vllm-bnb-plugin`"),
        ("0.32.0", None, "warning", "vLLM's environment"),
    ],
)
def test_bitsandbytes_needs_the_plugin_since_it_left_vllm(
    version: str, packages: dict[str, str] | None, state: str, named: str
) -> None:
    found = bitsandbytes(version, packages)
    assert found.state == state
    assert named in found.seen + found.advice


def test_the_environment_is_the_one_of_the_commands_first_line(vllm: Path, tmp_path: Path) -> None:
    assert interpreter_of(vllm) == Path(sys.executable)
    assert packages_beside(str(vllm)) is not None
    vllm.write_text("#!/bin/sh\n")
    assert interpreter_of(vllm) is None
    beside = tmp_path / "bin" / "python"
    beside.write_text("")
    assert interpreter_of(vllm) == beside
    assert interpreter_of(tmp_path / "absent") is None
    assert packages_beside(str(tmp_path / "absent")) is None


def of_hub(mode: Any = "gpu", model: str | None = MISTRAL) -> dict[str, Finding]:
    return {found.check: found for found in examine_checkpoints(mode, model, load_recipes())}


def test_the_hubs_checkpoints_of_a_model(hub: MadeHub) -> None:
    found = of_hub()
    assert list(found) == ["hub", *(f"{name} of Mistral-7B-Instruct-v0.3" for name in ("16-bit", "awq", "fp8", "gptq"))]
    assert {one.state for one in found.values()} == {"ok"}
    assert found["awq of Mistral-7B-Instruct-v0.3"].seen == f"{OWN['awq']}: awq int4"


def test_a_checkpoint_of_another_kind_gated_or_absent_is_a_warning_the_model_itself_is_needed(hub: MadeHub) -> None:
    hub.configs[OWN["awq"]] = packed("int", 4, activations=False)
    hub.gated.add(OWN["gptq"])
    del hub.configs[OWN["fp8"]]
    found = {check.partition(" ")[0]: one for check, one in of_hub().items()}
    assert {found[name].state for name in OWN} == {"warning"}
    assert "holds compressed-tensors int4" in found["awq"].advice
    assert "HF_TOKEN" in found["gptq"].advice
    assert "--serve fp8=ORG/NAME" in found["fp8"].advice
    assert found["16-bit"].state == "ok"
    hub.gated.add(MISTRAL)
    assert of_hub()["16-bit of Mistral-7B-Instruct-v0.3"].state == "missing"
    hub.gated.clear()
    hub.configs[MISTRAL] = AWQ
    assert of_hub()["16-bit of Mistral-7B-Instruct-v0.3"].state == "missing"


def test_without_a_model_every_known_one_is_looked_up_and_none_is_needed(hub: MadeHub) -> None:
    found = of_hub(model=None)
    unverified = load_recipe("gptq").unverified_checkpoints
    assert {name for name, _ in hub.asked} >= {*OWN.values(), *unverified.values(), MISTRAL}
    assert {one.state for one in found.values()} == {"ok", "warning"}
    assert "(not verified): absent" in found["gptq of Qwen2.5-32B-Instruct"].seen


def test_offline_a_model_must_be_cached(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert of_hub()["hub"].state == "missing"
    assert "give --model a folder" in of_hub()["hub"].advice
    assert of_hub(model=None)["hub"].state == "warning"
    put_in_cache(own_cache, MISTRAL, {}, weights=False)
    assert of_hub()["hub"].state == "missing"
    (own_cache / "models--mistralai--Mistral-7B-Instruct-v0.3/snapshots/c0ffee/model.safetensors").write_bytes(b"")
    assert of_hub()["hub"].state == "warning"
    assert of_hub("simulated")["hub"].state == "not applicable"


def test_who_asks_for_no_connection_gets_none(hub: MadeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert of_hub()["hub"].seen.startswith("HF_HUB_OFFLINE")
    assert hub.asked == []


def test_a_folder_is_examined_with_those_beside_it(tmp_path: Path) -> None:
    model = put_in_folder(tmp_path / "tiny", {})
    put_in_folder(tmp_path / "tiny-int8", packed("int", 8, activations=True))
    put_in_folder(tmp_path / "tiny-fp8", packed("int", 8, activations=True))
    found = of_hub("cpu", str(model))
    states = {check: one.state for check, one in found.items()}
    assert states == {"hub": "not applicable", "16-bit of tiny": "ok", "fp8 of tiny": "warning", "int8 of tiny": "ok"}
    empty = tmp_path / "empty"
    empty.mkdir()
    assert of_hub("cpu", str(empty))["16-bit of empty"].state == "missing"


@pytest.mark.parametrize(
    ("state", "gpu", "simulated"),
    [("cached", "ok", "ok"), ("absent", "warning", "not applicable"), ("damaged", "warning", "warning")],
)
def test_datasets(state: Any, gpu: str, simulated: str) -> None:
    files = FILES["gsm8k"]
    assert dataset("gpu", "gsm8k", files, lambda _: state).state == gpu
    assert dataset("simulated", "gsm8k", files, lambda _: state).state == simulated


def test_prometheus_and_grafana() -> None:
    async def ready(_: web.Request) -> web.Response:
        return web.Response(text="Prometheus Server is Ready.")

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"database": "ok", "version": "11.6.0"})

    app = web.Application()
    app.add_routes([web.get("/-/ready", ready), web.get("/api/health", health)])
    with served(app) as url:
        assert prometheus(f"{url}/").state == "ok"
        found = grafana(url)
    assert (found.state, found.seen) == ("ok", f"{url} is healthy, version 11.6.0")
    for gone in (prometheus(url), grafana(url)):
        assert (gone.state, gone.seen) == ("warning", f"{url} does not answer")
        assert "a sweep runs without" in gone.advice
    assert grafana(url, lambda _: {"database": "failing"}).state == "warning"
