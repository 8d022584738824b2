"""A study as a sweep leaves it: requests, running batch and power of a closed loop, worked out and not measured."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from made_run import MS, answer, cell, ended, manifest, scrape, write_cell

from loadgen.load.exchange import Exchange
from loadgen.power.sample import PowerSample
from loadgen.record.journal import Journal, power_file

BATCHES = (1, 4, 8)
REPEATS = (1, 2)
ITL_MS = {"fp16": (10.0, 0.1), "awq": (5.0, 1.2), "bnb-nf4": (13.0, 0.2)}
"""For one request alone, and more for each one of the batch."""
WATTS = {"fp16": 300.0, "awq": 260.0, "bnb-nf4": 320.0}
WRONG = {"fp16": {3, 11}, "awq": {3, 7, 11, 18}, "bnb-nf4": {5, 11}}
ITEMS = 24
TDP_W = 700.0
_WINDOW_MS, _RAMP_MS, _CELL_MS = 6000, 1000, 8000
_PERIOD_MS = 25


def made_study(run_dir: Path) -> Path:
    """Three precisions, two of them of 4 bits with different kernels, at `BATCHES`. One cell's batch is too small, one
    block's energy counter begins again."""
    run_dir.mkdir(parents=True)
    config = {
        "reference": "fp16", "targets": [{"name": name} for name in ITL_MS], "concurrency": list(BATCHES),
        "repeats": len(REPEATS), "model": "some/model", "duration_s": _WINDOW_MS / 1000, "requests": None,
        "tdp_w": TDP_W,
    }  # fmt: skip
    blocks = [{"target": t, "repeat": r, "gpus": [_GPU], "rest_w": {"GPU-a": 60.0}} for r in REPEATS for t in ITL_MS]
    (run_dir / "manifest.json").write_text(json.dumps(manifest(config, power_blocks=blocks)))
    facts = {f"q{k:02}": {"gold": "5", "steps": 1 + k % 8} for k in range(ITEMS)}
    (run_dir / "items.json").write_text(json.dumps(facts))
    index = 0
    for repeat in REPEATS:
        for target in ITL_MS:
            for place, b in enumerate(BATCHES):
                index += 1
                of = cell(b, target=target, repeat=repeat, index=index)
                start = place * _CELL_MS
                opened = start + _RAMP_MS
                running = 0.5 * b if (target, b, repeat) == ("awq", 8, 2) else float(b)
                scrapes = [scrape(t, running=running, waiting=0.0) for t in range(start + 100, start + 7500, 200)]
                exchanges = list(_closed_loop(target, b, repeat, start))
                write_cell(run_dir, of, exchanges, scrapes, ended((opened, opened + _WINDOW_MS)))
            _write_power(run_dir, target, repeat)
    return run_dir


_GPU = {
    "uuid": "GPU-a", "index": 0, "name": "a GPU", "mig": False, "memory_total_bytes": 80 * 2**30,
    "power_limit_default_w": TDP_W,
}  # fmt: skip


def _closed_loop(target: str, b: int, repeat: int, start_ms: float) -> Iterator[Exchange]:
    """Each slot sends as soon as its last answer ended; items in order, those of the first round are the warm-up. The
    second repeat is 4% slower, of all targets alike."""
    alone, more = ITL_MS[target]
    wobble = random.Random(f"{target}-{repeat}").gauss(1.0, 0.0015) * (1.04 if repeat == 2 else 1.0)
    free = [start_ms + 3.0 * slot for slot in range(b)]
    asked = 0
    while min(free) < start_ms + _RAMP_MS + _WINDOW_MS:
        slot = free.index(min(free))
        item, phase = asked % ITEMS, "warmup" if asked < b else "measured"
        length = 6 + item * 5 % 11 + (2 if target == "awq" and item % 3 == 0 else 0)
        first = free[slot] + wobble * (20.0 + 2.0 * b + item % 5)
        step = wobble * (alone + more * b)
        text = "#### 7" if item in WRONG[target] else "#### 5"
        tokens = [(first + step * k, 1) for k in range(length)]
        made = answer(free[slot], tokens, slot=slot, phase=phase, item_id=f"q{item:02}", text=text)
        yield made
        free[slot] = made.t_end_ns / MS + 0.2
        asked += 1


def _write_power(run_dir: Path, target: str, repeat: int) -> None:
    """Watts step with the cells; in one block the counter begins again in the middle of a window."""
    journal = Journal(power_file(run_dir, target, repeat))
    joules = 1000.0
    for t in range(-3000, len(BATCHES) * _CELL_MS + 3000, _PERIOD_MS):
        b = BATCHES[min(max(t // _CELL_MS, 0), len(BATCHES) - 1)]
        watts = WATTS[target] * (1 + 0.05 * b) + 2 * repeat
        joules = 0.0 if (target, repeat, t) == ("bnb-nf4", 2, 3000) else joules + watts * _PERIOD_MS / 1000
        sample = PowerSample(
            t_ns=t * MS, latency_ns=MS, gpu="GPU-a", counter_j=joules, power_instant_w=watts,
            memory_used_bytes=(20 if target == "fp16" else 9) * 2**30,
        )  # fmt: skip
        journal.append(sample)
    journal.close()
