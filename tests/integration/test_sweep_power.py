"""The whole path of a joule: the real nvidia-ml-py over a stub library, `loadgen exporter`, the sweep, the summary."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import KNOWN_SERVER, KnownServer, known_server
from nvml_stub.build import Curve, build_stub, uuid_of
from programs import program

import loadgen
from loadgen.analysis.analyse import analyse
from loadgen.measure.config import configure
from loadgen.measure.power import server_processes
from loadgen.measure.run import run_sweep
from loadgen.power.sample import PowerSample
from loadgen.record.journal import read_records
from loadgen.serving.process import free_port

WATTS = 300


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("stub"))


@pytest.fixture(scope="module")
def server() -> Iterator[KnownServer]:
    with known_server(ttft_s=0.05, itl_s=0.02, tokens=40) as known:
        yield known


def sweep(
    server: KnownServer, out: Path, env: dict[str, str], *options: str, duration: str = "4"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "loadgen", "sweep", "--target", f"fp16={server.url}", "--concurrency", "4",
            "--dataset", "sample", "--repeats", "1", "--duration", duration, "--out", str(out), *options,
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
    assert cell["energy_valid"], cell["energy_reasons"]
    assert cell["energy_j"] == pytest.approx(WATTS * cell["window_s"], rel=0.01)
    assert cell["energy_integral_j"] == pytest.approx(WATTS * cell["window_s"], rel=0.01)
    assert cell["power_w_mean"] == pytest.approx(WATTS, rel=0.01)
    assert cell["energy_per_token_j"] == pytest.approx(WATTS / cell["tokens_per_s"], rel=0.01)
    assert cell["energy_net_j"] == pytest.approx(0, abs=0.02 * WATTS * cell["window_s"]), "at rest it draws as much"
    assert cell["energy_hli_per_query_j"] == pytest.approx(cell["energy_per_query_j"] * 700 / WATTS, rel=0.01)
    assert set(run.power["gpu_uuid"]) == {uuid_of(0)}
    assert run.manifest.gpu[0].uuid == uuid_of(0)
    assert run.manifest.power_blocks[0].clock.same_machine


def test_sensors_are_known_from_the_start(stub: Path, server: KnownServer, tmp_path: Path) -> None:
    """Before the first cell: how often each sensor updates, and power with nothing asked."""
    out = tmp_path / "run"
    env = Curve(base_w=WATTS).environment(stub, COUNTER_PERIOD_MS=100)
    done = sweep(server, out, env, "--power", "nvml", duration="1")
    (block,) = loadgen.load_run(out).manifest.power_blocks
    rest_w = block.rest_w[uuid_of(0)]
    period_s = block.calibration[uuid_of(0)].counter_period_s
    # A busy machine reads the counter some 10 ms late, at either end of some 2 s.
    assert rest_w == pytest.approx(WATTS, rel=0.05)
    assert period_s == pytest.approx(0.1, rel=0.3)
    assert (block.samples_lost, block.pulls_failed) == (0, 0)
    told = re.search(rf"fp16 at rest: {uuid_of(0)} ([0-9.]+) W \(energy counter every ([0-9]+) ms", done.stderr)
    assert told is not None, done.stderr
    assert float(told[1]) == pytest.approx(rest_w, abs=0.051)
    assert float(told[2]) == pytest.approx(period_s * 1e3, abs=0.51)


def fake_vllm(folder: Path) -> Path:
    """A `vllm serve` that logs what the bf16 recipe expects and answers with known timing."""
    says = [
        "dtype=torch.bfloat16, quantization=None, kv_cache_dtype=auto,",
        "enable_prefix_caching=False, enable_chunked_prefill=True,",
    ]
    script = folder / "vllm"
    script.write_text(
        f"#!{sys.executable}\nimport os, sys\nprint({says!r}, flush=True)\n"
        "port = sys.argv[sys.argv.index('--port') + 1]\n"
        f"known = [{sys.executable!r}, {str(KNOWN_SERVER)!r}, '--port', port, '--ttft-ms', '50', '--itl-ms', '20']\n"
        "os.execv(known[0], [*known, '--tokens', '40'])\n"
    )
    script.chmod(0o755)
    return script


@pytest.fixture(scope="module")
def served(stub: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep of two launched servers, one on two GPUs, of three that draw 300, 400 and 500 W; and its progress."""
    folder = tmp_path_factory.mktemp("served")
    done = subprocess.run(
        [
            sys.executable, "-m", "loadgen", "sweep", "--serve", "bf16,pair:bf16", "--model", "tiny/model",
            "--tensor-parallel", "pair=2", "--vllm", str(fake_vllm(folder)), "--concurrency", "2",
            "--dataset", "sample", "--repeats", "1", "--duration", "2", "--power", "nvml", "--out", str(folder / "run"),
            "--", "--enforce-eager",
        ],
        capture_output=True, text=True, check=False,
        env=Curve(base_w=WATTS).environment(stub, GPUS=3) | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return folder / "run", done.stderr


@pytest.mark.slow
def test_a_target_has_the_energy_of_its_own_gpus(served: tuple[Path, str]) -> None:
    out, _ = served
    run = loadgen.load_run(out)
    assert run.manifest.power.gpus == (uuid_of(0), uuid_of(1))
    rows = {row["target"]: row for row in run.summary.to_dict("records")}
    assert rows["bf16"]["power_w_mean"] == pytest.approx(WATTS, rel=0.02)
    assert rows["pair"]["power_w_mean"] == pytest.approx(2 * WATTS + 100, rel=0.02)
    assert (rows["bf16"]["gpus"], rows["pair"]["gpus"]) == (1, 2)
    for row in rows.values():
        assert row["tokens_per_s_per_gpu"] == pytest.approx(row["tokens_per_s"] / row["gpus"])
    for server, (count, visible) in zip(run.manifest.servers, ((1, "0"), (2, "0,1")), strict=True):
        argv = server.argv or ()
        assert ("--tensor-parallel-size" in argv) == (count > 1)
        assert argv[-1] == "--enforce-eager"
        assert server.env["CUDA_VISIBLE_DEVICES"] == visible
    warnings = "\n".join(run.analysis.warnings)
    assert "pair runs on 2 GPUs and bf16 on 1 GPU: compare tokens_per_s_per_gpu (pair makes " in warnings
    assert "every vLLM was given --enforce-eager" in warnings
    assert "tok/s/GPU" in (out / "report.html").read_text()


def fake_docker(folder: Path, port: int) -> None:
    """A `docker` whose only container, of the service bf16, is a process here, on the second and third GPU; it answers
    before its log is read."""
    service = {
        "entrypoint": ["/bin/sh", "/opt/start.sh", "VLLM_API_KEY", str(fake_vllm(folder)), "serve"],
        "command": ["tiny/model", "--dtype", "bfloat16", "--tensor-parallel-size", "2", "--port", str(port)],
        "ports": [f"127.0.0.1:{port}:8000/tcp"],
        "deploy": {"resources": {"reservations": {"devices": [{"driver": "nvidia", "device_ids": ["1,2"]}]}}},
    }
    (folder / "compose.yaml").write_text(json.dumps({"services": {"bf16": service}}))
    script = folder / "docker"
    script.write_text(
        f"""#!{sys.executable}
import os, pathlib, subprocess, sys, time
folder = pathlib.Path({str(folder)!r})
held, log, words = folder / "pid", folder / "container.log", sys.argv[1:]
pid = held.read_text() if held.exists() else ""
def running():
    return os.path.exists(f"/proc/{{pid}}") and open(f"/proc/{{pid}}/stat").read().split()[2] != "Z"
if words[:2] == ["compose", "version"]:
    print("2.26.0")
elif words[:2] == ["compose", "config"]:
    print((folder / "compose.yaml").read_text())
elif words[:2] == ["compose", "up"]:
    command = {[str(folder / "vllm"), "--port", str(port)]!r}
    held.write_text(str(subprocess.Popen(command, stdout=log.open("w"), start_new_session=True).pid))
elif words[0] == "ps" and "--quiet" in words:
    print("c0ffee" * bool(pid))
elif words[0] == "inspect":
    print(pid if "Pid" in words[2] else "healthy")
elif words[0] == "rm":
    held.unlink()
if words[0] in ("stop", "rm") and running():
    os.kill(int(pid), 15)
if words[0] == "logs":
    os.execvp("tail", ["tail", "-n", "+1", "-f", f"--pid={{pid}}", str(log)])
while words[0] == "wait" and running():
    time.sleep(0.05)
print("0" * (words[0] == "wait"))
"""
    )
    script.chmod(0o755)


@pytest.mark.slow
def test_a_service_has_the_energy_of_the_gpus_that_its_project_gives_it(stub: Path, tmp_path: Path) -> None:
    """Of three that draw 300, 400 and 500 W the container gets the last two."""
    fake_docker(tmp_path, free_port())
    env = Curve(base_w=WATTS).environment(stub, GPUS=3) | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [
            sys.executable, "-m", "loadgen", "sweep", "--compose", str(tmp_path), "--serve", "bf16",
            "--concurrency", "2", "--dataset", "sample", "--repeats", "1", "--duration", "2", "--power", "nvml",
            "--out", str(tmp_path / "run"),
        ],
        capture_output=True, text=True, check=False, env=env | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    run = loadgen.load_run(tmp_path / "run")
    (row,) = run.summary.to_dict("records")
    assert row["gpus"] == 2
    assert row["power_w_mean"] == pytest.approx(400 + 500, rel=0.02)


@pytest.mark.slow
def test_idle_power_is_taken_before_the_first_server(served: tuple[Path, str]) -> None:
    out, printed = served
    manifest = loadgen.load_run(out).manifest
    idle_w = {uuid_of(0): WATTS, uuid_of(1): WATTS + 100}
    assert manifest.power.idle_w == {uuid: pytest.approx(watts, rel=0.01) for uuid, watts in idle_w.items()}
    assert manifest.power.idle_calibration[uuid_of(0)].samples > 50
    idle = [r.t_ns for r in read_records(out / "journal" / "power" / "idle.jsonl") if isinstance(r, PowerSample)]
    assert max(idle) < min(server.started_ns for server in manifest.servers)
    told = re.search(rf"before the first server: {uuid_of(0)} ([0-9.]+) W", printed)
    assert told is not None, printed
    assert float(told[1]) == pytest.approx(manifest.power.idle_w[uuid_of(0)], abs=0.051)


@pytest.mark.slow
def test_joules_of_a_cpu_server_through_rapl(server: KnownServer, tmp_path: Path) -> None:
    """A made powercap tree: 80 W and 20 W in two packages, of which one turns over at 262 J in the midst of the run."""
    tree = tmp_path / "powercap"
    watts, range_uj = {"package-0": 80, "package-1": 20}, 262_143_328
    for number, name in enumerate(watts):
        zone = tree / f"intel-rapl:{number}"
        zone.mkdir(parents=True)
        (zone / "name").write_text(name)
        (zone / "max_energy_range_uj").write_text(str(range_uj))
    began = time.monotonic()

    def tick() -> None:
        for number, w in enumerate(watts.values()):
            energy_uj = round((time.monotonic() - began) * w * 1e6) % range_uj
            partial = tree / f"energy{number}"
            partial.write_text(f"{energy_uj}\n")
            partial.replace(tree / f"intel-rapl:{number}" / "energy_uj")

    tick()
    over = threading.Event()

    def kernel() -> None:
        while not over.wait(0.002):
            tick()

    thread = threading.Thread(target=kernel)
    thread.start()
    out = tmp_path / "run"
    try:
        done = sweep(server, out, {**os.environ, "LOADGEN_POWERCAP": str(tree)}, "--power", "rapl")
    finally:
        over.set()
        thread.join()
    run = loadgen.load_run(out)
    (cell,) = run.cells.to_dict("records")
    assert cell["valid"], cell["reasons"] + done.stderr
    assert cell["energy_j"] == pytest.approx(sum(watts.values()) * cell["window_s"], rel=0.01)
    assert cell["energy_source"] == "counter"
    assert set(run.power["gpu_uuid"]) == {"rapl:package-0", "rapl:package-1"}


@pytest.mark.slow
def test_a_gpu_lost_on_the_way_leaves_nothing_of_the_cell_valid(
    stub: Path, server: KnownServer, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    env = Curve().environment(stub, LOST_AFTER_MS=6_000)
    done = sweep(server, out, env, "--power", "nvml")
    (cell,) = loadgen.load_run(out).cells.to_dict("records")
    assert done.returncode == 1, done.stdout + done.stderr
    assert not (cell["valid"] or cell["latency_valid"] or cell["energy_valid"] or cell["answers_valid"])
    assert "the GPU was lost" in cell["reasons"]


@pytest.mark.slow
def test_another_process_on_the_gpu_is_warned_of_refused_or_makes_the_energy_invalid(
    stub: Path, server: KnownServer, tmp_path: Path
) -> None:
    """A neighbour is on the GPU beside the server's own process; both are listed by NVML."""
    own = server_processes(server.url)[0]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as other:
        listed = tmp_path / "processes"
        listed.write_text(f"0 {own} 20000\n0 {other.pid} 3072\n")
        env = Curve(base_w=WATTS).environment(stub, PROCESSES=listed)
        refused = sweep(server, tmp_path / "refused", env, "--power", "nvml", "--exclusive")
        done = sweep(server, tmp_path / "run", env, "--power", "nvml", "--warmup", "0.5", duration="2")
        other.communicate()
    named = re.compile(rf"process {other.pid} \(python[\w.]*, 3\.0 GiB\)")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert named.search(refused.stderr)
    assert f"process {own}" not in refused.stderr
    assert not (tmp_path / "refused").exists()
    assert named.search(done.stderr), done.stderr
    run = loadgen.load_run(tmp_path / "run")
    (cell,) = run.cells.to_dict("records")
    assert not cell["energy_valid"]
    assert named.search(cell["energy_reasons"]), cell["energy_reasons"]
    assert f"process {own}" not in cell["energy_reasons"]
    assert cell["energy_j"] == pytest.approx(WATTS * cell["window_s"], rel=0.01), "to be looked at"
    assert named.search(str(run.power["processes"].dropna().iloc[-1]))


def test_a_simulated_neighbours_power_makes_the_energy_invalid(tmp_path: Path) -> None:
    """Counter and power agree that it is drawn; that it is not the server's, the list of processes says."""
    port = free_port()
    argv = ["simulate", "--precision", "fp16", "--port", str(port), "--fault", "foreign@0:600:150"]
    with subprocess.Popen([sys.executable, "-m", "loadgen", *argv], stdout=subprocess.PIPE, text=True) as simulated:
        assert simulated.stdout is not None
        simulated.stdout.readline()
        run_sweep(
            configure(
                targets={"fp16": f"http://127.0.0.1:{port}"}, concurrency="4", dataset="sample", repeats=1,
                duration=1, warmup=0.3, out=tmp_path / "run", metrics_port=None,
            )
        )  # fmt: skip
        simulated.terminate()
    analyse(tmp_path / "run")
    (cell,) = loadgen.load_run(tmp_path / "run").cells.to_dict("records")
    assert not cell["energy_valid"]
    assert "(simulated neighbour, 1.0 GiB) used SIMULATED-h100-like" in cell["energy_reasons"]


@pytest.mark.slow
def test_several_gpus_are_never_all_measured_by_accident(stub: Path, server: KnownServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = sweep(server, out, Curve().environment(stub, GPUS=2), "--power", "nvml")
    assert done.returncode == 2
    assert "--gpu" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()
    done = sweep(server, out, Curve().environment(stub, GPUS=2), "--power", "nvml", "--gpu", uuid_of(1), duration="1")
    assert set(loadgen.load_run(out).power["gpu_uuid"]) == {uuid_of(1)}, done.stderr


@pytest.mark.slow
def test_without_a_driver_auto_says_why_there_is_no_energy(server: KnownServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = sweep(server, out, dict(os.environ), duration="1")
    assert "! energy not measured: " in done.stdout, done.stderr
    run = loadgen.load_run(out)
    assert run.cells["energy_j"].isna().all()
    assert run.manifest.power.reason


@pytest.fixture(scope="module")
def scraped(server: KnownServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """/metrics of a running sweep at B = 2."""
    port, out = free_port(), tmp_path_factory.mktemp("scraped") / "run"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "loadgen", "sweep", "--target", f"fp16={server.url}", "--concurrency", "2",
            "--dataset", "sample", "--repeats", "1", "--duration", "2", "--out", str(out),
            "--metrics-port", str(port), "--quiet",
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seen = ""
    try:
        while process.poll() is None and "loadgen_requests_total{" not in seen:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    seen = answer.read().decode()
            except OSError:
                pass
            time.sleep(0.05)
    finally:
        process.wait(60)
    return seen


def test_the_running_sweep_can_be_scraped(scraped: str) -> None:
    labels = 'arrival="closed",concurrency="2",precision="fp16",repeat="1",target="fp16"'
    assert f"loadgen_requests_in_flight{{{labels}}} 2.0" in scraped
    of_status = labels.replace(",target", ',status="ok",target')
    assert f"loadgen_requests_total{{{of_status}}}" in scraped
    assert "loadgen_simulated 0.0" in scraped


def test_promtool_accepts_what_is_scraped(scraped: str) -> None:
    check = [program("promtool"), "check", "metrics"]
    checked = subprocess.run(check, input=scraped, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stderr
