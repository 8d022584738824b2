"""How long `loadgen report` takes for a run of a million requests, and how much memory.

    python bench/million_requests.py --out /tmp/million           some five minutes; bench/results/million_requests.json
    python bench/million_requests.py --out /tmp/million --unlike 1    the worst case: no two answers are alike

The run is made up once (2.6 GB; 4 precisions x 4 batches x 3 repeats, 100 tokens and about 200 characters an answer,
power at 50 Hz) and says SIMULATED. Taken are seconds and CPU seconds of the analysis, of the drawing and of the whole
command, processes included that they start, a few rounds of them; and once, as watching costs time, the peak of memory:
the sum over the processes (Pss, so that what they share counts once).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq

from loadgen.load.exchange import Exchange
from loadgen.measure.machine import host_record
from loadgen.power.sample import PowerSample
from loadgen.record.cell import Cell
from loadgen.record.journal import CellEnd, CellStart, Record, power_file, sealed
from loadgen.serving.exposition import ServerSample

TARGETS = {"fp16": 1.0, "awq": 0.8, "gptq": 0.82, "bnb-nf4": 1.6}
"""Precision -> its step time over fp16's."""
STEP_S = {1: 6.3e-3, 16: 6.5e-3, 64: 7.7e-3, 128: 11e-3}
REPEATS = 3
TOKENS = 100
TTFT_S = 0.02
ITEMS = 1319
CHARACTERS = 200
WARMUP_S = 2.0
SCRAPE_S, POWER_S = 0.2, 0.02
GPU = "SIMULATED-gpu"
WORDS = "each box holds the same number of pears and what is left is shared among them so we add both parts".split()  # noqa: SIM905
POLL_S = 0.1
MOST_S, MOST_BYTES = 15.0, 2**30
"""What the command may take on two cores."""
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the run is made, outside the repository")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--unlike", type=float, default=0.1, help="share of answers whose text occurs only once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "million_requests.json")
    given = parser.parse_args()
    if not given.out.exists():
        made = make_run(given.out, given.requests, given.unlike)
        print(f"made: {made:,} requests, {size_of(given.out / 'journal') / 1e9:.2f} GB of journal in {given.out}")
    commands = stages(str(given.out))
    begin = {**msgspec.to_builtins(host_record()), "python": platform.python_version()}
    taken: dict[str, list[dict[str, float]]] = {stage: [] for stage in commands}
    for number in range(1, given.rounds + 1):
        for stage, command in commands.items():
            taken[stage].append(timed(command))
            print(f"{number}  {stage:15} {taken[stage][-1]['wall_s']:6.1f} s, {taken[stage][-1]['cpu_s']:6.1f} CPU s")
    peak_bytes = peak_of(commands["loadgen report"])
    medians = {
        stage: {figure: statistics.median(one[figure] for one in rounds) for figure in rounds[0]}
        for stage, rounds in taken.items()
    }
    wall_s = medians["loadgen report"]["wall_s"]
    print(
        f"loadgen report: median {wall_s:.1f} s (limit {MOST_S:.0f}), "
        f"peak {peak_bytes / 2**30:.2f} GiB (limit {MOST_BYTES / 2**30:g})"
    )
    content = {
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit(),
        "machine": begin | {"load_average_at_end": os.getloadavg()[0]},
        "requests": pq.read_metadata(given.out / "requests.parquet").num_rows,
        "unlike": given.unlike,
        "journal_bytes": size_of(given.out / "journal"),
        "medians": medians,
        "peak_bytes": peak_bytes,
        "within_limits": wall_s <= MOST_S and peak_bytes <= MOST_BYTES,
        "rounds": taken,
    }
    given.results.write_text(json.dumps(content, indent=1) + "\n")


def stages(run: str) -> dict[str, list[str]]:
    """Each a command of its own."""
    analysis = "import sys, pathlib; from loadgen.analysis.analyse import analyse; analyse(pathlib.Path(sys.argv[1]))"
    drawing = (
        "import sys; from loadgen import load_run; from loadgen.reports.html import write_report; "
        "write_report(load_run(sys.argv[1]))"
    )
    return {
        "analysis": [sys.executable, "-c", analysis, run],
        "drawing": [sys.executable, "-c", drawing, run],
        "loadgen report": [sys.executable, "-m", "loadgen", "report", run],
    }


def timed(command: Sequence[str]) -> dict[str, float]:
    """Seconds, and CPU seconds of the command and of the processes that it waited for."""
    began_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - began_s
    process.returncode = os.waitstatus_to_exitcode(status)
    _check(process)
    return {"wall_s": wall_s, "cpu_s": used.ru_utime + used.ru_stime}


def peak_of(command: Sequence[str]) -> int:
    """Most bytes of the command and its descendants together."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak_bytes = 0
    while process.poll() is None:
        peak_bytes = max(peak_bytes, sum(pss_bytes(pid) for pid in processes_of(process.pid)))
        time.sleep(POLL_S)
    _check(process)
    return peak_bytes


def _check(process: subprocess.Popen[bytes]) -> None:
    if process.returncode:
        sys.exit(f"{process.args} ended with status {process.returncode}")


def commit() -> str:
    """The commit of this working tree, `+` where it was changed since."""
    said = [
        subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
        for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    ]
    return said[0] + "+" * bool(said[1])


def processes_of(pid: int) -> list[int]:
    """The process and its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(found for child in children for found in processes_of(int(child)))]


def pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


def make_run(run_dir: Path, requests: int, unlike: float) -> int:
    """Writes manifest, items and journal; every cell lasts the same time, as with --duration. Returns the requests."""
    rate = sum(b / (TTFT_S + TOKENS * step_s * slower) for b, step_s in STEP_S.items() for slower in TARGETS.values())
    duration_s = requests / REPEATS / rate
    run_dir.mkdir(parents=True)
    (run_dir / "manifest.json").write_text(json.dumps(manifest(duration_s)))
    items = {f"q{k}": {"gold": str(k), "steps": 2 + k % 7} for k in range(ITEMS)}
    (run_dir / "items.json").write_text(json.dumps(items))
    rng = np.random.default_rng(0)
    index, made, t0_ns = 0, 0, 10**13
    for repeat in range(1, REPEATS + 1):
        for target, slower in TARGETS.items():
            began_ns = t0_ns
            for b, step_s in STEP_S.items():
                index += 1
                cell = Cell(index=index, target=target, precision=target, concurrency=b, repeat=repeat)
                exchanges = answers(cell, rng, t0_ns, step_s * slower * (1 + 0.01 * rng.normal()), duration_s, unlike)
                end_ns = t0_ns + round((WARMUP_S + duration_s) * 1e9)
                write(
                    run_dir / "journal" / f"{cell.label}.jsonl",
                    [
                        CellStart(cell=cell, t_ns=t0_ns, simulated=True),
                        *exchanges,
                        *scrapes(cell, exchanges, t0_ns, end_ns),
                        CellEnd(
                            t_ns=end_ns,
                            window_open_ns=t0_ns + round(WARMUP_S * 1e9),
                            window_close_ns=end_ns,
                            generation_tokens=float(TOKENS * len(exchanges)),
                            client_cpu_s=0.1 * duration_s,
                            loop_lag_ms_p99=0.5,
                        ),
                    ],
                )
                made += len(exchanges)
                t0_ns = end_ns + 10**10
            write(power_file(run_dir, target, repeat), watts(rng, began_ns, t0_ns))
    return made


def answers(
    cell: Cell, rng: np.random.Generator, t0_ns: int, step_s: float, duration_s: float, unlike: float
) -> list[Exchange]:
    """A closed loop: every slot sends its next request when its last answer ended, until the window has closed."""
    whole_s = TTFT_S + TOKENS * step_s
    each = int((WARMUP_S + duration_s) / whole_s) + 1
    steps = np.arange(1, TOKENS + 1)
    made = []
    for turn in range(each):
        for slot in range(cell.concurrency):
            send_s = (turn + slot / cell.concurrency) * whole_s
            send_ns = t0_ns + round(send_s * 1e9)
            at_s = TTFT_S + (steps + 0.3 * rng.random(TOKENS) - 0.3) * step_s
            times = (send_ns + (at_s * 1e9).astype(np.int64)).tolist()
            number = (turn * cell.concurrency + slot) % ITEMS
            made.append(
                Exchange(
                    slot=slot,
                    phase="warmup" if send_s < WARMUP_S - whole_s else "measured",
                    item_id=f"q{number}",
                    prompt_sha=f"{number:064x}",
                    t_send_ns=send_ns,
                    t_first_ns=times[0],
                    t_end_ns=times[-1],
                    token_times=tuple((t_ns, 1) for t_ns in times),
                    token_source="usage",
                    prompt_tokens=800,
                    output_tokens=TOKENS,
                    finish_reason="stop",
                    http_status=200,
                    text=text(rng, cell, number, unlike),
                )
            )
    return made


def text(rng: np.random.Generator, cell: Cell, number: int, unlike: float) -> str:
    """Right or wrong by precision and item; a precision says the same to an item unless it is `unlike`."""
    own = rng if rng.random() < unlike else np.random.default_rng([number, len(cell.target)])
    words = [WORDS[k] for k in own.integers(len(WORDS), size=60)]
    result = number if own.random() < 0.55 else number + 1
    figures = own.integers(2, 99, size=3)
    told = f"{figures[0]} * {figures[1]} = {figures[0] * figures[1]} and {figures[2]} more."
    return f"{told} {' '.join(words)}"[: CHARACTERS - 10] + f"\n#### {result}"


def scrapes(cell: Cell, exchanges: Sequence[Exchange], t0_ns: int, end_ns: int) -> list[ServerSample]:
    at_ns = np.arange(t0_ns, end_ns, round(SCRAPE_S * 1e9))
    arrived = np.sort(np.array([e.token_times for e in exchanges], dtype=np.int64)[:, :, 0], axis=None)
    tokens = np.searchsorted(arrived, at_ns).tolist()
    return [
        ServerSample(
            t_ns=t_ns, scrape_ns=1_000_000, running=float(cell.concurrency), waiting=0.0, preemptions=0.0, kv_usage=0.3,
            generation_tokens=float(count), prompt_tokens=8.0 * count, iterations=count / cell.concurrency,
        )
        for t_ns, count in zip(at_ns.tolist(), tokens, strict=True)
    ]  # fmt: skip


def watts(rng: np.random.Generator, began_ns: int, ended_ns: int) -> list[PowerSample]:
    at_ns = np.arange(began_ns - 5 * 10**9, ended_ns + 5 * 10**9, round(POWER_S * 1e9))
    power_w = 500 + rng.normal(0, 5, len(at_ns))
    joules = np.round(np.cumsum(power_w) * POWER_S, 3)
    return [
        PowerSample(
            t_ns=t_ns, latency_ns=150_000, gpu=GPU, counter_j=j, power_instant_w=w, power_average_w=500.0,
            memory_used_bytes=70_000_000_000,
        )
        for t_ns, w, j in zip(at_ns.tolist(), np.round(power_w, 3).tolist(), joules.tolist(), strict=True)
    ]  # fmt: skip


def manifest(duration_s: float) -> dict[str, object]:
    gpu = {"uuid": GPU, "memory_total_bytes": 80_000_000_000, "power_limit_default_w": 700.0, "mig": False}
    blocks = [(repeat, target) for repeat in range(1, REPEATS + 1) for target in TARGETS]
    return {
        "schema": 1,
        "simulated": True,
        "config": {
            "reference": "fp16", "targets": [{"name": name} for name in TARGETS], "concurrency": list(STEP_S),
            "repeats": REPEATS, "model": "made-up", "duration_s": duration_s, "requests": None,
        },
        "dataset": {"name": "gsm8k", "sha256": "0" * 64, "published": True, "items": ITEMS},
        "protocol": {"name": "gsm8k-5shot-train", "sha256": "0" * 64, "api": "completions", "max_tokens": 256},
        "graded": True,
        "client": {"loadgen": "0"},
        "host": {"cpu": "made up", "cpus": 2},
        "servers": [],
        "failures": [],
        "power_blocks": [
            {"repeat": repeat, "target": target, "simulated": True, "gpus": [gpu], "rest_w": {GPU: 80.0}}
            for repeat, target in blocks
        ],
    }  # fmt: skip


def write(path: Path, records: Sequence[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = msgspec.json.Encoder().encode
    with path.open("wb") as file:
        file.writelines(sealed(encode(record)) for record in records)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.jsonl"))


if __name__ == "__main__":
    main()
