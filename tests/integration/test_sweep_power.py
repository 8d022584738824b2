"""The whole path of a joule: the real nvidia-ml-py over a stub library, `loadgen exporter`, the sweep, the summary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import KnownServer, known_server
from nvml_stub.build import Curve, build_stub, uuid_of

import loadgen
from loadgen.serving.process import free_port

WATTS = 300


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("stub"))


@pytest.fixture(scope="module")
def server() -> Iterator[KnownServer]:
    with known_server(ttft_s=0.05, itl_s=0.02, tokens=40) as known:
        yield known


def sweep(server: KnownServer, out: Path, env: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "loadgen", "sweep", "--target", f"fp16={server.url}", "--concurrency", "4",
            "--dataset", "sample", "--repeats", "1", "--duration", "4", "--out", str(out), *options,
        ],
        capture_output=True, text=True, env=env, check=False,
    )  # fmt: skip


def test_joules_of_a_constant_gpu_come_out_right(stub: Path, server: KnownServer, tmp_path: Path) -> None:
    """300 W throughout: the energy of the window, per token and at rest follow from the rate alone."""
    out = tmp_path / "run"
    done = sweep(server, out, Curve(base_w=WATTS).environment(stub), "--power", "nvml", "--tdp-w", "700")
    print(done.stdout, done.stderr)
    run = loadgen.load_run(out)
    (cell,) = run.cells.to_dict("records")
    assert cell["energy_verdict"] in ("good", "warning"), cell["energy_reasons"]
    assert cell["energy_j"] == pytest.approx(WATTS * cell["window_s"], rel=0.01)
    assert cell["energy_integral_j"] == pytest.approx(WATTS * cell["window_s"], rel=0.01)
    assert cell["power_w_mean"] == pytest.approx(WATTS, rel=0.01)
    assert cell["energy_per_token_j"] == pytest.approx(WATTS / cell["tokens_per_s"], rel=0.01)
    assert cell["energy_net_j"] == pytest.approx(0, abs=0.02 * WATTS * cell["window_s"]), "at rest it draws as much"
    assert cell["energy_hli_per_query_j"] == pytest.approx(cell["energy_per_query_j"] * 700 / WATTS, rel=0.01)
    assert set(run.power["gpu_uuid"]) == {uuid_of(0)}
    assert run.manifest["gpu"][0]["uuid"] == uuid_of(0)
    assert run.manifest["power_blocks"][0]["clock"]["same_machine"]


def test_a_gpu_lost_on_the_way_makes_the_cell_invalid(stub: Path, server: KnownServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    env = Curve().environment(stub, LOST_AFTER_MS=6_000)
    done = sweep(server, out, env, "--power", "nvml")
    (cell,) = loadgen.load_run(out).cells.to_dict("records")
    assert done.returncode == 1, done.stdout + done.stderr
    assert not cell["valid"]
    assert "energy: " in cell["reasons"]


def test_several_gpus_are_never_all_measured_by_accident(stub: Path, server: KnownServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = sweep(server, out, Curve().environment(stub, GPUS=2), "--power", "nvml")
    assert done.returncode == 2
    assert "--gpu" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()
    done = sweep(server, out, Curve().environment(stub, GPUS=2), "--power", "nvml", "--gpu", uuid_of(1))
    assert set(loadgen.load_run(out).power["gpu_uuid"]) == {uuid_of(1)}, done.stderr


def test_without_a_driver_auto_says_why_there_is_no_energy(server: KnownServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = sweep(server, out, dict(os.environ))
    assert "Energy: not measured" in done.stdout, done.stderr
    run = loadgen.load_run(out)
    assert run.cells["energy_j"].isna().all()
    assert run.manifest["power"]["reason"]


def test_the_running_sweep_can_be_scraped(server: KnownServer, tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "loadgen", "sweep", "--target", f"fp16={server.url}", "--concurrency", "2",
            "--dataset", "sample", "--repeats", "1", "--duration", "5", "--out", str(tmp_path / "run"),
            "--metrics-port", str(port), "--quiet",
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seen = ""
    try:
        while process.poll() is None and "loadgen_ttft_seconds_count" not in seen:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    seen = answer.read().decode()
            except OSError:
                continue
    finally:
        process.wait(60)
    labels = 'concurrency="2",precision="fp16",repeat="1",target="fp16"'
    assert f"loadgen_requests_in_flight{{{labels}}} 2.0" in seen
    assert f'loadgen_requests_total{{{labels.replace(",target", ",status=" + json.dumps("ok") + ",target")}}}' in seen
    assert "loadgen_simulated 0.0" in seen
    checked = subprocess.run(["promtool", "check", "metrics"], input=seen, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stderr
