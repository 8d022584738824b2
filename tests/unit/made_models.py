"""Runs of several models whose COR is known in closed form: 1 + COR = (N* / N) ^ SLOPE."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_run import cell, valid_cell
from scipy import stats

from loadgen.analysis.compare.row import CompareRow

SLOPE = 0.3
REFERENCE_TOKENS_PER_S = 1000
WOBBLE = (0.99, 1.0, 1.01)
GPU = {"uuid": "GPU-1", "name": "A100", "memory_total_bytes": 80 * 10**9}


def model_run(
    run_dir: Path,
    *,
    parameters: float,
    n_star: float,
    concurrency: Sequence[int] = (1,),
    gpus: Sequence[dict[str, Any]] = (GPU,),
    model: str | None = None,
    dataset: str = "sample",
    simulated: bool = False,
    speed: float = 1.0,
) -> Path:
    """A measured run of fp16 and awq, three repeats; awq wobbles the other way round. `speed`: the GPU's, of both."""
    run_dir.mkdir(parents=True)
    manifest = {
        "schema": 1,
        "simulated": simulated,
        "config": {
            "reference": "fp16", "targets": [{"name": "fp16"}, {"name": "awq"}], "concurrency": list(concurrency),
            "repeats": 3, "model": model or f"some/model-{parameters / 1e9:g}B", "duration_s": 1.0, "requests": None,
        },
        "dataset": {"name": dataset, "sha256": "0" * 64, "published": True, "items": 2},
        "protocol": {"name": "sample", "sha256": "0" * 64, "api": "completions", "max_tokens": 256},
        "graded": True,
        "gpu": list(gpus),
        "client": {"loadgen": "0.0"},
        "host": {"cpu": "a processor", "cpus": 2},
        "servers": [
            {"name": name, "repeat": repeat, "version": "0.32.0", "kernels": []}
            for name in ("fp16", "awq") for repeat in (1, 2, 3)
        ],
        "failures": [],
    }  # fmt: skip
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    (run_dir / "items.json").write_text('{"q1": "5", "q2": "8"}')
    faster = (parameters / n_star) ** SLOPE
    for repeat, (up, down) in enumerate(zip(WOBBLE, WOBBLE[::-1], strict=True), start=1):
        for target, rate in (("fp16", up), ("awq", down * faster)):
            for b in concurrency:
                of = cell(b, target=target, repeat=repeat)
                valid_cell(run_dir, of, tokens_per_s=round(REFERENCE_TOKENS_PER_S * speed * rate), simulated=simulated)
    return run_dir


def row(parameters: float | None, logs: Sequence[float], **changed: Any) -> CompareRow:
    """awq against fp16, with log(1 + COR) of each repeat and Student's interval over them."""
    fields: dict[str, Any] = dict.fromkeys(CompareRow.__struct_fields__)
    mean, n = float(np.mean(logs)), len(logs)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(logs, ddof=1) / math.sqrt(n)) if n > 1 else None
    size = f"{parameters / 1e9:g}B" if parameters else "unknown"
    fields |= {
        "run": f"run-{size}", "model": f"model-{size}", "parameters": parameters, "parameters_source": "name",
        "gpu": "A100", "gpu_count": 1, "dataset": "gsm8k", "protocol": "gsm8k", "reference": "fp16", "target": "awq",
        "precision": "awq", "is_reference": False, "concurrency": 16, "repeats": n, "valid": n, "pairs": n,
        "simulated": False, "arrival": "closed", "cor": math.expm1(mean),
        "cor_lo": None if half is None else math.expm1(mean - half),
        "cor_hi": None if half is None else math.expm1(mean + half),
    }  # fmt: skip
    return CompareRow(**fields | changed)


def steady(cor: float) -> list[float]:
    """Three repeats around that COR, 1% apart."""
    return [math.log1p(cor) + wobble for wobble in (-0.01, 0.0, 0.01)]
