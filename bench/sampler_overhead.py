"""What sampling costs, and how punctual it stays, beside a load of 128 streams.

    python bench/sampler_overhead.py     # about 3 minutes; prints a table, writes bench/results/sampler_overhead.json
    python bench/sampler_overhead.py --nvml real --window-s 10

A real `loadgen exporter` samples each 25 ms while it is read as in a sweep: a PowerFeed pulls its samples and its
metrics are scraped each second. Once on a machine at rest, once beside 128 streams of 50 tokens/s each (the raw client
of client_cost.py on tick_server.py). The GPU is the tests' stub of NVIDIA's library unless `--nvml real`: the time that
a driver takes to answer is not in these figures then. CPU is that of the exporter's process; lateness is how long after
its deadline a tick began.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client_cost import machine

from loadgen.power.feed import PowerFeed
from loadgen.serving.process import free_port

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
STREAMS = 128
SETTLE_S = 5.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of a process so far (fields 14 and 15 of /proc/PID/stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
    return body


@contextmanager
def exporter(environment: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Process id and URL of a fresh one, ready."""
    port = free_port()
    argv = [sys.executable, "-m", "loadgen", "exporter", "--port", str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise SystemExit("the exporter did not start")
        yield process.pid, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def load(seconds: float) -> Iterator[subprocess.Popen[str]]:
    """128 streams for at least `seconds`, under way."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, str(HERE / "tick_server.py"), str(port)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    server.stdout.readline()
    argv = [sys.executable, str(HERE / "client_cost.py"), "--case", "raw", "--concurrency", str(STREAMS)]
    argv += ["--port", str(port), "--window-s", str(seconds)]
    client = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(2 * SETTLE_S)
        yield client
    finally:
        client.terminate()
        client.wait(10)
        server.terminate()
        server.wait(10)


def measure(environment: dict[str, str], window_s: float) -> dict[str, Any]:
    """One exporter's figures over a window; lateness counts from its start."""
    with exporter(environment) as (pid, url):
        feed = PowerFeed(url)
        feed.connect()
        feed.start()
        time.sleep(SETTLE_S)
        feed.take()
        before_s, began_s = cpu_s(pid), time.monotonic()
        while (elapsed_s := time.monotonic() - began_s) < window_s:
            get(f"{url}/metrics")
            time.sleep(1.0)
        spent_s = cpu_s(pid) - before_s
        feed.stop()
        samples = len(feed.take())
        sampler = json.loads(get(f"{url}/sampler"))
    figures = {name: sampler[f"lateness_ms_{name}"] for name in ("p50", "p99", "max")}
    return {
        "cpu_s_per_s": spent_s / elapsed_s,
        "samples_per_s": samples / elapsed_s,
        "ticks": sampler["ticks"],
        "ticks_missed": sampler["ticks_missed"],
        "lateness_ms": figures,
        "lost": feed.lost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvml", choices=("stub", "real"), default="stub")
    parser.add_argument("--window-s", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sampler_overhead.json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if asked.nvml == "stub":
            from nvml_stub.build import Curve, build_stub

            environment = Curve().environment(build_stub(Path(folder)))
        cases = {"at_rest": measure(environment, asked.window_s)}
        with load(asked.window_s + 4 * SETTLE_S) as client:
            cases[f"beside_{STREAMS}_streams"] = measure(environment, asked.window_s)
            streaming = client.poll() is None
    if not streaming:
        raise SystemExit("the load ended before the window: nothing is written")
    print("case                  CPU/s   late p50     p99     max ms   missed of ticks")
    for name, case in cases.items():
        late = case["lateness_ms"]
        print(
            f"{name:20} {case['cpu_s_per_s']:>6.2%} {late['p50']:>10.3f} {late['p99']:>7.3f} {late['max']:>10.3f} "
            f"{case['ticks_missed']:>8} of {case['ticks']}"
        )
    content = {"when": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine(), "nvml": asked.nvml, "period_ms": 25,
               "streams": STREAMS, "window_s": asked.window_s, "cases": cases}  # fmt: skip
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
