"""One hour at B = 64: does the client's memory stay flat, and does the refill gap drift?

    python bench/soak.py                        # an hour; prints a table, writes bench/results/soak.json
    python bench/soak.py --minutes 5 --out /dev/null

`loadgen sweep` itself, one cell, against one simulated server (SIMULATED: only the client is looked at) on a time
scale of 0.25, about 2,000 tokens/s, power recorded beside it. The sweep's resident memory is read every 10 s; refill
gaps and tokens come from the run's own files, in ten equal slices of its window. Slopes are Theil-Sen's, times the
run's length, with their 95% interval.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from client_cost import machine
from scipy.stats import theilslopes

import loadgen
from loadgen.serving.process import free_port

HERE = Path(__file__).parent
B = 64
TIME_SCALE = 0.25
SLICES = 10
EVERY_S = 10.0


def resident_mb(pid: int) -> float:
    """VmRSS of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def soak(minutes: float, run_dir: Path) -> list[tuple[float, float]]:
    """Runs the sweep; (seconds since its start, MB) of its process."""
    port = free_port()
    command = [sys.executable, "-m", "loadgen"]
    server = subprocess.Popen(
        [*command, "simulate", "--precision", "fp16", "--port", str(port), "--time-scale", str(TIME_SCALE)],
        stdout=subprocess.DEVNULL,
    )
    try:
        time.sleep(5)
        asked = ["--target", f"fp16=http://127.0.0.1:{port}", "--power", "simulated", "--dataset", "sample", "--quiet"]
        asked += ["--concurrency", str(B), "--repeats", "1", "--duration", str(60 * minutes), "--out", str(run_dir)]
        sweep = subprocess.Popen([*command, "sweep", *asked])
        began_s = time.monotonic()
        seen = []
        while sweep.poll() is None:
            seen.append((time.monotonic() - began_s, resident_mb(sweep.pid)))
            time.sleep(EVERY_S)
        if sweep.returncode not in (0, 1):
            raise RuntimeError(f"the sweep ended with exit status {sweep.returncode}")
        return seen
    finally:
        server.terminate()
        server.wait(10)


def slices(run: loadgen.Run) -> pd.DataFrame:
    """Per slice of the window: requests, tokens per second, refill gap (last byte of a slot to its next send)."""
    cell = run.cells.iloc[0]
    requests = run.requests.sort_values(["slot", "t_send_ns"])
    gap_ns = requests["t_send_ns"] - requests.groupby("slot")["t_end_ns"].shift()
    edges = np.linspace(cell.window_open_ns, cell.window_close_ns, SLICES + 1)
    place = np.searchsorted(edges, requests["t_send_ns"].to_numpy()) - 1
    times = np.concatenate([[t["t_ns"] for t in row] for row in requests["token_times"]])
    tokens, _ = np.histogram(times, edges)
    rows = []
    for k in range(SLICES):
        gaps_us = gap_ns[place == k].dropna().to_numpy() / 1e3
        rows.append({
            "minute": (edges[k] - edges[0]) / 6e10,
            "refills": len(gaps_us),
            "tokens_per_s": tokens[k] / (edges[k + 1] - edges[k]) * 1e9,
            "refill_gap_us_p50": float(np.percentile(gaps_us, 50)),
            "refill_gap_us_p99": float(np.percentile(gaps_us, 99)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def drift(minutes: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Theil-Sen slope over the whole span, and its share of the median, with the slope's 95% interval."""
    slope, _, low, high = theilslopes(values, minutes)
    span, middle = minutes[-1] - minutes[0], float(np.median(values))
    return {
        "median": middle,
        "over_the_run": slope * span,
        "lo": low * span,
        "hi": high * span,
        "share": slope * span / middle,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "soak.json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        seen = soak(asked.minutes, run_dir)
        run = loadgen.load_run(run_dir)
        cell = run.cells.iloc[0]
        table = slices(run)
        journal_mb = sum(path.stat().st_size for path in (run_dir / "journal").rglob("*.jsonl")) / 2**20
    measuring = [(t_s / 60, mb) for t_s, mb in seen if 60 < t_s < 60 * asked.minutes]
    memory = np.array(measuring)
    drifts = {name: drift(table["minute"].to_numpy(), table[name].to_numpy()) for name in table.columns[2:]}
    drifts["resident_mb"] = drift(memory[:, 0], memory[:, 1])
    print(table.to_string(index=False, float_format=lambda value: f"{value:,.1f}"))
    for name, found in drifts.items():
        print(
            f"{name:20} median {found['median']:10,.1f}   over the run {found['over_the_run']:+9,.2f} "
            f"({found['lo']:+,.2f} to {found['hi']:+,.2f}), {found['share']:+.2%}"
        )
    content = {
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "server": f"SIMULATED fp16, time scale {TIME_SCALE}",
        "concurrency": B,
        "minutes": asked.minutes,
        "valid": bool(cell["valid"]),
        "reasons": cell["reasons"],
        "requests": int(table["refills"].sum()),
        "journal_mb": journal_mb,
        "client_cpu_share": cell["client_cpu_share"],
        "drift": drifts,
        "slices": table.to_dict("records"),
        "resident_mb": [[round(minute, 2), round(mb, 2)] for minute, mb in measuring],
    }
    asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
