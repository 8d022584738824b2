"""What SIGKILL costs: a short simulated sweep is killed at random instants and resumed until it is complete.

    python bench/kill_resume.py --kills 200 --out bench/results/kill_resume.json

Runs of 4 targets x B 4 and 8, 32 requests a cell, are each killed a few times. In every second one the instants are
spread evenly over the session: before there is a manifest, while servers start and stop, in a cell, while the report is
written. In the others each comes within two seconds of the beginning of a cell, so that many come while requests are in
flight. After each run tests/kills.py checks that every record that was whole on disk at a kill is still there, that no
finished cell was touched, that every cell has asked each item exactly once, and that the tables say so. Between them
the same sweep runs undisturbed; figures that do not depend on time must be the same, the rates of both are compared
cell by cell (Mann-Whitney, Holm over all of them at 5%). Exit status 1 if anything is lost, doubled or different.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
from scipy.stats import mannwhitneyu

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from kills import OPTIONS, REQUESTS, KilledRun, violations  # noqa: E402

from loadgen import load_run  # noqa: E402
from loadgen.measure.machine import host_record  # noqa: E402
from loadgen.record.manifest import read_manifest  # noqa: E402

EXACT = ("answers", "failures", "accuracy", "truncated_rate", "output_tokens_mean")
RATES = ("tokens_per_s", "tpot_ms_mean", "ttft_ms_mean", "energy_per_token_j")
WITHIN_S = 2.0
KEY = ["target", "concurrency"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-per-run", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    undisturbed, killed, broken = [], [], []
    kills: list[dict[str, Any]] = []
    attempts = told = 0
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        whole_s = 0.0
        while len(kills) < given.kills:
            if len(undisturbed) <= len(killed) // 4:
                whole = KilledRun(Path(folder) / "undisturbed")
                whole.go(rng, 0, 0.0)
                whole_s = whole.took_s
                undisturbed.append(cells_of(whole))
                broken += [f"undisturbed run {len(undisturbed)}: {sentence}" for sentence in violations(whole)]
                shutil.rmtree(whole.run_dir)
            run = KilledRun(Path(folder) / "killed")
            most = min(given.kills_per_run, given.kills - len(kills))
            if len(killed) % 2:
                run.go_by_cells(rng, most, WITHIN_S)
            else:
                run.go(rng, most, whole_s)
            killed.append(cells_of(run))
            broken += [f"run {len(killed)}: {sentence}" for sentence in violations(run)]
            attempts += len(read_manifest(run.run_dir).attempts)
            kills += [
                {
                    "run": len(killed),
                    "session": kill.session,
                    "after_s": round(kill.after_s, 3),
                    "phase": kill.phase,
                    "records_on_disk": sum(map(len, kill.files.values())),
                    "finished_cells": len(kill.finished),
                }
                for kill in run.kills
            ]
            shutil.rmtree(run.run_dir)
            print("\n".join(broken[told:]), end="")
            told = len(broken)
            print(f"{len(kills)} kills in {len(killed)} runs, {len(broken)} violations", flush=True)
    compared = rates(killed, undisturbed)
    result = {
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": {**msgspec.to_builtins(host_record()), "python": platform.python_version(), "niceness": os.nice(0)},
        "sweep": " ".join(OPTIONS),
        "requests_per_cell": REQUESTS,
        "minutes": round((time.monotonic() - began_s) / 60, 1),
        "kills": len(kills),
        "kills_by_phase": dict(Counter(kill["phase"] for kill in kills)),
        "records_on_disk_at_kills": sum(kill["records_on_disk"] for kill in kills),
        "attempts_set_aside": attempts,
        "runs_killed": len(killed),
        "runs_undisturbed": len(undisturbed),
        "cells_compared": sum(map(len, killed)),
        "violations": broken,
        "exact": exact(killed, undisturbed),
        "rates_differ": differing(compared),
        "rates": compared,
        "each_kill": kills,
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text if given.out is None else "\n".join(json.dumps(row) for row in result["rates"]))
    if given.out is not None:
        given.out.write_text(text)
    sys.exit(1 if broken or result["rates_differ"] or not all(result["exact"].values()) else 0)


def cells_of(run: KilledRun) -> pd.DataFrame:
    return load_run(run.run_dir).cells


def exact(killed: Sequence[pd.DataFrame], undisturbed: Sequence[pd.DataFrame]) -> dict[str, bool]:
    """Figures that do not depend on time: whether every run has the same of every cell."""
    first = undisturbed[0].set_index(KEY)
    return {
        name: all((run.set_index(KEY)[name] == first[name]).all() for run in (*killed, *undisturbed))
        for name in EXACT
        if first[name].notna().all()
    }


def rates(killed: Sequence[pd.DataFrame], undisturbed: Sequence[pd.DataFrame]) -> list[dict[str, Any]]:
    """For each cell and figure: medians of both kinds of runs, their ratio, their spreads, and p of no difference."""
    rows = []
    for (target, b), _ in undisturbed[0].groupby(KEY, sort=False):
        for name in RATES:
            ours, theirs = (
                [float(run.set_index(KEY).loc[(target, b), name]) for run in runs] for runs in (killed, undisturbed)
            )
            median = statistics.median(theirs)
            rows.append(
                {
                    "target": target,
                    "concurrency": int(b),
                    "figure": name,
                    "killed_median": round(statistics.median(ours), 4),
                    "undisturbed_median": round(median, 4),
                    "ratio": round(statistics.median(ours) / median, 4),
                    "undisturbed_spread": round((max(theirs) - min(theirs)) / median, 4),
                    "killed_spread": round((max(ours) - min(ours)) / median, 4),
                    "p": round(float(mannwhitneyu(ours, theirs).pvalue), 4),
                }
            )
    return rows


def differing(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Figures by which killed runs differ from undisturbed ones beyond chance (Holm, 5% for all together)."""
    names = []
    for at, row in enumerate(sorted(rows, key=lambda row: row["p"])):
        if row["p"] > 0.05 / (len(rows) - at):
            break
        names.append(f"{row['target']} B = {row['concurrency']}: {row['figure']}")
    return names


if __name__ == "__main__":
    main()
