"""The client's TTFT beside that of a real engine's own histogram: `python -m bench.truth.engine --model DIR_OR_ID`.

`loadgen sweep --serve bf16` launches vLLM and measures a few batch sizes, each in three starts (six minutes). Nothing
else should run meanwhile.
Results go to bench/results/truth-engine.json; `python -m bench.truth.document` shows them in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench.truth.__main__ import machine

RESULTS = Path(__file__).parent.parent / "results" / "truth-engine.json"
FIGURES = ("ttft_ms_mean", "server_ttft_ms_mean", "server_ttft_count", "ttft_excess_ms", "kernel_stamp_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="what vLLM serves: an id or a folder")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--concurrency", default="1,4,16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--duration", default="20")
    asked = parser.parse_args()
    here = machine()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        argv = [sys.executable, "-m", "loadgen", "sweep", "--serve", "bf16", "--model", asked.model, "--power", "none"]
        argv += ["--device", asked.device, "--dataset", "sample", "--fixed-length", "64", "--out", str(run)]
        argv += ["--concurrency", asked.concurrency, "--repeats", str(asked.repeats), "--duration", asked.duration]
        if subprocess.run(argv, check=False).returncode > 1:
            sys.exit("loadgen sweep did not run; its message is above")
        manifest = json.loads((run / "manifest.json").read_text())
        with (run / "cells.csv").open(newline="") as file:
            cells = [{name: row[name] for name in ("concurrency", "repeat", *FIGURES)} for row in csv.DictReader(file)]
    results = {
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": here,
        "engine": manifest["servers"][0]["version"],
        "model": Path(asked.model).name,
        "cells": cells,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
