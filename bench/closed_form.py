"""Joules per token of a simulated sweep beside the closed form of its cost model.

    loadgen sweep --concurrency 1,16,64,128 --duration 30 --repeats 1 --out RUN
    python bench/closed_form.py RUN [--out FILE.json]

The closed form gets what each cell really did: the mean prompt of its requests and the mean answer of those that ended
in its window. Everything else (power curve, sensors, exporter, window, staircase, tokens) is what is put to the test.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import loadgen
from loadgen.serving.simulated.cost import closed_loop, load_presets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    run = loadgen.load_run(options.run)
    presets = load_presets()
    rows = []
    for cell in run.cells.to_dict("records"):
        key = ["target", "concurrency", "repeat"]
        asked = run.requests[(run.requests[key] == [cell[name] for name in key]).all(axis=1)]
        prompt, answer = asked["prompt_tokens"].mean(), cell["output_tokens_mean"]
        expected = closed_loop(presets.cost(cell["precision"]), cell["concurrency"], prompt, answer)
        measured_j = cell["energy_per_token_j"]
        off = measured_j / expected.energy_per_token_j - 1
        rows.append(
            {
                **{name: cell[name] for name in key},
                "valid": cell["energy_valid"],
                "window_s": round(cell["window_s"], 3),
                "requests": cell["requests"],
                "prompt_tokens_mean": round(prompt, 2),
                "answer_tokens_mean": round(answer, 2),
                "energy_per_token_j": measured_j,
                "closed_form_j": expected.energy_per_token_j,
                "off": round(off, 5),
            }
        )
        print(f"{cell['target']:9} B {cell['concurrency']:4} {measured_j:.5f} J/token, closed form {off:+.2%}")
    print(f"largest difference {max(abs(row['off']) for row in rows):.2%} in {len(rows)} cells (SIMULATED)")
    if options.out:
        options.out.write_text(json.dumps({"simulated": True, "cells": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
