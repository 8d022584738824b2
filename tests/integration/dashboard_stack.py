"""The stack without containers: simulated servers, a sweep against them, and a Prometheus with docker/prometheus' own
configuration and rules; only the addresses are other ones."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from programs import program

from loadgen.analysis.cellresult import judge_cell
from loadgen.measure.config import configure
from loadgen.measure.run import run_sweep

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "docker" / "prometheus"
START_DEADLINE_S = 60


@dataclass(frozen=True)
class Stack:
    """What is left when the sweep is over; times on the wall clock. Its Prometheus still answers."""

    url: str
    start_s: float
    end_s: float
    run_dir: Path


@contextmanager
def stack(folder: Path, *, precisions: Sequence[str], sweep: dict[str, object]) -> Iterator[Stack]:
    """Sweeps to the end with `sweep` as further options."""
    with ExitStack() as running:
        ports = {name: free_port() for name in precisions}
        for name, port in ports.items():
            argv = [sys.executable, "-m", "loadgen", "simulate", "--precision", name, "--port", str(port)]
            running.enter_context(serving([*argv, "--max-num-seqs", "32"], f"http://127.0.0.1:{port}/health"))
        metrics, address = free_port(), f"127.0.0.1:{free_port()}"
        configuration = configured(folder, ports, metrics)
        argv = [program("prometheus"), f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}"]
        argv += [f"--web.listen-address={address}", "--log.level=error"]
        running.enter_context(serving(argv, f"http://{address}/-/ready"))
        start_s, run_dir = time.time(), folder / "run"
        targets = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        config = configure(targets=targets, dataset="sample", metrics_port=metrics, out=run_dir, **sweep)
        run_sweep(config, judge=judge_cell)
        yield Stack(f"http://{address}", start_s, time.time(), run_dir)


def configured(folder: Path, ports: dict[str, int], metrics: int) -> Path:
    """docker/prometheus in `folder`, its services at loopback ports instead of names in a compose network."""
    shutil.copytree(PROMETHEUS / "rules", folder / "rules")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text(encoding="utf-8"))
    for job in config["scrape_configs"]:
        if "dns_sd_configs" in job:
            (found,) = job.pop("dns_sd_configs")
            job["static_configs"] = [
                {"targets": [f"127.0.0.1:{port}"], "labels": {"__meta_dns_name": f"sim-{name}"}}
                for name, port in ports.items()
                if f"sim-{name}" in found["names"]
            ]
        else:
            job["static_configs"] = [{"targets": [f"127.0.0.1:{metrics}"]}]
    path = folder / "prometheus.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@contextmanager
def serving(argv: Sequence[str], ready_url: str) -> Iterator[None]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + START_DEADLINE_S
        while True:
            assert process.poll() is None, f"{argv[0]} died while starting"
            with suppress(OSError), urllib.request.urlopen(ready_url, timeout=5):
                break
            assert time.monotonic() < deadline_s, f"{argv[0]} does not answer at {ready_url}"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
